#!/usr/bin/env bash
# Every benchmark of a GPU, in under 10 minutes; the figures go to metrics/bench/gpu. Needs the
# packages and a CUDA device, no data.
set -euo pipefail
cd "$(dirname "$0")/.."
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
for name in input files crd step cache scaling epoch; do
    echo "--- $name"
    python -m bench.$name
done
echo "all in $SECONDS s"

#!/usr/bin/env bash
# The wall time of every stage up to one kd and one LF student, under the params.yaml that is in
# place, without DVC: `python -m richkd preset cifar100 && bench/gpu.sh`.
set -euo pipefail
cd "$(dirname "$0")/.."
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader || echo "no GPU: the stages run on the CPU"
for stage in prepare teacher clip "cache teacher" "cache clip" fusion "baseline kd" "distill LF"; do
    start=$SECONDS
    python -m stages.$stage
    times+="$(printf '%-14s %6d s' "$stage" $((SECONDS - start)))"$'\n'
done
printf '\n%s' "$times"

#!/usr/bin/env bash
# The tests that need a GPU, then every benchmark of one, in 9 minutes. Needs a CUDA device and
# the packages, no data, no network and no DVC.
#
#   bash bench/gpu.sh [FOLDER]                   the figures go to FOLDER, else to metrics/bench/gpu
#   bash bench/gpu.sh --wheels                   the packages that this machine lacks, one a line
#   WHEELS=folder bash bench/gpu.sh [FOLDER]     first installs the wheels in `folder`, for this run
#
# What fails or takes too long is named at the end, and does not stop what follows.
set -uo pipefail
if [ "${1:-}" = --wheels ]; then
    cd "$(dirname "$0")/.." && exec python3 -m bench.wheels
fi
FOLDER=${1:+$(realpath -m "$1")}
cd "$(dirname "$0")/.."
export BENCH_FOLDER=${FOLDER:-$PWD/metrics/bench/gpu} OMP_NUM_THREADS=${OMP_NUM_THREADS:-8} TQDM_DISABLE=1

if [ -n "${WHEELS:-}" ]; then
    target=$(mktemp -d)
    trap 'rm -rf "$target"' EXIT
    python3 -m pip install --quiet --no-index --no-deps --upgrade --target "$target" "$WHEELS"/*.whl ||
        exit 1
    export PYTHONPATH=$target${PYTHONPATH:+:$PYTHONPATH}
fi

nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
failed=()
# SECONDS NAME COMMAND: run the command, for so many seconds at most, while the nine minutes last.
attempt() {
    local began=$SECONDS limit=$((540 - SECONDS))
    if [ "$limit" -gt "$1" ]; then limit=$1; fi
    echo "--- $2"
    { [ "$limit" -gt 0 ] && timeout "$limit" "${@:3}"; } || failed+=("$2")
    echo "$2: $((SECONDS - began)) s"
}
attempt 90 tests python3 -m pytest -q -m cuda -p no:cacheprovider \
    tests/clip tests/data tests/teachers tests/train
attempt 40 parts python3 -m bench.parts
attempt 90 step python3 -m bench.step
attempt 60 cache python3 -m bench.cache
attempt 50 towers python3 -m bench.towers
attempt 30 crd python3 -m bench.crd
attempt 50 input python3 -m bench.input
attempt 50 files python3 -m bench.files
attempt 60 scaling python3 -m bench.scaling
attempt 180 epoch python3 -m bench.epoch
echo "all in $SECONDS s, figures in $BENCH_FOLDER"
if [ ${#failed[@]} -gt 0 ]; then
    echo "failed or out of time: ${failed[*]}"
    exit 1
fi

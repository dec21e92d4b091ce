#!/usr/bin/env bash
# All tables of a GPU in one call of at most ten minutes: tests of the Triton kernels, layers, train
# steps, the peer where it is installed, the demo.
#
#     benchmarks/gpu.sh                  # writes benchmarks/results/gpu_*.json and gpu_tests.txt
#     OUT=/tmp/tables benchmarks/gpu.sh  # writes there
#
# It has never run: no GPU was at hand. Tried were `bash -n` and that every option exists; limits of
# time are guesses. What fails or takes too long is said at the end, and the rest goes on.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=${OUT:-benchmarks/results}
python=${PYTHON:-python}
mkdir -p "$out"
failed=()

# Seconds at most, what it is called, and the command.
table() {
    local limit=$1 name=$2
    shift 2
    echo "== $name, at most $limit s: $*"
    timeout "$limit" "$@" || failed+=("$name")
}

numbers() {
    "$python" -m pytest -m "gpu and not rate" tests/kernels/test_triton_numbers.py
    local status=$?
    "$python" -m pytest -s -m "gpu and rate" tests/kernels/test_triton_numbers.py || status=1
    return $status
}

if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "torch sees no GPU here" >&2
    exit 1
fi
export python
export -f numbers
table 150 tests bash -c numbers > "$out/gpu_tests.txt" 2>&1
cat "$out/gpu_tests.txt"
table 90 layers "$python" benchmarks/layers.py --rounds 5 --device cuda --out "$out/gpu_layers.json"
table 90 flan_t5 "$python" benchmarks/flan_t5.py --rounds 5 --out "$out/gpu_flan_t5.json"
table 90 flamingo_int8 "$python" benchmarks/flamingo_int8.py --rounds 5 \
    --out "$out/gpu_flamingo_int8.json"
table 90 demo "$python" benchmarks/demo.py --seeds 0 --out "$out/gpu_demo.json"
if "$python" -c 'import importlib.util as u, sys; sys.exit(not u.find_spec("open_flamingo"))'; then
    table 90 against_open_flamingo "$python" benchmarks/against_open_flamingo.py --images 1 4 \
        --rounds 3 --device cuda --out "$out/gpu_against_open_flamingo.json"
else
    echo "== against_open_flamingo is left out: open_flamingo is not installed"
fi
if ((${#failed[@]})); then
    echo "failed or too slow: ${failed[*]}" >&2
    exit 1
fi

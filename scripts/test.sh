#!/usr/bin/env bash
# Set-up, style, types and the compiled operator, then all tests, the fast ones first. Arguments go to pytest: bash scripts/test.sh -k matcher -x
# A process for every core, four at most, runs whole files of tests; -n 0 is one process.
# With --coverage as the first one, a table of the lines that no test has run follows.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

bash scripts/setup.sh --dev
python=.venv/bin/python
tests=(pytest --numprocesses auto --maxprocesses 4 --dist loadfile)
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # on tensors this small, threads wait for each other longer than they work
if [[ "${1:-}" == --coverage ]]; then # which lines no test has run; processes that tests start are not counted
    shift
    rm -f .coverage
    tests=(coverage run --append -m pytest)
fi

# The CPU kernel, and the CUDA kernel where nvcc is (for Hopper, unless told otherwise: it compiles without a GPU),
# while style and types are looked at.
kernels=""
if command -v "${CXX:-g++}" >/dev/null; then
    TORCH_CUDA_ARCH_LIST="${TORCH_CUDA_ARCH_LIST:-9.0}" "$python" models/ops/setup.py -q build_ext --inplace &
    kernels=$!
    trap wait EXIT
else
    echo "no C++ compiler: the tests run the operator in plain PyTorch" >&2
fi

"$python" -m ruff check .
"$python" -m ruff format --check .
"$python" -m mypy
[[ -z "$kernels" ]] || wait "$kernels"

readonly NO_TESTS=5 # pytest's status when its arguments select nothing
found=0
for marker in "not slow" "slow"; do
    status=0
    "$python" -m "${tests[@]}" -m "$marker" "$@" || status=$?
    if ((status == 0)); then
        found=1
    elif ((status != NO_TESTS)); then
        exit "$status"
    fi
done
((found)) || exit "$NO_TESTS"
[[ "${tests[0]}" != coverage ]] || "$python" -m coverage report

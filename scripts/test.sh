#!/usr/bin/env bash
# Installs what the tests need, checks style and types, builds the operator, and runs all tests, the fast ones first.
#
#   bash scripts/test.sh [ARGUMENTS of pytest]       such as -k matcher -x
#   bash scripts/test.sh --coverage [ARGUMENTS]      and lists the lines that no test has run
#
# Up to four processes run whole files of tests; -n 0 runs all in one.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

bash scripts/setup.sh --dev --web
python=.venv/bin/python
# Files run in their order: pytest-xdist would begin with those of many tests, and end with the slow ones, of few.
tests=(pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder)
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # on tensors this small, threads cost more than they gain
unset PYTHONDONTWRITEBYTECODE                  # each process would compile all tests again
if [[ "${1:-}" == --coverage ]]; then # lines run by processes that tests start are not counted
    shift
    rm -f .coverage
    tests=(coverage run --append -m pytest)
fi

# Build the operator while style and types are checked: for the CPU, and for CUDA if there is an nvcc, which needs no GPU.
kernels=""
if command -v "${CXX:-g++}" >/dev/null; then
    TORCH_CUDA_ARCH_LIST="${TORCH_CUDA_ARCH_LIST:-9.0}" "$python" models/ops/setup.py -q build_ext --inplace &
    kernels=$!
    trap wait EXIT
else
    echo "there is no C++ compiler: the tests run the operator in plain PyTorch" >&2
fi

"$python" -m ruff check .
"$python" -m ruff format --check .
"$python" -m mypy
[[ -z "$kernels" ]] || wait "$kernels"

readonly NO_TESTS=5 # exit status of pytest when its arguments select no test
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

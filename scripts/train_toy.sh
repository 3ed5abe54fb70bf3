#!/usr/bin/env bash
# Make the toy weights in toy/ from scratch: the frozen stack, then the model. A stopped run resumes.
#
#   bash scripts/train_toy.sh [--stack-only | --model-only] [--model vdit|hcd|rem] [--size 64 96]
#       [--output_dir toy] [--work_dir runs/toy]
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

bash scripts/setup.sh
export OMP_NUM_THREADS=1  # the processes share the cores
exec .venv/bin/python -m scripts.train_toy "$@"

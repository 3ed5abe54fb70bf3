#!/usr/bin/env bash
# Make the toy weights of toy/ again from nothing: the frozen stack, then the model. Resumes where it was stopped.
#
#   bash scripts/train_toy.sh [--stack-only | --model-only] [--model vdit|hcd] [--output_dir toy] [--work_dir runs/toy]
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

bash scripts/setup.sh
# One thread per process: the work is shared between processes, and threads of both would wait for each other.
export OMP_NUM_THREADS=1
exec .venv/bin/python -m scripts.train_toy "$@"

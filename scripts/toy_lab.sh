#!/usr/bin/env bash
# The papers' claims, asked again at toy size: a table with seeds and spread, and which claims hold (docs/toy_lab.md).
#
#   bash scripts/toy_lab.sh [--seeds 0 1 2] [--steps N] [--only NAME …] [--processes 2] [--output_dir runs/toy_lab]
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

bash scripts/setup.sh
# One thread per run: runs share the cores, and threads of several would wait for each other.
export OMP_NUM_THREADS=1
exec .venv/bin/python -m scripts.toy_lab "$@"

#!/usr/bin/env bash
# Compare models and their parts at toy size, and print the scores over seeds and the claims that they decide (docs/toy_lab.md).
#
#   bash scripts/toy_lab.sh [--seeds 0 1 2] [--steps N] [--only NAME …] [--processes 2] [--output_dir runs/toy_lab]
#   bash scripts/toy_lab.sh --probes
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

bash scripts/setup.sh
exec .venv/bin/python -m scripts.toy_lab "$@"

#!/usr/bin/env bash
# Every benchmark once, on small sets made here in the true formats, in minutes on two CPU cores: check, train where the
# recipe trains, evaluate, one table of all metrics. Goes on where it stopped.
#
#   bash scripts/eval_all.sh --toy [--model vdit|hcd] [--output_dir runs/eval_all] [--short] [--force]
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

bash scripts/setup.sh
exec .venv/bin/python -m scripts.eval_all "$@"

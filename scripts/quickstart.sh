#!/usr/bin/env bash
# Install the project, then train, infer, score and draw on toy data, in minutes on two CPU cores.
# Arguments go to scripts/quickstart.py (--output_dir, --short); QUICKSTART_SHORT=1 is --short.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

bash scripts/setup.sh
if [ "${QUICKSTART_SHORT:-0}" != 0 ]; then
    set -- --short "$@"
fi
exec .venv/bin/python -m scripts.quickstart "$@"

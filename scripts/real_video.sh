#!/usr/bin/env bash
# Real video, in minutes on two CPU cores: convert a folder in DAVIS's layout, train the tiny model on it, score, draw.
#
#   bash scripts/real_video.sh DAVIS_ROOT [--output_dir runs/real_video] [--steps 500]
#
# DAVIS_ROOT holds DAVIS/ and davis_text_annotations/ (docs/data.md). The model and its frozen features are tiny and
# made here, so the numbers say that the code works on real frames, and nothing about a benchmark.
set -euo pipefail
here=$(pwd)
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

bash scripts/setup.sh
exec .venv/bin/python -m scripts.real_video --base "$here" "$@"

#!/usr/bin/env bash
# Scores VD-IT on A2D-Sentences, test split: configs/vdit_a2d.yaml.
#
#   bash scripts/dist_test_a2d_vdit.sh OUTPUT_DIR CHECKPOINT [FLAGS of main.py]
#
# A2D-Sentences lies in data/a2d-sentences, or where --a2d_path says (docs/data.md).
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh" test vdit_a2d "$@"

#!/usr/bin/env bash
# Scores HCD on A2D-Sentences, test split: configs/hcd_a2d.yaml.
#
#   bash scripts/dist_test_a2d_hcd.sh OUTPUT_DIR CHECKPOINT [FLAGS of main.py]
#
# A2D-Sentences lies in data/a2d-sentences, or where --a2d_path says (docs/data.md).
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh" test hcd_a2d "$@"

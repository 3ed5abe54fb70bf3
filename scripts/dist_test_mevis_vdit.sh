#!/usr/bin/env bash
# Scores VD-IT on MeViS, split valid_u: configs/vdit_mevis.yaml.
#
#   bash scripts/dist_test_mevis_vdit.sh OUTPUT_DIR CHECKPOINT [FLAGS of main.py]
#
# The truth of split valid is not public: inference_ytvos.py makes its submission. MeViS lies in
# data/mevis, or where --mevis_path says (docs/data.md).
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh" test vdit_mevis "$@"

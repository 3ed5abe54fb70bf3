#!/usr/bin/env bash
# Scores VD-IT on Ref-DAVIS17, validation videos: configs/vdit_davis.yaml.
#
#   bash scripts/dist_test_davis_vdit.sh OUTPUT_DIR CHECKPOINT [FLAGS of main.py]
#
# With the weights of Ref-YouTube-VOS. Ref-DAVIS17 lies in data/ref-davis, or where --davis_path says (docs/data.md).
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh" test vdit_davis "$@"

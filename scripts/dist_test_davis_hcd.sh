#!/usr/bin/env bash
# Scores HCD on Ref-DAVIS17, validation videos: configs/hcd_davis.yaml.
#
#   bash scripts/dist_test_davis_hcd.sh OUTPUT_DIR CHECKPOINT [FLAGS of main.py]
#
# With the weights of Ref-YouTube-VOS. Ref-DAVIS17 lies in data/ref-davis, or where --davis_path says (docs/data.md).
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh" test hcd_davis "$@"

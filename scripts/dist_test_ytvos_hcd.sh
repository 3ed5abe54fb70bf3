#!/usr/bin/env bash
# Scores HCD on Ref-YouTube-VOS, validation split: configs/hcd_ytvos.yaml.
#
#   bash scripts/dist_test_ytvos_hcd.sh OUTPUT_DIR CHECKPOINT [FLAGS of main.py]
#
# Ref-YouTube-VOS lies in data/ref-youtube-vos, or where --ytvos_path says (docs/data.md).
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh" test hcd_ytvos "$@"

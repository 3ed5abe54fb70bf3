#!/usr/bin/env bash
# Scores VD-IT on Ref-YouTube-VOS, validation split: configs/vdit_ytvos.yaml.
#
#   bash scripts/dist_test_ytvos_vdit.sh OUTPUT_DIR CHECKPOINT [FLAGS of main.py]
#
# Ref-YouTube-VOS lies in data/ref-youtube-vos, or where --ytvos_path says (docs/data.md).
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh" test vdit_ytvos "$@"

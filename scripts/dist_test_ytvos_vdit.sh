#!/bin/sh
# Scores a checkpoint of VD-IT on the validation split of Ref-YouTube-VOS (configs/vdit_ytvos.yaml).
#
#   sh scripts/dist_test_ytvos_vdit.sh [OUTPUT_DIR CHECKPOINT] [FLAGS of main.py]
#
# Without them, runs/vdit/checkpoint.pth is scored, and OUTPUT_DIR is runs/vdit/valid.
# Ref-YouTube-VOS is read from data/ref-youtube-vos; --ytvos_path names another folder (docs/data.md).
case "${1:--}" in -*) set -- runs/vdit/valid runs/vdit/checkpoint.pth "$@" ;; esac
exec sh "$(dirname -- "$0")/launch.sh" test vdit_ytvos "$@"

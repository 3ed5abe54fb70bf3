#!/bin/sh
# Scores a checkpoint of HCD on the validation split of Ref-YouTube-VOS (configs/hcd_ytvos.yaml).
#
#   sh scripts/dist_test_ytvos_hcd.sh [OUTPUT_DIR CHECKPOINT] [FLAGS of main.py]
#
# Without them, runs/hcd/checkpoint.pth is scored, and OUTPUT_DIR is runs/hcd/valid.
# Ref-YouTube-VOS is read from data/ref-youtube-vos; --ytvos_path names another folder (docs/data.md).
case "${1:--}" in -*) set -- runs/hcd/valid runs/hcd/checkpoint.pth "$@" ;; esac
exec sh "$(dirname -- "$0")/launch.sh" test hcd_ytvos "$@"

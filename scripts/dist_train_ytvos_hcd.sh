#!/bin/sh
# Trains HCD on Ref-YouTube-VOS (configs/hcd_ytvos.yaml), from scratch.
#
#   sh scripts/dist_train_ytvos_hcd.sh [OUTPUT_DIR] [FLAGS of main.py]
#
# OUTPUT_DIR is runs/hcd if it is not given. To start from the weights of the pre-training on RefCOCO, add
#     --pretrained_weights runs/hcd_refcoco/checkpoint.pth --lr_processes 8
# Ref-YouTube-VOS is read from data/ref-youtube-vos; --ytvos_path names another folder (docs/data.md).
case "${1:--}" in -*) set -- runs/hcd "$@" ;; esac
exec sh "$(dirname -- "$0")/launch.sh" train hcd_ytvos "$@"

#!/bin/sh
# Trains VD-IT on Ref-YouTube-VOS (configs/vdit_ytvos.yaml), from scratch.
#
#   sh scripts/dist_train_ytvos_vdit.sh [OUTPUT_DIR] [FLAGS of main.py]
#
# OUTPUT_DIR is runs/vdit if it is not given. To start from the weights of the pre-training on RefCOCO, add
#     --pretrained_weights runs/vdit_refcoco/checkpoint.pth --lr_processes 8
# Ref-YouTube-VOS is read from data/ref-youtube-vos; --ytvos_path names another folder (docs/data.md).
case "${1:--}" in -*) set -- runs/vdit "$@" ;; esac
exec sh "$(dirname -- "$0")/launch.sh" train vdit_ytvos "$@"

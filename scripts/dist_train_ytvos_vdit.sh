#!/usr/bin/env bash
# Trains VD-IT on Ref-YouTube-VOS: configs/vdit_ytvos.yaml.
#
#   bash scripts/dist_train_ytvos_vdit.sh OUTPUT_DIR [FLAGS of main.py]
#
# From scratch: 9 epochs, the rate a tenth after the 6th and the 8th. From the weights of its pre-training:
#     --pretrained_weights runs/vdit_refcoco/checkpoint.pth --lr_processes 8
# Ref-YouTube-VOS lies in data/ref-youtube-vos, or where --ytvos_path says (docs/data.md).
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh" train vdit_ytvos "$@"

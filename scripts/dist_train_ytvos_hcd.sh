#!/usr/bin/env bash
# Trains HCD on Ref-YouTube-VOS: configs/hcd_ytvos.yaml.
#
#   bash scripts/dist_train_ytvos_hcd.sh OUTPUT_DIR [FLAGS of main.py]
#
# From scratch: 9 epochs, the rate a tenth after the 6th and the 8th. From the weights of its pre-training:
#     --pretrained_weights runs/hcd_refcoco/checkpoint.pth --lr_processes 8
# Ref-YouTube-VOS lies in data/ref-youtube-vos, or where --ytvos_path says (docs/data.md).
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh" train hcd_ytvos "$@"

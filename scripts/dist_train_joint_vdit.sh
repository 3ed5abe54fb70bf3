#!/usr/bin/env bash
# Trains VD-IT on RefCOCO, RefCOCO+, RefCOCOg and Ref-YouTube-VOS together: configs/vdit_joint.yaml.
#
#   bash scripts/dist_train_joint_vdit.sh OUTPUT_DIR [FLAGS of main.py]
#
# From scratch: 12 epochs, the rate a tenth after the 8th and the 10th. The sets lie in data/coco and
# data/ref-youtube-vos, or where --coco_path and --ytvos_path say (docs/data.md).
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh" train vdit_joint "$@"

#!/usr/bin/env bash
# Pre-trains VD-IT on RefCOCO, RefCOCO+ and RefCOCOg, whose images become clips: configs/vdit_refcoco.yaml.
#
#   bash scripts/dist_train_refcoco_vdit.sh OUTPUT_DIR [FLAGS of main.py]
#
# 12 epochs, the rate a tenth after the 8th and the 10th. The sets lie in data/coco, or where --coco_path says
# (docs/data.md).
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh" train vdit_refcoco "$@"

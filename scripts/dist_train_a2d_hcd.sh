#!/usr/bin/env bash
# Trains HCD on A2D-Sentences: configs/hcd_a2d.yaml.
#
#   bash scripts/dist_train_a2d_hcd.sh OUTPUT_DIR [FLAGS of main.py]
#
# From the weights of its pre-training in runs/hcd_refcoco, or others by --pretrained_weights: 6 epochs, the rate a
# tenth after the 3rd and the 5th. A2D-Sentences lies in data/a2d-sentences, or where --a2d_path says (docs/data.md).
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh" train hcd_a2d "${@:1:1}" \
    --pretrained_weights runs/hcd_refcoco/checkpoint.pth "${@:2}"

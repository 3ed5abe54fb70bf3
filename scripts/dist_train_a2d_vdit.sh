#!/usr/bin/env bash
# Trains VD-IT on A2D-Sentences: configs/vdit_a2d.yaml.
#
#   bash scripts/dist_train_a2d_vdit.sh OUTPUT_DIR [FLAGS of main.py]
#
# From the weights of its pre-training in runs/vdit_refcoco, or others by --pretrained_weights: 6 epochs, the rate a
# tenth after the 3rd and the 5th. A2D-Sentences lies in data/a2d-sentences, or where --a2d_path says (docs/data.md).
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh" train vdit_a2d "${@:1:1}" \
    --pretrained_weights runs/vdit_refcoco/checkpoint.pth "${@:2}"

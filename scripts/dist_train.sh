#!/bin/sh
# Trains with a configuration from configs/, in one process per GPU.
#
#   sh scripts/dist_train.sh CONFIG OUTPUT_DIR [FLAGS of main.py]
#
# CONFIG is the name of a file in configs/ without .yaml, such as vdit_ytvos (docs/training.md lists the recipes).
exec sh "$(dirname -- "$0")/launch.sh" train "$@"

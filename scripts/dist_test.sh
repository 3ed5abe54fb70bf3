#!/bin/sh
# Scores a checkpoint by a file of configs/, in one process per GPU.
#
#   sh scripts/dist_test.sh CONFIG OUTPUT_DIR CHECKPOINT [FLAGS of main.py]
#
# CONFIG is a name in configs/ without its ending: vdit_ytvos. docs/training.md lists the published recipes.
exec sh "$(dirname -- "$0")/launch.sh" test "$@"

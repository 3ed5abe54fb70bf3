#!/usr/bin/env bash
# Scores VD-IT on JHMDB-Sentences: configs/vdit_jhmdb.yaml.
#
#   bash scripts/dist_test_jhmdb_vdit.sh OUTPUT_DIR CHECKPOINT [FLAGS of main.py]
#
# With the weights of A2D-Sentences. JHMDB-Sentences lies in data/jhmdb-sentences, or where --jhmdb_path says
# (docs/data.md).
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh" test vdit_jhmdb "$@"

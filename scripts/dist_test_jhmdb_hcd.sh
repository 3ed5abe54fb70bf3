#!/usr/bin/env bash
# Scores HCD on JHMDB-Sentences: configs/hcd_jhmdb.yaml.
#
#   bash scripts/dist_test_jhmdb_hcd.sh OUTPUT_DIR CHECKPOINT [FLAGS of main.py]
#
# With the weights of A2D-Sentences. JHMDB-Sentences lies in data/jhmdb-sentences, or where --jhmdb_path says
# (docs/data.md).
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh" test hcd_jhmdb "$@"

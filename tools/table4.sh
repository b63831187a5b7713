#!/usr/bin/env bash
# The paper's Table 4, ILSVRC2012: bash tools/table4.sh --data-root data --gpus 8, or --demo
source "$(dirname "$0")/env.sh"
exec "$PYTHON" tools/table4.py "$@"

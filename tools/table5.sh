#!/usr/bin/env bash
# The paper's Table 5, end to end: bash tools/table5.sh [--data-root data --gpus 8] [--seeds N] [--scratch]
source "$(dirname "$0")/env.sh"
exec "$PYTHON" tools/table5.py "$@"

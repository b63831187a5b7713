#!/usr/bin/env bash
# The paper's Table 2, teachers and students of one network: bash tools/table2.sh [--quick] [--seeds N] [--net NET]
source "$(dirname "$0")/env.sh"
exec "$PYTHON" tools/table2.py "$@"

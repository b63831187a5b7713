#!/usr/bin/env bash
# The paper's Table 3, CIFAR-100: bash tools/table3.sh [--nets resnet20,resnet32] [--seeds N] [--quick]
source "$(dirname "$0")/env.sh"
exec "$PYTHON" tools/table3.py "$@"

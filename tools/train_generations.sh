#!/usr/bin/env bash
# K generations, each taught by the last: bash tools/train_generations.sh configs/cifar100/ban_resnet20.py K
source "$(dirname "$0")/env.sh"
exec "$PYTHON" tools/train_generations.py "$@"

#!/usr/bin/env bash
# Pretrain on GPUS processes of this machine, one GPU each; without any GPU, that many CPU processes (gloo).
#   tools/dist_train.sh CONFIG GPUS [arguments of tools/train.py]
# Several machines: the same command on each, with NNODES, NODE_RANK, MASTER_ADDR and PORT set.
source "$(dirname "$0")/env.sh"
set -euo pipefail

if [ $# -lt 2 ] || ! [[ "$2" =~ ^[0-9]+$ ]]; then
  echo 'error: usage: tools/dist_train.sh CONFIG GPUS [arguments of tools/train.py]' >&2
  exit 2
fi
config="$1" gpus="$2"
shift 2
nnodes="${NNODES:-1}"
port="${PORT:-${MASTER_PORT:-}}"
if ! [[ "$nnodes" =~ ^[1-9][0-9]*$ ]]; then
  echo "error: NNODES is the number of machines, found '$nnodes'" >&2
  exit 2
fi
if [ "$nnodes" -gt 1 ] && { [ -z "${MASTER_ADDR:-}" ] || [ -z "${NODE_RANK:-}" ]; }; then
  echo "error: NNODES=$nnodes also needs MASTER_ADDR, the same on each machine, and NODE_RANK, 0 to $((nnodes - 1))" >&2
  exit 2
fi

# What the user can mend is found here, in one process, and said in one line.
"$PYTHON" tools/train.py "$config" --check --gpus "$gpus" --processes "$((gpus * nnodes))" "$@"
export SD_PRETRAIN_CHECKED=1

# CPU processes share the cores.
cores="$(nproc)"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((cores > gpus ? cores / gpus : 1))}"

if [ "$nnodes" = 1 ] && [ -z "$port" ]; then
  where=(--standalone)
else
  where=(
    --nnodes="$nnodes" --node_rank="${NODE_RANK:-0}"
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${port:-29500}"
  )
fi
exec "$PYTHON" -m sd_pretrain.torchrun "${where[@]}" --nproc_per_node="$gpus" \
  tools/train.py "$config" --launcher pytorch "$@"

#!/usr/bin/env bash
# Pretrain through Slurm, one process a GPU:
#   [GPUS=8 GPUS_PER_NODE=8 CPUS_PER_TASK=12 SRUN_ARGS=...] tools/slurm_train.sh PARTITION JOB_NAME CONFIG [arguments]
# Further arguments go to tools/train.py.
source "$(dirname "$0")/env.sh"
set -euo pipefail

if [ $# -lt 3 ]; then
  echo 'error: usage: tools/slurm_train.sh PARTITION JOB_NAME CONFIG [arguments of tools/train.py]' >&2
  exit 2
fi
partition="$1" job_name="$2" config="$3"
shift 3
gpus="${GPUS:-8}"
if ! [[ "$gpus" =~ ^[1-9][0-9]*$ ]]; then
  echo "error: GPUS is the number of GPUs, found '$gpus'" >&2
  exit 2
fi
per_node="${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}"

if ! command -v srun > /dev/null; then
  echo 'error: no srun here: run this on a Slurm login node, or use tools/dist_train.sh' >&2
  exit 2
fi
# Config and data are checked here; the GPUs are on the compute nodes.
"$PYTHON" tools/train.py "$config" --check --processes "$gpus" "$@"
export SD_PRETRAIN_CHECKED=1

# shellcheck disable=SC2086
exec srun -p "$partition" --job-name="$job_name" --gres="gpu:$per_node" --ntasks="$gpus" \
  --ntasks-per-node="$per_node" --cpus-per-task="${CPUS_PER_TASK:-8}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
  "$PYTHON" -u tools/train.py "$config" --launcher slurm "$@"

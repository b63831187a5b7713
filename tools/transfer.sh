#!/usr/bin/env bash
# Fine-tune backbones on a task and compare them; see tools/transfer.sh --help.
#   tools/transfer.sh det voc07                          BL against SD, at full size
#   GPUS=8 tools/transfer.sh seg voc12 --seeds 3 A=a.pth B=b.pth
#   tools/transfer.sh probe voc07 A=a.pth B=b.pth        frozen features, minutes
#   tools/transfer.sh det voc07 --demo A=a.pth B=b.pth   small, on the embedded data
source "$(dirname "$0")/env.sh"
exec "$PYTHON" tools/run_transfer.py "$@"

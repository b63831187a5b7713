#!/usr/bin/env bash
# Everything the CI checks: bash tools/test.sh [pytest arguments]. Sets the environment up where there is none.
# Where there is a GPU, the tests that need one run after the others, which see none (tests/conftest.py).
source "$(dirname "$0")/env.sh"
set -e
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
# Two side by side, as most tests keep to one core and a process of them takes up to 4 GB.
"$PYTHON" -m pytest -n auto --maxprocesses 2 --dist worksteal "$@"
"$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || exit 0
"$PYTHON" -m pytest -m cuda "$@" || [ $? = 5 ] # 5: what the arguments name needs no GPU

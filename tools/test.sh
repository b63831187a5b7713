#!/usr/bin/env bash
# Everything the CI checks: bash tools/test.sh [pytest arguments]. Sets the environment up where there is none.
source "$(dirname "$0")/env.sh"
set -e
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
exec "$PYTHON" -m pytest "$@"

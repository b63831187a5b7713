#!/usr/bin/env bash
# Set the environment up: bash tools/setup.sh [pip options, e.g. --extra-index-url URL]
#
# Uses the activated venv or conda environment, otherwise makes .venv; SD_ENV=.venv (or another folder, or `active`)
# overrides that, PYTHON=... chooses the interpreter that makes .venv. An environment that was there before keeps
# every package that suits (torch, torchvision and a compiled mmcv above all). Nothing is compiled. Ends with
# tools/doctor.py. Running it again takes seconds; with pip options it always asks pip.
set -euo pipefail
CDPATH= cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/find_env.sh

die() {
  echo "error: $*" >&2
  exit 2
}

suits() { "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2> /dev/null; }

# The first interpreter that is of a supported version and able to make a venv.
find_python() {
  local candidate without_venv=''
  if [ -n "${PYTHON:-}" ]; then
    command -v "$PYTHON" > /dev/null || die "PYTHON=$PYTHON is not there; name a Python 3.10, 3.11 or 3.12"
    suits "$PYTHON" || die "PYTHON=$PYTHON is $("$PYTHON" --version 2>&1); 3.10, 3.11 and 3.12 are supported"
  fi
  for candidate in ${PYTHON:-python3.11 python3.12 python3.10 python3 python}; do
    if command -v "$candidate" > /dev/null && suits "$candidate"; then
      if "$candidate" -c 'import ensurepip, venv' 2> /dev/null; then
        command -v "$candidate"
        return
      fi
      without_venv="${without_venv:-$candidate}"
    fi
  done
  if [ -n "$without_venv" ]; then
    version="$("$without_venv" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
    die "$without_venv cannot make environments (no venv or ensurepip); on Debian and Ubuntu: sudo apt install python$version-venv"
  fi
  die 'found no Python 3.10, 3.11 or 3.12; install one (Debian: sudo apt install python3 python3-venv) or name it: PYTHON=/path/to/python3.11 bash tools/setup.sh'
}

env="$(sd_active_env)"
own=0
if [ -z "$env" ] || [ "$env" = "$PWD/.venv" ]; then
  env="$PWD/.venv"
  own=1
fi
if [ "$own" = 1 ] && ! "$env/bin/python" -c '' 2> /dev/null; then
  python="$(find_python)"
  echo "Making .venv with $("$python" --version 2>&1) ($python)"
  "$python" -m venv --clear "$env" || die "$python -m venv $env failed (see above)"
fi
if [ "$own" = 1 ] && [ -n "${PYTHON:-}" ] && [ "$("$PYTHON" --version 2>&1)" != "$("$env/bin/python" --version 2>&1)" ]; then
  die ".venv has $("$env/bin/python" --version), PYTHON is $("$PYTHON" --version 2>&1 || echo missing); remove .venv to make it anew"
fi
python="$env/bin/python"
[ -x "$python" ] || die "the environment $env has no bin/python; activate another one, or SD_ENV=.venv for an own one"
suits "$python" || die "$env has $("$python" --version 2>&1), and 3.10, 3.11 and 3.12 are supported; use another environment, or SD_ENV=.venv for an own one"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

if [ $# = 0 ] && sd_is_set_up "$env"; then
  echo "$env is set up; checking it"
  if "$python" tools/doctor.py; then exit 0; fi
  echo 'The doctor is not content: installing again.'
fi
rm -f "$env/.sd_setup"

"$python" -m pip --version > /dev/null 2>&1 || "$python" -m ensurepip || die "$env has no pip; install pip into it, or SD_ENV=.venv for an own one"
conflicts="$("$python" tools/pins.py conflicts)"
[ -z "$conflicts" ] || die "$env holds OpenMMLab's own packages ($(echo $conflicts)), whose folders the onedl ones share; use another environment (SD_ENV=.venv makes an own one), or uninstall them"

constraints="$(mktemp)"
trap 'rm -f "$constraints"' EXIT
if [ "$own" = 1 ]; then
  cp constraints.txt "$constraints"
  "$python" -m pip install --disable-pip-version-check --upgrade pip "$@"
else
  "$python" tools/pins.py constraints > "$constraints"
fi

# Built in isolation, mmcv finds no torch and leaves its ops out: seconds instead of 20 minutes.
unset PIP_NO_BUILD_ISOLATION
MMCV_WITH_OPS=0 "$python" -m pip install --disable-pip-version-check -c "$constraints" -e '.[demo,test]' "$@"

headless="$("$python" tools/pins.py headless)"
if [ -n "$headless" ]; then
  echo "Putting $headless last, so that cv2 needs no libGL"
  "$python" -m pip install --disable-pip-version-check --no-deps --force-reinstall "$headless" "$@"
fi

"$python" tools/doctor.py
sd_stamp > "$env/.sd_setup"

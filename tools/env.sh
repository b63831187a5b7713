# Every launcher begins with: source "$(dirname "$0")/env.sh"
# Goes to the repository's root, finds the environment (see find_env.sh; sets one up where there is none), exports
# PYTHON, its interpreter, and PYTHONPATH, so that this clone's packages are the ones imported.
CDPATH= cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
source tools/find_env.sh

sd_choose() {
  local active
  active="$(sd_active_env)"
  for env in "$active" "$PWD/.venv"; do
    if sd_is_set_up "$env" || sd_has_it_all "$env"; then
      PYTHON="$env/bin/python"
      return 0
    fi
  done
  return 1
}

if ! sd_choose; then
  echo 'No environment with what is needed: setting one up (once; see tools/setup.sh).' >&2
  bash tools/setup.sh >&2 || exit $?
  sd_choose || { echo 'error: tools/setup.sh finished, yet something is missing; run it by hand' >&2; exit 1; }
fi
export PYTHON
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

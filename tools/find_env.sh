# Sourced by env.sh and setup.sh; the working directory is the repository's root.

# Print the folder of the environment to use. SD_ENV names one (a folder, or `active` for the python on the PATH,
# as in a container); otherwise the activated venv or conda environment (not conda's base) counts, then .venv.
sd_active_env() {
  if [ "${SD_ENV:-}" = active ]; then
    (command -v python3 > /dev/null && python3 -c 'import sys; print(sys.prefix)') || true
  elif [ -n "${SD_ENV:-}" ]; then
    case "$SD_ENV" in /*) echo "$SD_ENV" ;; *) echo "$PWD/$SD_ENV" ;; esac
  elif [ -n "${VIRTUAL_ENV:-}" ]; then
    echo "$VIRTUAL_ENV"
  elif [ -n "${CONDA_PREFIX:-}" ] && [ "${CONDA_DEFAULT_ENV:-}" != base ]; then
    echo "$CONDA_PREFIX"
  fi
}

# What the set-up of this clone would write today: changes with the clone's place, the requirements and the pins.
sd_stamp() {
  echo "$PWD $(cat pyproject.toml constraints.txt | cksum)"
}

# Whether setup.sh has finished in the environment $1 for just these requirements (a matter of milliseconds).
sd_is_set_up() {
  [ -n "$1" ] && [ -x "$1/bin/python" ] && [ -f "$1/.sd_setup" ] && [ "$(cat "$1/.sd_setup")" = "$(sd_stamp)" ]
}

# Whether the environment $1, set up by hand, has all that is required.
sd_has_it_all() {
  [ -n "$1" ] && [ -x "$1/bin/python" ] && "$1/bin/python" tools/pins.py check > /dev/null 2>&1
}

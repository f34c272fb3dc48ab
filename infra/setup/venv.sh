#!/bin/sh
# Makes .venv as pyproject.toml and constraints.txt describe it, and does nothing when it already is.
# This is the one part of Letterpress that runs before there is a Python environment; everything else
# that a machine may lack (the Pulumi engine, nginx) is installed from Python, by `letterpress setup`.
#
#   infra/setup/venv.sh worker,router,infra[,dev]
#
# PYTHON=...         the interpreter to build on (default: the first python3 that is new enough)
# TORCH_BACKEND=...  cpu, cu126, cu128, auto, ...: which build of torch (default: the ordinary index's)
set -eu
cd "$(dirname "$0")/../.."
extras=${1:?which extras}
venv=.venv

say() { printf '%s\n' "$*" >&2; }
die() { say "setup: $1"; shift; for line in "$@"; do say "  $line"; done; exit 1; }

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then sudo -n "$@"; else return 1; fi
}

find_python() {
  for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      "$candidate" -c 'import sys; print(sys.executable)'; return
    fi
  done
  die "no Python 3.11 or newer found (tried: ${PYTHON:-python3 python3.13 python3.12 python3.11})" \
      "install one, or name it: make PYTHON=/path/to/python3.12 ..."
}

make_venv() {
  rm -rf "$venv"
  "$python" -m venv "$venv" >/dev/null 2>&1 && return
  # Debian and Ubuntu ship venv apart from Python.
  version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  say "setup: this Python lacks venv; installing python$version-venv with apt-get"
  if command -v apt-get >/dev/null && as_root sh -c "apt-get update -qq && apt-get install -y -qq python$version-venv" >/dev/null; then
    rm -rf "$venv"; "$python" -m venv "$venv"
  else
    die "cannot make a virtual environment: python$version-venv is missing and may not be installed from here" \
        "run: sudo apt-get install python$version-venv    and then this command again"
  fi
}

# What the environment must match. The folder counts too: a virtual environment does not survive a move.
# A choice of torch stays chosen: `make deploy TORCH_BACKEND=cpu` today, plain `make status` tomorrow.
chosen=$(cat "$venv/.letterpress-torch" 2>/dev/null || true)
backend=${TORCH_BACKEND:-$chosen}
wanted=$( { printf '%s\n' "$PWD" "$backend"; cat pyproject.toml constraints.txt; } | cksum)
fresh() { [ -x "$venv/bin/letterpress" ] && [ "$(cat "$venv/.letterpress-$1" 2>/dev/null)" = "$wanted" ]; }
# The environment with the tests' extras serves for everything that the smaller one does.
up_to_date() { [ -z "${PYTHON:-}" ] && { fresh "$extras" || fresh "$extras,dev"; }; }
up_to_date && exit 0

exec 9>.venv.lock
flock 9
up_to_date && exit 0

home=$(cat "$venv/.letterpress-home" 2>/dev/null || true)
if [ -n "${PYTHON:-}" ] || [ "${home#*=}" != "$PWD" ] || ! "$venv/bin/python" -c '' 2>/dev/null; then
  python=$(find_python)
  [ "$home" = "$python=$PWD" ] || { make_venv; printf '%s' "$python=$PWD" >"$venv/.letterpress-home"; }
fi
fresh "$extras" && exit 0
started=$(date +%s)
say "setup: installing Letterpress ($extras) into .venv; the first time this fetches torch with its CUDA libraries (5 GB)"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt uv
# uv takes an installed torch of the right version for the right build: another build has to be asked for.
[ "$backend" = "$chosen" ] || rebuild="--reinstall-package torch"
# shellcheck disable=SC2086  # words or nothing, on purpose
"$venv/bin/uv" pip install --quiet --python "$venv/bin/python" -c constraints.txt ${backend:+--torch-backend=$backend} ${rebuild:-} -e ".[$extras]" ||
  die "installing the Python packages failed (above)" "check the network and the disk (5 GB are needed), then run the same command again"
printf '%s' "$backend" >"$venv/.letterpress-torch"
printf '%s' "$wanted" >"$venv/.letterpress-$extras"
say "setup: Python packages are ready ($(( $(date +%s) - started )) s)"

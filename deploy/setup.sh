#!/usr/bin/env bash
# What `make setup` runs: .venv with the locked packages and this checkout. Needs no root.
#
# A system Python 3.11 or 3.12 with venv and headers is taken as it is. Otherwise uv makes the environment, with a
# Python 3.12 that it finds or downloads. UV_VERSION and PYTHON come from the Makefile.
set -euo pipefail
UV_VERSION=${UV_VERSION:?run make setup}
PYTHON=${PYTHON:-python3}
VENV=.venv

# uv does not read pip's configuration: behind a company's index one setting is to be enough.
if [ -n "${PIP_INDEX_URL:-}" ] && [ -z "${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-}" ]; then
  export UV_DEFAULT_INDEX=$PIP_INDEX_URL
fi

# Exit status 0 when this Python is 3.11 or 3.12 and can make environments; $2 = headers: and build the C++ backend.
suits() {
  "$1" - "${2:-}" <<'PYTHON' 2>/dev/null
import ensurepip, pathlib, sys, sysconfig, venv
headers = pathlib.Path(sysconfig.get_path("include"), "Python.h").is_file()
sys.exit(not ((3, 11) <= sys.version_info[:2] < (3, 13) and (headers or not sys.argv[1])))
PYTHON
}

# uv: on PATH, where its installer puts it, or from pip in a small environment of its own.
find_uv() {
  local bootstrap=.cache/uv
  for uv in "$(command -v uv || true)" "$HOME/.local/bin/uv" "$PWD/$bootstrap/bin/uv"; do
    if [ -x "$uv" ]; then return; fi
  done
  if "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null; then
    "$PYTHON" -m venv "$bootstrap"
    "$bootstrap/bin/python" -m pip install --quiet --disable-pip-version-check "uv==$UV_VERSION"
    uv=$PWD/$bootstrap/bin/uv
    return
  fi
  cat >&2 <<'TEXT'
fruitstand needs Python 3.11 or 3.12 with venv, or uv, which brings a Python of its own. Install uv, without root:
    curl -LsSf https://astral.sh/uv/install.sh | sh
and run make again.
TEXT
  exit 1
}

make_environment() {
  if suits "$PYTHON" headers; then
    "$PYTHON" -m venv "$VENV"
    return
  fi
  find_uv
  echo "$("$PYTHON" --version 2>/dev/null || echo "no $PYTHON") here; uv looks for Python 3.12, or downloads it"
  if "$uv" venv --seed --allow-existing --python 3.12 "$VENV"; then return; fi
  if suits "$PYTHON"; then
    echo "uv has no Python 3.12: taking $("$PYTHON" --version) without headers, so the slower Python backends serve" >&2
    "$PYTHON" -m venv "$VENV"
    return
  fi
  echo "no Python 3.11 or 3.12 here, and uv could not download one; install one, then: make setup PYTHON=python3.12" >&2
  exit 1
}

test -x "$VENV/bin/python" || make_environment
if ! test -x "$VENV/bin/uv"; then
  "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check "uv==$UV_VERSION"
fi
export VIRTUAL_ENV=$PWD/$VENV
echo "installing $(grep -c '^[a-z0-9]' requirements.lock) locked packages into $VENV: one to four minutes the first time"
# uv's progress, without the list of all packages at the end; a pipe, for /dev/fd is not everywhere.
"$VENV/bin/uv" pip sync --require-hashes requirements.lock 2>&1 | { grep --line-buffered -v '^ *[-+~] ' || true; }
"$VENV/bin/uv" pip install --quiet --no-deps --no-build-isolation --editable .
echo "installed; for this shell: source $VENV/bin/activate"

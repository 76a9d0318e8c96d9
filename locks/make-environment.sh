#!/usr/bin/env bash
# Makes or updates the virtual environment $1 so that it holds exactly the lock $2 and frostline itself.
# Needs a Python 3.11 to 3.13 (or $PYTHON) and the package index of pip's and uv's own configuration.
set -euo pipefail
venv=$1 lock=$2

say() { printf 'frostline: %s\n' "$*" >&2; }

# Prints an interpreter of a supported version, or explains on stderr and fails.
find_python() {
    local candidate found without_venv=""
    for candidate in ${PYTHON:-python3.13 python3.12 python3.11 python3 python}; do
        # A shim of pyenv may exist and yet run nothing, so each is tried.
        found=$("$candidate" -c 'import sys; print("yes" if (3, 11) <= sys.version_info[:2] <= (3, 13) else "%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
        if [ "$found" != yes ]; then
            say "$candidate is Python $found; Frostline needs 3.11, 3.12 or 3.13."
        elif "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
            echo "$candidate"
            return 0
        else
            without_venv=$candidate
        fi
    done
    if [ -n "$without_venv" ]; then
        say "$without_venv has no ensurepip, so it cannot make a virtual environment. On Debian and Ubuntu:"
        say "  apt install $("$without_venv" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
    else
        say "no Python 3.11, 3.12 or 3.13 found (tried: ${PYTHON:-python3.13 python3.12 python3.11 python3 python})."
        say "Install one, or name it: make run PYTHON=/path/to/python3.12"
    fi
    return 1
}

if ! "$venv/bin/python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
    python=$(find_python) || exit 2
    say "making $venv with $python ($("$python" --version))"
    rm -rf "$venv"
    "$python" -m venv "$venv"
fi
# uv installs the lock several times faster than pip, which brings in uv alone.
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r locks/uv.txt
say "installing $lock into $venv"
# Bytecode is made now, by all cores: every stage is a process of its own, and where Python may not write bytecode later
# (PYTHONDONTWRITEBYTECODE, a read-only folder), each would compile TensorFlow's 2800 modules anew.
"$venv/bin/uv" pip sync --quiet --compile-bytecode --python "$venv/bin/python" --require-hashes "$lock" locks/uv.txt
# The lock holds setuptools, so building needs nothing more.
"$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --no-deps --no-build-isolation --editable .

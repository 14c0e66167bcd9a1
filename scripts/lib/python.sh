# shellcheck shell=bash disable=SC2034,SC2154,SC2164
# Python environments under target/. Sourced by common.sh.

# ensure_python: finds a python3 that can make virtual environments.
ensure_python() {
    command -v "$python" >/dev/null || {
        [ "$python" = python3 ] || die "PYTHON=$python is not a program: give the path of a Python 3.10 or newer"
        apt_install python3 python3-venv
    }
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        die "$("$python" -V 2>&1) is too old: set PYTHON to a Python 3.10 to 3.13"
    "$python" -c 'import ensurepip, venv' 2>/dev/null || {
        [ "$(command -v "$python")" = /usr/bin/python3 ] ||
            die "$python has no ensurepip, so it can't make a virtual environment: set PYTHON to one that has"
        apt_install python3-venv
    }
}

# python_environment NAME [REQUIREMENTS [PIP OPTION…]]: makes target/NAME with exactly the packages that the file pins; rebuilds it only if
# the file, the options or the Python has changed. If the file has hashes, pip checks them. Without a file, any existing environment with
# pip will do.
python_environment() {
    local place=$target/$1 requirements=${2:-} wanted='' options=(--disable-pip-version-check --only-binary=:all:)
    if [ -z "$requirements" ]; then
        "$place/bin/python" -c 'import pip' 2>/dev/null && return 0
    else
        options+=("${@:3}")
        ! grep -q -- --hash "$requirements" || options+=(--require-hashes)
        ensure_python
        wanted="$(sha256sum <"$requirements") ${options[*]} $("$python" -V)"
        [ "$(cat "$place/made-from" 2>/dev/null)" != "$wanted" ] || return 0
    fi
    ensure_python
    step "$1" "making a Python environment in target/$1" "$python" -m venv --clear "$place"
    [ -n "$requirements" ] || return 0
    step "$1-pip" "installing the packages of ${requirements#"$root/"} in target/$1" \
        "$place/bin/python" -m pip install "${options[@]}" -r "$requirements"
    echo "$wanted" >"$place/made-from"
}

# The tests' packages. --no-deps: tokenizers depends on huggingface-hub, which it uses only to download.
python_packages() { python_environment venv "$root/tests/requirements.txt" --no-deps; }

# shellcheck shell=bash disable=SC1091,SC2154
# venv NAME REQUIREMENTS: target/NAME with exactly the packages that the file pins, hashes checked; done again only when
# the file or the Python has changed. Sourced after common.sh.
venv() {
    local place=$target/$1 requirements=$2 wanted
    ensure_python
    wanted="$(sha256sum <"$requirements") $("$python" -V)"
    [ "$(cat "$place/made-from" 2>/dev/null)" != "$wanted" ] || return 0
    step "$1" "making a Python environment in target/$1" "$python" -m venv --clear "$place"
    step "$1-pip" "installing the packages of ${requirements#"$root/"}" "$place/bin/python" -m pip install \
        --disable-pip-version-check --require-hashes --only-binary=:all: -r "$requirements"
    echo "$wanted" >"$place/made-from"
}

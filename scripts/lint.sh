#!/usr/bin/env bash
# What is checked without running anything; a warning is an error. All of it runs, whatever fails, then the failures are named.
#   lint.sh [fmt] [clippy] [rooms] [ruff] [shellcheck]   only these
# shellcheck source=scripts/lib/common.sh
source "$(dirname "$0")/lib/common.sh"
require_pg
cargo_setup
cd "$root"

failed=()
# check NAME COMMAND…: its output is shown only where it fails.
check() {
    local name=$1 log=$logs/lint-$1.log start=$SECONDS
    shift
    mkdir -p "$logs"
    if "$@" >"$log" 2>&1 </dev/null; then
        printf '%-12s ok, %d s\n' "$name" $((SECONDS - start))
    else
        printf '%-12s FAILED\n' "$name"
        sed 's/^/  | /' "$log"
        failed+=("$name")
    fi
}

# As checks of the release profile: build scripts and macros are then those of the build, and nothing of them is compiled again.
clippy() { cargo clippy --locked --release "${workspace[@]}" --all-targets --quiet -- -D warnings; }

# The whole repository but for what git doesn't know and what is not ignored.
shell_scripts() {
    local files
    mapfile -t files < <({ git ls-files -co --exclude-standard -- '*.sh' .ci/run || find scripts packaging examples -name '*.sh'; } 2>/dev/null)
    PATH=$target/venv-lint/bin:$PATH shellcheck "${files[@]}"
}
python_style() {
    # Both, so that one run shows all there is to do.
    local status=0
    "$target/venv-lint/bin/ruff" check --quiet . || status=1
    "$target/venv-lint/bin/ruff" format --check --quiet . || status=1
    if [ "$status" -ne 0 ]; then echo "ruff format . puts the form in order, ruff check --fix . some of the rest"; fi
    return "$status"
}

for name in "$@"; do
    [[ " fmt clippy rooms ruff shellcheck " == *" $name "* ]] || die "no check $name: fmt, clippy, rooms, ruff, shellcheck"
done
wanted=" ${*:-fmt clippy rooms ruff shellcheck} "
case $wanted in *" ruff "* | *" shellcheck "*) python_environment venv-lint scripts/lib/lint-requirements.txt ;; esac
[[ $wanted != *" fmt "* ]] || check fmt cargo fmt --all --check
[[ $wanted != *" rooms "* ]] || check rooms "$python" scripts/rooms.py
[[ $wanted != *" ruff "* ]] || check ruff python_style
[[ $wanted != *" shellcheck "* ]] || check shellcheck shell_scripts
[[ $wanted != *" clippy "* ]] || check clippy clippy
[ ${#failed[@]} -eq 0 ] || die "lint failed: ${failed[*]}"

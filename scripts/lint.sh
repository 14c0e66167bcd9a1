#!/usr/bin/env bash
# Static checks; a warning is an error. Every check runs even if an earlier one fails, and the failures are listed at
# the end.
#   lint.sh [fmt] [clippy] [rooms] [ruff] [shellcheck]   only these
# shellcheck source=scripts/lib/common.sh
source "$(dirname "$0")/lib/common.sh"
require_pg
cargo_setup
cd "$root"

failed=()
# check NAME COMMAND…: runs it, and shows the output only if it fails.
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

# With the release profile, so that the build's compiled build scripts and macros are reused.
clippy() { cargo clippy --locked --release "${workspace[@]}" --all-targets --quiet -- -D warnings; }

# The Python package is a workspace of its own.
rust_style() { cargo fmt --all --check && cargo fmt --check --manifest-path crates/clip-python/Cargo.toml; }

# All files of the repository except ignored ones.
shell_scripts() {
    local files
    mapfile -t files < <({ git ls-files -co --exclude-standard -- '*.sh' .ci/run || find scripts packaging examples -name '*.sh'; } 2>/dev/null)
    PATH=$target/venv-lint/bin:$PATH shellcheck "${files[@]}"
}
python_style() {
    # Both commands run, so that one call shows everything to fix.
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
[[ $wanted != *" fmt "* ]] || check fmt rust_style
[[ $wanted != *" rooms "* ]] || check rooms "$python" scripts/rooms.py
[[ $wanted != *" ruff "* ]] || check ruff python_style
[[ $wanted != *" shellcheck "* ]] || check shellcheck shell_scripts
[[ $wanted != *" clippy "* ]] || check clippy clippy
[ ${#failed[@]} -eq 0 ] || die "lint failed: ${failed[*]}"

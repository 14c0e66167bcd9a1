#!/usr/bin/env bash
# Builds the last released version, or with RELEASES=all each of them, from its commit into target/releases, for
# tests/release/test_update.py. Each is built once, in a minute, because it uses this version's dependencies. If the
# history does not reach back to a commit (an archive, a shallow clone), the test is skipped with the reason.
# shellcheck source=scripts/lib/common.sh
source "$(dirname "$0")/lib/common.sh"
# shellcheck source=scripts/lib/onnxruntime.sh
source "$root/scripts/lib/onnxruntime.sh"
require_pg
cd "$root"
while read -r version commit; do
    built=$target/releases/$version/pg$pg_major$pg_lib/clip_search.so
    [ ! -e "$built" ] || continue
    if ! git cat-file -e "$commit^{commit}" 2>/dev/null; then
        say "clip_search $version can't be built: commit ${commit:0:10} is not in the history here"
        continue
    fi
    source=$target/releases/$version/source
    rm -rf "$source"
    mkdir -p "$source"
    git archive "$commit" | tar -x -C "$source"
    "$root/scripts/build.sh" release "$version" "$source"
    rm -rf "$source"
done < <(grep -v '^#' tests/fixtures/releases/commits | if [ "${RELEASES:-}" = all ]; then cat; else tail -1; fi)
rm -rf "$target/releases/build"

# The previous ONNX Runtime, from the wheel that tests/requirements.txt pins for Python 3.10, for tests/release/test_upgrade.py.
earlier=1.23.2
earlier_onnxruntime() {
    local to=$target/releases/onnxruntime-$earlier wheel
    rm -rf "$to"
    mkdir -p "$to"
    "$target/venv/bin/python" -m pip download --no-deps --only-binary=:all: --dest "$to" --implementation cp \
        --python-version 310 --abi cp310 --platform "manylinux_2_27_$ort_platform" --platform "manylinux_2_28_$ort_platform" \
        "onnxruntime==$earlier"
    wheel=$(find "$to" -name '*.whl')
    grep -q "$(sha256sum "$wheel" | cut -d' ' -f1)" tests/requirements.txt ||
        die "$(basename "$wheel") has none of the hashes of tests/requirements.txt"
    "$target/venv/bin/python" -m zipfile -e "$wheel" "$to/wheel"
    mv "$to/wheel/onnxruntime/capi/libonnxruntime.so.$earlier" "$to/libonnxruntime.so"
    rm -r "$to/wheel" "$wheel"
}
[ -e "$target/releases/onnxruntime-$earlier/libonnxruntime.so" ] ||
    step earlier-onnxruntime "downloading ONNX Runtime $earlier" earlier_onnxruntime

# shellcheck shell=bash disable=SC2034,SC2154,SC2164
# ONNX Runtime: the library inside the wheel `onnxruntime`, put where the extension looks for it. Sourced by deps.sh.
#
# 1.24.4 starts no thread of its own with one intra-op thread; 1.30.0 and 1.32.0 do, and a postmaster that preloads them
# never finishes starting. Before another version is pinned, that must be measured; its four hashes go here.
ort_version=1.24.4
# A script that builds for another architecture sets ort_machine.
case ${ort_machine:-$(uname -m)} in
x86_64)
    ort_platform=x86_64
    ort_wheel_sha256=e54ad52e61d2d4618dcff8fa1480ac66b24ee2eab73331322db1049f11ccf330
    ort_library_sha256=2d518e11c7767f9fdc4413bdbeb45acf30db504ff76a82fc19d9238a3f9f6c24
    ;;
aarch64 | arm64)
    ort_platform=aarch64
    ort_wheel_sha256=046ff290045a387676941a02a8ae5c3ebec6b4f551ae228711968c4a69d8f6b7
    ort_library_sha256=f373ae5fd4d878ed17ebea26e5480bd3d0a15e3bd6bc94b878e6c1b73998d22a
    ;;
*) ort_platform= ;;
esac

# Any Python can use the wheel for Python 3.11, because only the C library in it is used.
fetch_onnxruntime() {
    "$target/venv/bin/python" -m pip download --no-deps --only-binary=:all: --dest "$1" \
        --implementation cp --python-version 311 --abi cp311 \
        --platform "manylinux_2_27_$ort_platform" --platform "manylinux_2_28_$ort_platform" \
        "onnxruntime==$ort_version"
}

# install_onnxruntime: makes DESTDIR$(pkglibdir)/clip_search/libonnxruntime.so have the pinned content.
install_onnxruntime() {
    local cache=$target/onnxruntime/$ort_version-$ort_platform wheel
    local path=${pg_lib#/}/clip_search/libonnxruntime.so
    [ -n "$ort_platform" ] ||
        die "no ONNX Runtime $ort_version is pinned for ${ort_machine:-$(uname -m)}: x86_64 and aarch64 only"
    ! has_sha256 "$destdir/$path" "$ort_library_sha256" || return 0
    if ! has_sha256 "$cache/stage/$path" "$ort_library_sha256"; then
        rm -rf "$cache/stage"
        wheel=$(find "$cache" -name '*.whl' -print -quit 2>/dev/null || true)
        if [ -z "$wheel" ]; then
            python_environment venv
            mkdir -p "$cache"
            step onnxruntime "downloading ONNX Runtime $ort_version (the wheel onnxruntime, 17 MB, by pip)" \
                fetch_onnxruntime "$cache"
            wheel=$(find "$cache" -name '*.whl' -print -quit)
        fi
        has_sha256 "$wheel" "$ort_wheel_sha256" || {
            rm -f "$wheel"
            die "$(basename "$wheel") does not have the pinned SHA-256 $ort_wheel_sha256 and was deleted:" \
                "check which package index pip is set up to use, then try again"
        }
        ensure_python
        mkdir -p "$(dirname "$cache/stage/$path")"
        "$python" - "$wheel" "onnxruntime/capi/libonnxruntime.so.$ort_version" "$cache/stage/$path" <<'PYTHON'
import shutil, sys, zipfile

wheel, member, library = sys.argv[1:]
with zipfile.ZipFile(wheel).open(member) as source, open(library, "wb") as out:
    shutil.copyfileobj(source, out)
PYTHON
        has_sha256 "$cache/stage/$path" "$ort_library_sha256" ||
            die "libonnxruntime.so.$ort_version in $wheel does not have the pinned SHA-256 $ort_library_sha256"
    fi
    install_tree "$cache/stage" "installing ONNX Runtime $ort_version in $destdir$pg_lib/clip_search/"
}

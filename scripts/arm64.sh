#!/usr/bin/env bash
# Checks and tests for arm64 on another architecture.
#   arm64.sh check   checks with clippy that the workspace compiles; a warning is an error
#   arm64.sh test    builds it, makes an arm64 root with debootstrap, and runs in it, with qemu: the engine's unit tests, and a server
#                    with the extension, which must give this machine's embeddings, order, groups and errors (tests/arm64)
# The test needs root, debootstrap, and the cluster of `make test-cluster`, with which it compares.
# shellcheck source=scripts/lib/common.sh
source "$(dirname "$0")/lib/common.sh"
# shellcheck source=scripts/lib/sources.sh
source "$root/scripts/lib/sources.sh"
# ONNX Runtime's library for arm64.
ort_machine=aarch64
# shellcheck source=scripts/lib/onnxruntime.sh
source "$root/scripts/lib/onnxruntime.sh"
require_pg
# shellcheck source=scripts/lib/arm64.sh
source "$root/scripts/lib/arm64.sh"

# These programs test damaged caches, failing allocations, limits and mutated files, which don't depend on the architecture. qemu takes
# about a hundred times as long for them, an hour in all.
left_out='cached|corpus|fuzz|oom|peak|smaller'

# Writes the folders and the paths of the test programs to target/arm64/tests.
build_tests() {
    cross_cargo test --release --no-run --message-format=json-render-diagnostics >"$arm64/tests.json"
    "$python" - "$arm64/tests.json" "$left_out" >"$arm64/tests" <<'PYTHON'
import json, re, sys

for line in open(sys.argv[1]):
    message = json.loads(line)
    is_test = message["reason"] == "compiler-artifact" and message["profile"]["test"] and message["executable"]
    if is_test and not re.fullmatch(sys.argv[2], message["target"]["name"]):
        print(message["manifest_path"].rsplit("/", 1)[0], message["executable"], sep="\t")
PYTHON
    rm "$arm64/tests.json"
    [ -s "$arm64/tests" ]
}

# --- the root --------------------------------------------------------------------------------------------------

tree=$arm64/root
make_root() {
    local pgvector=''
    rm -rf --one-file-system "$tree.new"
    ! apt-cache show "postgresql-$pg_major-pgvector" >/dev/null 2>&1 || pgvector=,postgresql-$pg_major-pgvector
    mkdir -p "$tree.new/etc/postgresql-common"
    echo 'create_main_cluster = false' >"$tree.new/etc/postgresql-common/createcluster.conf"
    debootstrap --arch=arm64 --variant=minbase --include="postgresql-$pg_major$pgvector" "$(os_release VERSION_CODENAME)" "$tree.new" "$(debian_mirror)"
    rm -rf "$tree.new"/var/cache/apt/archives/*.deb
    mv "$tree.new" "$tree"
}
build_pgvector() {
    rm -rf "$arm64/pgvector" "$arm64/pgvector-stage"
    mkdir -p "$arm64/pgvector"
    tar -xf "$source_archive" -C "$arm64/pgvector" --strip-components=1
    cross_pgvector "$arm64/pgvector"
    cp -a "$arm64/pgvector-stage/." "$tree/"
    rm -rf "$arm64/pgvector" "$arm64/pgvector-stage"
}

# --- the tests -------------------------------------------------------------------------------------------------

# in_root COMMAND…: runs it in the root, with the checkout at its usual path and the socket's directory. Processes it starts end with it.
in_root() {
    # shellcheck disable=SC2016
    unshare --mount --pid --fork --kill-child bash -euc '
        tree=$1 checkout=$2 socket=$3
        shift 3
        mount -t proc proc "$tree/proc"
        mkdir -p "$tree/dev/shm"
        mount -t tmpfs -o mode=1777 tmpfs "$tree/dev/shm"
        mount -t tmpfs -o mode=1777 tmpfs "$tree/tmp"
        mkdir -p "$tree$checkout" "$tree$socket"
        mount --bind "$checkout" "$tree$checkout"
        mount --bind "$socket" "$tree$socket"
        exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 HOME=/root chroot "$tree" "$@"' - "$tree" "$root" "$socket" "$@"
}

unit_tests() {
    printf '\n== unit tests of arm64, by qemu ==\n'
    # shellcheck disable=SC2016
    in_root bash -euc '
        export ORT_DYLIB_PATH=$1/clip_search/libonnxruntime.so
        failed=
        while IFS="$(printf "\t")" read -r folder program; do
            printf "%s\n" "${program##*/}"
            # Their limits are meant for a real processor, and qemu takes about fifty times as long.
            (cd "$folder" && "$program" --quiet --skip pulses_come_often --skip interrupts_are_looked_for_all_the_time) ||
                failed=yes
        done <"$2"
        [ -z "$failed" ]' - "$pg_lib" "$arm64/tests"
}

serve() {
    # shellcheck disable=SC2016
    in_root bash -euc '
        rm -rf /var/lib/postgresql/arm64
        runuser -u postgres -- "$1/initdb" -D /var/lib/postgresql/arm64 -U postgres -A trust -E UTF8 --locale=C.UTF-8 --no-sync
        # Not every qemu emulates just-in-time compilation correctly, and the test does not need it.
        exec runuser -u postgres -- "$1/postgres" -D /var/lib/postgresql/arm64 -c listen_addresses= -c unix_socket_directories="$2" \
            -c shared_preload_libraries=clip_search -c fsync=off -c jit=off -c "log_line_prefix=%m [%p] "' - "$pg_bin" "$socket" \
        >"$logs/arm64-server.log" 2>&1 </dev/null
}

finish() {
    # The child is unshare: when it ends, the namespace ends too.
    [ -z "${server:-}" ] || pkill -P "$server" || true
    [ -z "${socket:-}" ] || rm -rf "$socket"
}

test_arm64() {
    local failed=
    cd "$root"
    [ "$(id -u)" -eq 0 ] || die "the test makes a root of another architecture: run make as root"
    command -v debootstrap >/dev/null || apt_install debootstrap
    cross_setup
    emulation
    [ -d "$tree" ] || step arm64-root "making a root of arm64 by debootstrap and qemu (minutes, once)" make_root
    if [ ! -e "$tree$pg_share/extension/vector.control" ]; then
        debian_source pgvector "$pg_major"
        step arm64-pgvector "building pgvector for arm64" build_pgvector
    fi
    step arm64-tests "building the unit tests for arm64 (minutes the first time)" build_tests
    cross_stage "$tree"
    python_packages

    # A directory that the host and the root share, with a short path, as sockets need.
    socket=$(mktemp -d /tmp/clip_search-arm64.XXXXXX)
    chmod 1777 "$socket"
    trap finish EXIT
    unit_tests || failed+=" unit tests"
    vectors=$arm64/vectors.csv
    rm -f "$vectors"*
    step arm64-clip-embed "embedding the gallery by clip-embed for arm64" in_root clip-embed "$root/examples/gallery/photos" -o "$vectors" \
        --onnxruntime "$pg_lib/clip_search/libonnxruntime.so" --model-path "$pg_share/clip_search/models"
    serve &
    server=$!
    eval "$("$root/scripts/cluster.sh" env)"
    printf '\n== a server of arm64, beside one of %s ==\n' "$(uname -m)"
    ARM64=$socket ARM64_VECTORS=$vectors PYTHONDONTWRITEBYTECODE=1 "$target/venv/bin/python" -m pytest \
        -o cache_dir="$target/pytest.arm64" -rs --confcutdir=tests/arm64 --timeout=600 tests/arm64 || failed+=" server"
    [ -z "$failed" ] || die "failed on arm64:$failed (the server's log: $logs/arm64-server.log)"
}

case ${1:-} in
check)
    cross_tools
    cross_cargo clippy --all-targets -- -D warnings
    ;;
test) test_arm64 ;;
*) die "usage: arm64.sh check|test" ;;
esac

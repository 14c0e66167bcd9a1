# shellcheck shell=bash disable=SC2034,SC2154,SC2164
# Cross-builds for arm64 from another architecture, on Debian and Ubuntu. Sourced after common.sh, sources.sh, onnxruntime.sh with
# ort_machine=aarch64, and require_pg. Everything is in target/arm64.
rust_target=aarch64-unknown-linux-gnu
arm64=$target/arm64
# A separate folder, in which cargo compiles build scripts and macros again: those built with another profile count as changed.
arm64_build=$arm64/cargo
arm64_release=$arm64_build/$rust_target/release
# The server's headers for arm64, whose pg_config.h differs from this machine's.
arm64_headers=$arm64/headers/usr/include/postgresql/$pg_major/server
# The packages' Depends are computed from these.
arm64_libraries=(libc6 libgcc-s1 libstdc++6)

# cross_tools: installs the target's standard library, and a C compiler for libjpeg-turbo, Oniguruma and pgrx's shim.
cross_tools() {
    local missing=() program
    if ! [ -d "$(rustc --print sysroot)/lib/rustlib/$rust_target/lib" ]; then
        command -v rustup >/dev/null ||
            die "this Rust has no standard library for $rust_target, and rustup, which adds it, is not here: install libstd-rust-dev:arm64"
        step rust-target "adding $rust_target (rustup)" rustup target add "$rust_target"
    fi
    for program in gcc g++; do
        command -v "aarch64-linux-gnu-$program" >/dev/null || missing+=("$program-aarch64-linux-gnu")
    done
    [ ${#missing[@]} -eq 0 ] || apt_install "${missing[@]}"
}

# apt for arm64 with its own lists and cache, from this machine's sources; the machine's own architectures stay unchanged.
arm64_apt() {
    (cd "$arm64/apt" && apt-get -q -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o Dir::State::Lists="$arm64/apt/lists" \
        -o Dir::Cache="$arm64/apt/cache" -o Dir::State::status=/dev/null -o APT::Sandbox::User="$(id -un)" "$@")
}
fetch_headers() {
    local library
    rm -rf "$arm64/apt" "$arm64/headers" "$arm64/libraries"
    mkdir -p "$arm64/apt/lists/partial" "$arm64/apt/cache/archives/partial" "$arm64/headers" "$arm64/libraries"
    arm64_apt update
    arm64_apt download "postgresql-server-dev-$pg_major" "${arm64_libraries[@]}"
    # Including their lists of symbols.
    for library in "${arm64_libraries[@]}"; do dpkg-deb -R "$arm64/apt/$library"_*.deb "$arm64/libraries/$library"; done
    dpkg-deb -x "$arm64/apt/postgresql-server-dev-$pg_major"_*.deb "$arm64/headers"
    rm -rf "$arm64/apt"
}

# cross_setup: prepares what the functions below need.
cross_setup() {
    cross_tools
    [ -e "$arm64_headers/postgres.h" ] && [ -d "$arm64/libraries" ] ||
        step arm64-headers "downloading PostgreSQL $pg_major's headers for arm64 (apt)" fetch_headers
}

# cross_cargo ARGUMENT…: runs cargo in a subshell, because this machine's builds must not see its settings.
cross_cargo() (
    cargo_setup
    export CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc CXX_aarch64_unknown_linux_gnu=aarch64-linux-gnu-g++
    export AR_aarch64_unknown_linux_gnu=aarch64-linux-gnu-ar CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
    export CARGO_TARGET_DIR=$arm64_build
    # Without the headers for arm64, bindings are made from this machine's headers, which is enough for a check.
    [ ! -d "$arm64_headers" ] || export "PGRX_INCLUDEDIR_SERVER_PG$pg_major=$arm64_headers"
    cd "$root"
    cargo "$1" --locked "${workspace[@]}" --target "$rust_target" "${@:2}"
)

# cross_pgvector SOURCE: compiles pgvector's source, and installs it below SOURCE-stage.
cross_pgvector() {
    local make=(make -C "$1" OPTFLAGS="" with_llvm=no PG_CONFIG="$pg_config" CC=aarch64-linux-gnu-gcc
        includedir_server="$arm64_headers")
    "${make[@]}"
    "${make[@]}" DESTDIR="$1-stage" install
}

# cross_stage DIRECTORY: installs the extension for arm64 below DIRECTORY, with clip-embed in usr/bin. The SQL is this machine's, since
# cargo-pgrx reads it from a library of its own architecture.
cross_stage() {
    local to=$1 native=$target/stage/pg$pg_major
    env -u DESTDIR PG_CONFIG="$pg_config" "$root/scripts/build.sh"
    step arm64-build "building clip_search for arm64 (minutes the first time)" cross_cargo build --release
    rm -f "$to$pg_share"/extension/clip_search*
    mkdir -p "$to$pg_share/extension" "$to$pg_share/clip_search/models"
    cp "$native$pg_share"/extension/clip_search* "$to$pg_share/extension/"
    install -D -m 755 "$arm64_release/libclip_search.so" "$to$pg_lib/clip_search.so"
    install -D -m 755 "$arm64_release/clip-embed" "$to/usr/bin/clip-embed"
    cp -R "$root/models/photo-mini" "$to$pg_share/clip_search/models/"
    destdir=$to install_onnxruntime
}

# emulation: makes the kernel run arm64 programs with qemu. The interpreter is opened now (flag F), so that a root needs none of its own.
emulation() {
    local binfmt=/proc/sys/fs/binfmt_misc
    command -v qemu-aarch64-static >/dev/null || apt_install qemu-user-static
    [ -e "$binfmt/register" ] || as_root "programs of arm64" mount -t binfmt_misc binfmt_misc "$binfmt"
    [ -e "$binfmt/qemu-aarch64" ] ||
        as_root "programs of arm64" sh -c "cat /usr/lib/binfmt.d/qemu-aarch64.conf >$binfmt/register" ||
        die "the kernel takes no programs of arm64: see $binfmt, and the package qemu-user-static"
}

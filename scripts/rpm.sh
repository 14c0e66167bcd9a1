#!/usr/bin/env bash
# Builds RPMs in target/rpm, for the PostgreSQL of PG_CONFIG, from an installation staged by DESTDIR: packaging/clip_search.spec. They
# require packages of PostgreSQL's own archive, postgresqlNN-server and pgvector_NN.
# shellcheck source=scripts/lib/common.sh
source "$(dirname "$0")/lib/common.sh"
require_pg
# The packaged clip-embed reads https:// and s3:// paths.
export REMOTE=${REMOTE:-1}

out=$target/rpm
version=$(own_version)

build_rpms() {
    install -D -m 755 "$target/release/clip-embed" "$out/stage/usr/bin/clip-embed"
    strip --strip-unneeded "$out/stage$pg_lib/clip_search.so" "$out/stage/usr/bin/clip-embed"
    "$python" "$root/packaging/licences.py" "$root" >"$out/crates.txt"
    "$python" "$root/packaging/licences.py" "$root" clip-embed >"$out/crates-clip-embed.txt"
    rpmbuild -bb --define "_topdir $out/build" --define "_rpmdir $out" --define "use_source_date_epoch_as_buildtime 1" \
        --define "checkout $root" --define "stage $out/stage" --define "texts $out" --define "pgmajor $pg_major" \
        --define "pglib $pg_lib" --define "pgshare $pg_share" --define "clip_version $version" "$root/packaging/clip_search.spec"
}

command -v rpmbuild >/dev/null || apt_install rpm
ensure_python
rm -rf "$out"
mkdir -p "$out"
say "staging an installation in ${out#"$root/"}/stage"
DESTDIR=$out/stage PG_CONFIG=$pg_config "$root/scripts/deps.sh"
DESTDIR=$out/stage PG_CONFIG=$pg_config "$root/scripts/build.sh" install
# Set only now, as in deb.sh.
SOURCE_DATE_EPOCH=$(git -C "$root" log -1 --format=%ct 2>/dev/null || stat -c %Y "$root/Cargo.toml")
export SOURCE_DATE_EPOCH
step rpm "building the RPMs" build_rpms
find "$out" -mindepth 1 -maxdepth 1 ! -name "$(uname -m)" -exec rm -rf {} +
ls -l "$out"/*

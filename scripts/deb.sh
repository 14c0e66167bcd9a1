#!/usr/bin/env bash
# Builds Debian packages in target/deb, for the PostgreSQL of PG_CONFIG, from an installation staged by DESTDIR.
#   deb.sh         builds them
#   deb.sh test    also checks them with lintian, installs them on a clean root and uses them there (needs root and debootstrap)
# ARCH=arm64 builds them for arm64 on another architecture; the clean root then runs under qemu.
# It uses plain dpkg-deb: cargo fetches crates during the build, which debhelper's rules forbid, and the staged tree is
# what `make install` installs everywhere else.
#   postgresql-NN-clip-search   the extension for one major version
#   clip-search-onnxruntime     ONNX Runtime, for all of them
#   clip-search-photo-mini      the default model, for all of them
#   clip-search-tools           clip-embed, which embeds files outside the server
#   postgresql-NN-pgvector      only where apt has none, as on Debian 12: the extension can't be created without it
# shellcheck source=scripts/lib/common.sh
source "$(dirname "$0")/lib/common.sh"
# shellcheck source=scripts/lib/sources.sh
source "$root/scripts/lib/sources.sh"
require_pg
# The packaged clip-embed reads https:// and s3:// paths.
export REMOTE=${REMOTE:-1}

out=$target/deb
native=$(dpkg --print-architecture 2>/dev/null) || die "there is no dpkg here: packages are made on Debian or Ubuntu"
architecture=${ARCH:-$native} cross=
# The directory of the built programs, the program that strips them, and cargo's target.
programs=$target/release strip=strip cargo_target=
if [ "$architecture" != "$native" ]; then
    [ "$architecture" = arm64 ] || die "ARCH=$architecture: packages are made for $native, and by cross-compilation for arm64"
    cross=yes ort_machine=aarch64
fi
# shellcheck source=scripts/lib/onnxruntime.sh
source "$root/scripts/lib/onnxruntime.sh"
if [ -n "$cross" ]; then
    # shellcheck source=scripts/lib/arm64.sh
    source "$root/scripts/lib/arm64.sh"
    programs=$arm64_release strip=aarch64-linux-gnu-strip cargo_target=$rust_target
fi
# As in PostgreSQL's own archive, the revision names the release for which a package is built, so that an upgrade of the system also
# installs the newer build of the same version.
release=$(os_release ID)$(os_release VERSION_ID)
release=${release/#debian/deb}
version=$(own_version)-1.$release+1
maintainer=${DEB_MAINTAINER:-clip_search <clip-search@localhost>}
# The directories of Debian's servers, whatever PG_CONFIG says.
deb_lib=usr/lib/postgresql/$pg_major/lib
deb_share=usr/share/postgresql/$pg_major
# Outside of them, because no single major version owns these files.
runtime=usr/lib/clip-search
models=usr/share/clip-search/models
# Dates in the packages are the last commit's, so that the same sources give identical packages.
SOURCE_DATE_EPOCH=$(git -C "$root" log -1 --format=%ct 2>/dev/null || stat -c %Y "$root/Cargo.toml")

[[ $pg_lib == */$deb_lib && $pg_share == */$deb_share ]] ||
    die "$pg_config is not of a Debian package (its libraries are in $pg_lib): set PG_CONFIG to /usr/lib/postgresql/NN/bin/pg_config"
! "$pg_config" --configure | grep -q -- --enable-cassert ||
    die "$pg_config has assertions, and what is built for it does not load elsewhere: set PG_CONFIG to another"

# --- parts -----------------------------------------------------------------------------------------------------

staged() {
    rm -rf "$out"
    mkdir -p "$out/stage"
    if [ -n "$cross" ]; then
        DESTDIR='' PG_CONFIG=$pg_config "$root/scripts/deps.sh" build
        cross_setup
        cross_stage "$out/stage"
        return 0
    fi
    DESTDIR=$out/stage PG_CONFIG=$pg_config "$root/scripts/deps.sh"
    DESTDIR=$out/stage PG_CONFIG=$pg_config "$root/scripts/build.sh" install
}

# put FILE PACKAGE PATH [MODE]
put() { install -D -m "${4:-644}" "$1" "$out/$2/$3"; }

# shared_libraries FILE…: the Depends for the libraries to which the files are linked.
shared_libraries() {
    local library search=()
    mkdir -p "$out/shlibs/debian"
    printf 'Source: clip-search\n\nPackage: clip-search\nArchitecture: any\n' >"$out/shlibs/debian/control"
    # -S treats these unpacked packages like part of this build: the machine has none of that architecture installed.
    if [ -n "$cross" ]; then for library in "${arm64_libraries[@]}"; do search+=("-S$arm64/libraries/$library"); done; fi
    (cd "$out/shlibs" && DEB_HOST_ARCH=$architecture dpkg-shlibdeps -O "${search[@]}" "$@" 2>/dev/null) | sed -n 's/^shlibs:Depends=//p'
}

# copyright PACKAGE COMMENT FILE…: writes the licences of the package's contents.
copyright() {
    local package=$1 comment=$2
    shift 2
    mkdir -p "$out/$package/usr/share/doc/$package"
    "$python" "$root/packaging/debian_copyright.py" "$comment" "$@" >"$out/$package/usr/share/doc/$package/copyright"
}

# changelog PACKAGE VERSION TEXT: writes Debian's changelog.
changelog() {
    local to=$out/$1/usr/share/doc/$1/changelog.Debian.gz
    mkdir -p "$(dirname "$to")"
    printf 'clip-search (%s) unstable; urgency=medium\n\n  * %s\n\n -- %s  %s\n' "$2" "$3" "$maintainer" \
        "$(date -uRd "@$SOURCE_DATE_EPOCH")" | gzip -9n >"$to"
}

# override PACKAGE TAG…: intended deviations that lintian would report.
override() {
    local package=$1 tag
    shift
    mkdir -p "$out/$package/usr/share/lintian/overrides"
    for tag in "$@"; do printf '%s: %s\n' "$package" "$tag"; done >"$out/$package/usr/share/lintian/overrides/$package"
}

# package NAME VERSION ARCHITECTURE SECTION: builds it; reads control fields from standard input.
package() {
    local name=$1 tree=$out/$1
    if [ "$name" = "postgresql-$pg_major-clip-search" ]; then
        mkdir -p "$tree/usr/share/doc/$name"
        gzip -9n <"$root/CHANGELOG.md" >"$tree/usr/share/doc/$name/changelog.gz"
        put "$root/README.md" "$name" "usr/share/doc/$name/README.md"
    fi
    mkdir -p "$tree/DEBIAN"
    (cd "$tree" && find usr -type f -print0 | sort -z | xargs -0 md5sum) >"$tree/DEBIAN/md5sums"
    {
        printf 'Package: %s\nVersion: %s\nArchitecture: %s\nSection: %s\nPriority: optional\n' "$name" "$2" "$3" "$4"
        printf 'Maintainer: %s\nInstalled-Size: %s\n' "$maintainer" "$(du -sk --apparent-size "$tree/usr" | cut -f1)"
        cat
    } >"$tree/DEBIAN/control"
    chmod -R u=rwX,go=rX "$tree"
    find "$tree" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
    dpkg-deb --root-owner-group -Zxz --build "$tree" "$out/${name}_$2_$3.deb"
}

# The pinned libjpeg-turbo is built in, because embeddings depend on its pixels to the bit, and Debian has another version.
LIBJPEG='embedded-library libjpeg *'

extension_package() {
    local name=postgresql-$pg_major-clip-search file
    put "$out/stage$pg_lib/clip_search.so" "$name" "$deb_lib/clip_search.so"
    "$strip" --strip-unneeded "$out/$name/$deb_lib/clip_search.so"
    for file in "$out/stage$pg_share/extension/"clip_search*; do put "$file" "$name" "$deb_share/extension/$(basename "$file")"; done
    mkdir -p "$out/$name/$deb_lib/clip_search" "$out/$name/$deb_share/clip_search"
    ln -sr "$out/$name/$runtime/libonnxruntime.so" "$out/$name/$deb_lib/clip_search/libonnxruntime.so"
    ln -sr "$out/$name/$models" "$out/$name/$deb_share/clip_search/models"
    "$python" "$root/packaging/licences.py" "$root" clip_search "$cargo_target" >"$out/crates.txt"
    copyright "$name" "clip_search, and the libraries that are built into it." "$root/LICENSE" "$root/models/words/LICENSE" "$out/crates.txt"
    override "$name" "$LIBJPEG"
    changelog "$name" "$version" "Version ${version%%-*}; changelog.gz lists the changes."
    package "$name" "$version" "$architecture" database <<CONTROL
Depends: postgresql-$pg_major, postgresql-$pg_major-pgvector (>= 0.8~), clip-search-onnxruntime (>= 1.17), $(shared_libraries "$out/$name/$deb_lib/clip_search.so")
Recommends: clip-search-photo-mini
Description: CLIP embeddings of images and texts inside PostgreSQL $pg_major
 Finds photos by words, by example and in groups of look-alikes, in plain SQL
 with pgvector, on the CPU. CREATE EXTENSION clip_search CASCADE makes it
 available in a database.
CONTROL
}

runtime_package() {
    local name=clip-search-onnxruntime wheel
    put "$out/stage$pg_lib/clip_search/libonnxruntime.so" "$name" "$runtime/libonnxruntime.so"
    wheel=$(find "$target/onnxruntime/$ort_version-$ort_platform" -name '*.whl' -print -quit)
    [ -n "$wheel" ] || die "the wheel that ONNX Runtime came in is gone: rm -r $target/onnxruntime, then try again"
    "$python" -m zipfile -e "$wheel" "$out/wheel"
    copyright "$name" "ONNX Runtime $ort_version, the library of the wheel onnxruntime, and what is built into it." \
        "$out/wheel/onnxruntime/LICENSE" "$out/wheel/onnxruntime/ThirdPartyNotices.txt"
    changelog "$name" "$ort_version-1.$release+1" "ONNX Runtime $ort_version."
    package "$name" "$ort_version-1.$release+1" "$architecture" libs <<CONTROL
Depends: $(shared_libraries "$out/$name/$runtime/libonnxruntime.so")
Description: ONNX Runtime, as clip_search for PostgreSQL uses it
 The library alone, in a directory of its own, where no other program finds it.
CONTROL
}

model_package() {
    local name=clip-search-photo-mini
    mkdir -p "$out/$name/$models"
    cp -R "$out/stage$pg_share/clip_search/models/photo-mini" "$out/$name/$models/"
    copyright "$name" "photo-mini, and the models and data it is made from." "$root/models/photo-mini/LICENSE"
    put "$root/models/photo-mini/README.md" "$name" "usr/share/doc/$name/README.md"
    changelog "$name" "$version" "The model of clip_search ${version%%-*}."
    package "$name" "$version" all database <<CONTROL
Description: small image and text model for clip_search
 The model that clip_search uses where no other is named: 34 MB, at once and
 offline. It is not CLIP.
CONTROL
}

tools_package() {
    local name=clip-search-tools
    put "$programs/clip-embed" "$name" usr/bin/clip-embed 755
    "$strip" --strip-unneeded "$out/$name/usr/bin/clip-embed"
    mkdir -p "$out/$name/usr/share/man/man1"
    help2man --no-info --name="embed image files for clip_search outside the server" "$target/release/clip-embed" |
        gzip -9n >"$out/$name/usr/share/man/man1/clip-embed.1.gz"
    override "$name" "$LIBJPEG"
    changelog "$name" "$version" "Version ${version%%-*}."
    "$python" "$root/packaging/licences.py" "$root" clip-embed "$cargo_target" >"$out/crates.txt"
    copyright "$name" "clip-embed, and the libraries that are built into it." "$root/LICENSE" "$out/crates.txt"
    package "$name" "$version" "$architecture" database <<CONTROL
Depends: clip-search-onnxruntime (>= 1.17), $(shared_libraries "$out/$name/usr/bin/clip-embed")
Recommends: clip-search-photo-mini, ca-certificates
Description: embeds image files for clip_search outside the server
 clip-embed makes the vectors of clip_embed_image on any machine, from a
 directory or a list of files, and writes what COPY reads.
CONTROL
}

pgvector_source() { debian_source pgvector "$pg_major"; }
build_pgvector() {
    rm -rf "$out/pgvector"
    mkdir -p "$out/pgvector"
    tar -xf "$source_archive" -C "$out/pgvector" --strip-components=1
    if [ -n "$cross" ]; then
        cross_pgvector "$out/pgvector"
        return 0
    fi
    # As in deps.sh: for any CPU of the architecture, and without bitcode.
    make -C "$out/pgvector" OPTFLAGS="" with_llvm=no PG_CONFIG="$pg_config"
    make -C "$out/pgvector" OPTFLAGS="" with_llvm=no PG_CONFIG="$pg_config" DESTDIR="$out/pgvector-stage" install
}
pgvector_package() {
    local name=postgresql-$pg_major-pgvector has=$1 file
    put "$out/pgvector-stage$pg_lib/vector.so" "$name" "$deb_lib/vector.so"
    "$strip" --strip-unneeded "$out/$name/$deb_lib/vector.so"
    for file in "$out/pgvector-stage$pg_share/extension/"vector*; do put "$file" "$name" "$deb_share/extension/$(basename "$file")"; done
    copyright "$name" "pgvector $has" "$out/pgvector/LICENSE"
    changelog "$name" "$has-0clip1" "pgvector $has, built for PostgreSQL $pg_major."
    # With a revision below 1, any archive's package of this pgvector version replaces this one.
    package "$name" "$has-0clip1" "$architecture" database <<CONTROL
Depends: postgresql-$pg_major, $(shared_libraries "$out/$name/$deb_lib/vector.so")
Description: vectors and their indexes in PostgreSQL $pg_major (pgvector)
 Built from Debian's source of pgvector, for releases that have it for other
 versions of PostgreSQL only.
CONTROL
}

make_packages() {
    local has
    command -v dpkg-shlibdeps >/dev/null || apt_install dpkg-dev
    command -v help2man >/dev/null || apt_install help2man
    ensure_python
    say "staging an installation in ${out#"$root/"}/stage"
    staged
    # Set only now: build scripts of C libraries would see a change, and cargo would compile half of the crates again for each commit.
    export SOURCE_DATE_EPOCH
    if ! apt-cache show "postgresql-$pg_major-pgvector" >/dev/null 2>&1; then
        pgvector_source
        has=$(basename "$source_archive" | sed -E 's/^pgvector_(.*)\.orig.*/\1/')
        step deb-pgvector "building pgvector $has" build_pgvector
        step deb-pgvector-package "packing postgresql-$pg_major-pgvector" pgvector_package "$has"
    fi
    step deb-extension "packing postgresql-$pg_major-clip-search" extension_package
    step deb-runtime "packing clip-search-onnxruntime" runtime_package
    step deb-tools "packing clip-search-tools" tools_package
    step deb-model "packing clip-search-photo-mini" model_package
    find "$out" -mindepth 1 -maxdepth 1 ! -name '*.deb' -exec rm -rf {} +
    ls -l "$out"
}

case ${1:-} in
'') make_packages ;;
test)
    # Checked first, because building the packages takes minutes.
    command -v debootstrap >/dev/null || apt_install debootstrap
    command -v lintian >/dev/null || apt_install lintian
    make_packages
    # The project has no address of its own yet, so the maintainer above is a placeholder unless DEB_MAINTAINER is set.
    tags=()
    [ -n "${DEB_MAINTAINER:-}" ] || tags=(--suppress-tags "bogus-mail-host,bogus-mail-host-in-debian-changelog")
    step deb-lintian "checking the packages with lintian" lintian --fail-on error,warning --info "${tags[@]}" "$out"/*.deb
    [ -z "$cross" ] || emulation
    as_root "a clean root" "$root/packaging/clean-root.sh" "$out" "$pg_major" "$(debian_mirror)" "$architecture"
    ;;
*) die "usage: deb.sh [test]" ;;
esac

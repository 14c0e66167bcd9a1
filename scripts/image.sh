#!/usr/bin/env bash
# Builds the container image of packaging/Containerfile, with docker, podman or buildah, whichever is installed.
#   image.sh        build it as clip_search:VERSION-pgMAJOR (MAJOR=15 to 18, SUITE=bookworm or trixie, ARCH=amd64 or arm64)
#   image.sh test   build it, and try it: the README's first five minutes, the worker, health, an upgrade of a volume (root, podman, runc)
# If no registry answers, debootstrap makes the base, with the PostgreSQL that apt offers here, and the packages are those of
# `make deb`.
# shellcheck source=scripts/lib/common.sh
source "$(dirname "$0")/lib/common.sh"
# shellcheck source=scripts/lib/sources.sh
source "$root/scripts/lib/sources.sh"

version=$(own_version)
suite=${SUITE:-bookworm}
engine=${ENGINE:-}

find_engine() {
    if [ -z "$engine" ]; then
        if docker info >/dev/null 2>&1; then
            engine=docker
        elif command -v podman >/dev/null; then
            engine=podman
        elif command -v buildah >/dev/null; then
            engine=buildah
        else
            die "there is no docker, podman or buildah here: install one (apt-get install podman)"
        fi
    fi
    say "by $engine"
}

# build_image TAG BUILD-ARGUMENT…
build_image() {
    local tag=$1 arguments=() argument verb=build
    shift
    # Docker's format, since OCI's has no health check.
    [ "$engine" = docker ] || arguments+=(--format docker)
    [ "$engine" != buildah ] || verb=bud
    for argument in "$@"; do arguments+=(--build-arg "$argument"); done
    [ -z "${ARCH:-}" ] || arguments+=(--platform "linux/$ARCH")
    "$engine" "$verb" "${arguments[@]}" -f "$root/packaging/Containerfile" -t "$tag" "$root"
}

registry_answers() {
    case $engine in
    buildah) buildah pull -q "$1" ;;
    *) "$engine" pull -q "$1" ;;
    esac >/dev/null 2>&1
}

# Makes an image of a root file system with PostgreSQL and an entrypoint that accepts the official image's variables.
make_base() {
    local name=$1 base
    base=$(mktemp -d "${TMPDIR:-/tmp}/clip_search-base.XXXXXX")
    chmod 755 "$base"
    debootstrap --variant=minbase "$(os_release VERSION_CODENAME)" "$base" "$(debian_mirror)"
    # The user and the directories of the official image.
    chroot "$base" groupadd -r postgres --gid=999
    chroot "$base" useradd -r -g postgres --uid=999 --home-dir=/var/lib/postgresql --shell=/bin/bash postgres
    mkdir -p "$base/etc/postgresql-common" "$base/docker-entrypoint-initdb.d"
    echo 'create_main_cluster = false' >"$base/etc/postgresql-common/createcluster.conf"
    printf '#!/bin/sh\nexit 101\n' >"$base/usr/sbin/policy-rc.d"
    chmod 755 "$base/usr/sbin/policy-rc.d"
    # TMPDIR and similar directories of this session don't exist there.
    env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive chroot "$base" apt-get install -y -q --no-install-recommends "postgresql-$image_major"
    install -m 755 "$root/packaging/image/entrypoint.sh" "$base/usr/local/bin/docker-entrypoint.sh"
    # Not through /var/run, a link that leads out of the root.
    install -d -o 999 -g 999 -m 3777 "$base/run/postgresql"
    install -d -o 999 -g 999 -m 1777 "$base/var/lib/postgresql/data"
    tar -C "$base" -c . | podman import -c "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/lib/postgresql/$image_major/bin" \
        -c ENV=PGDATA=/var/lib/postgresql/data -c VOLUME=/var/lib/postgresql/data -c STOPSIGNAL=SIGINT \
        -c 'ENTRYPOINT ["docker-entrypoint.sh"]' -c 'CMD ["postgres"]' - "$name"
    rm -rf --one-file-system "$base"
}

build() {
    local base revision
    find_engine
    revision=$(git -C "$root" rev-parse HEAD 2>/dev/null || true)
    image_major=${MAJOR:-17}
    if registry_answers "docker.io/library/postgres:$image_major-$suite"; then
        tag=clip_search:$version-pg$image_major
        step image "building $tag (minutes the first time)" build_image "$tag" "MAJOR=$image_major" "SUITE=$suite" "VERSION=$version" "REVISION=$revision"
    else
        [ "$engine" != docker ] && [ "$(id -u)" -eq 0 ] ||
            die "no registry answers for postgres:$image_major-$suite, and a base of one's own takes root, podman and debootstrap"
        require_pg
        image_major=$pg_major
        tag=clip_search:$version-pg$image_major
        base=localhost/clip_search-base:pg$image_major
        # Without namespaces of its own, such as a network namespace, which a nested container may not create.
        export BUILDAH_ISOLATION=chroot
        say "no registry answers: the base is made here, with PostgreSQL $image_major"
        command -v debootstrap >/dev/null || apt_install debootstrap
        if ! podman image exists "$base"; then step image-base "making a base by debootstrap" make_base "$base"; fi
        [ -n "${KEEP_PACKAGES:-}" ] || "$root/scripts/deb.sh"
        step image "building $tag" build_image "$tag" "MAJOR=$image_major" "BASE=$base" PACKAGES=local "VERSION=$version" "REVISION=$revision"
    fi
    say "built: $tag"
}

case ${1:-} in
'') build ;;
test)
    command -v podman >/dev/null || apt_install podman runc
    engine=podman
    build
    python_packages
    cd "$root"
    # The previous version's packages consist of its library and its SQL, built by scripts/releases.sh.
    PG_CONFIG=${pg_config:-} "$root/scripts/releases.sh"
    IMAGE=$tag MAJOR=$image_major PYTHONDONTWRITEBYTECODE=1 exec "$target/venv/bin/python" -m pytest -o cache_dir="$target/pytest" -rs \
        --confcutdir=tests/image tests/image
    ;;
*) die "usage: image.sh [test]" ;;
esac

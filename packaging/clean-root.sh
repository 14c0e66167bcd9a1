#!/usr/bin/env bash
# Installs the packages on a minimal Debian, uses them there, and removes them again.
#   clean-root.sh PACKAGES MAJOR MIRROR ARCHITECTURE    as root; needs debootstrap, and for another architecture than this one's, qemu
set -euo pipefail
packages=$1 major=$2 mirror=$3 architecture=$4
here=$(cd "$(dirname "$0")/.." && pwd -P)
root=$(mktemp -d "${TMPDIR:-/tmp}/clip_search-root.XXXXXX")
# The root directory must be / for unprivileged users too.
chmod 755 "$root"
trap 'rm -rf --one-file-system "$root"' EXIT
# shellcheck disable=SC1091
suite=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")

fail() {
    echo "clip_search: $*" >&2
    exit 1
}
command -v debootstrap >/dev/null || fail "no debootstrap: apt-get install debootstrap"
[ -n "$mirror" ] && [ -n "$suite" ] || fail "which Debian this is, or its mirror, can't be told from /etc/os-release and apt"
echo "· making a root of $suite in $root…" >&2
debootstrap --arch="$architecture" --variant=minbase "$suite" "$root" "$mirror" >"$packages/debootstrap.log" 2>&1 ||
    fail "debootstrap failed: see $packages/debootstrap.log"
mkdir "$root/packages"
cp "$packages"/*.deb "$here/examples/gallery/photos/cat.jpg" "$root/packages/"
chmod -R a+rX "$root/packages"
# As in a container, packages start no services.
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
chmod 755 "$root/usr/sbin/policy-rc.d"
cat >"$root/packages/test.sh" <<'TEST'
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
apt-get update -q
apt-get install -y -q --no-install-recommends /packages/*.deb
dpkg --audit
dpkg --verify
pg_ctlcluster "$MAJOR" main start
psql=(runuser -u postgres -- psql -X -A -t -q -v ON_ERROR_STOP=1 -d clip)
runuser -u postgres -- createdb clip
"${psql[@]}" <<'SQL'
CREATE EXTENSION clip_search CASCADE;
CREATE TABLE photo (data bytea, embedding vector(512), cluster_id bigint);
\set photo `base64 -w0 /packages/cat.jpg`
INSERT INTO photo SELECT f.data, clip_embed_image(f.data), clip_assign_cluster(clip_embed_image(f.data)) FROM (SELECT decode(:'photo', 'base64')) AS f (data);
SELECT clip_version();
SELECT label FROM photo, clip_classify(embedding, ARRAY['wall clock', 'sleepy striped house cat', 'rocket']) ORDER BY probability DESC LIMIT 1 \gset
SELECT CASE WHEN :'label' = 'sleepy striped house cat' THEN 'the cat is found' ELSE (1 / 0)::text END;
SQL
echo "shared_preload_libraries = 'clip_search'
clip_search.preload = 'photo-mini'" >>"/etc/postgresql/$MAJOR/main/postgresql.conf"
pg_ctlcluster "$MAJOR" main restart
grep 'clip_search: preloaded photo-mini' "/var/log/postgresql/postgresql-$MAJOR-main.log"
[ "$("${psql[@]}" -c "SELECT vector_dims(clip_embed_text('a cat'))")" = 512 ]
# No package contains pg_config, so these are the packages' own directories.
! command -v pg_config
clip-embed /packages -o /tmp/vectors.csv
same=$("${psql[@]}" -c "CREATE TABLE made (key text, embedding vector(512))" -c "\\copy made FROM '/tmp/vectors.csv' (FORMAT csv, HEADER)" \
    -c "SELECT m.key, round((1 - (m.embedding <=> p.embedding))::numeric, 9) FROM made m, photo p")
[ "$same" = 'cat.jpg|1.000000000' ]
pg_ctlcluster "$MAJOR" main stop
# The packages leave nothing behind.
apt-get purge -y -q '*clip-search*' "postgresql-$MAJOR-pgvector"
[ ! -e /usr/bin/clip-embed ] && [ ! -e /usr/lib/clip-search ] && [ ! -e /usr/share/clip-search ] && [ ! -e "/usr/lib/postgresql/$MAJOR/lib/clip_search" ]
echo "installed, used and removed"
TEST
# A server needs /proc and /dev/shm. They end with the namespace, and processes still running in it are killed.
log=$packages/clean-root.log
# shellcheck disable=SC2016
if ! unshare --mount --pid --fork --kill-child sh -euc '
    mount -t proc proc "$1/proc"
    mkdir -p "$1/dev/shm"
    mount -t tmpfs -o mode=1777 tmpfs "$1/dev/shm"
    exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin MAJOR="$2" chroot "$1" bash /packages/test.sh' - "$root" "$major" >"$log" 2>&1 </dev/null; then
    tail -n 30 "$log" | sed 's/^/  | /' >&2
    fail "the packages failed on a clean root: the whole log is $log"
fi
tail -n 1 "$log"

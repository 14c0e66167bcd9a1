#!/usr/bin/env bash
# shellcheck disable=SC1091,SC2154
# How well a model finds, in the cluster of `make cluster`: a table to stdout, a plot to target/eval.
#   MODEL=name    the model: a name, or a directory that the server can read (default: photo-mini)
#   STAMPS=dir    usr/share/tuxpaint/stamps of Debian's package tuxpaint-stamps-default (default: fetched by apt, 161 MB)
source "$(dirname "$0")/common.sh"
require_pg
eval "$("$root/scripts/cluster.sh" env)"
cd "$root"

package=tuxpaint-stamps-default
fetch_stamps() {
    mkdir -p "$target/eval/package"
    # In two steps: an apt-get without lists fails, and one with lists needs no root.
    (cd "$target/eval/package" && { apt-get download "$package" || { apt_update && apt-get download "$package"; }; })
    dpkg-deb -x "$target"/eval/package/"$package"_*.deb "$target/eval/package/unpacked"
    rm "$target"/eval/package/"$package"_*.deb
}

stamps=${STAMPS:-}
for place in /usr/share "$target/eval/package/unpacked/usr/share"; do
    [ -n "$stamps" ] || [ ! -d "$place/tuxpaint/stamps/animals" ] || stamps=$place/tuxpaint/stamps
done
if [ -z "$stamps" ]; then
    command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null ||
        die "no apt-get to fetch the pictures with: unpack Debian's $package, and set STAMPS to its usr/share/tuxpaint/stamps"
    step eval-stamps "fetching 310 labelled pictures (Debian's $package, 161 MB)" fetch_stamps
    stamps=$target/eval/package/unpacked/usr/share/tuxpaint/stamps
fi
python_packages
PYTHONDONTWRITEBYTECODE=1 exec "$target/venv/bin/python" benches/eval/evaluate.py \
    --stamps "$stamps" --model "${MODEL:-photo-mini}" --out "$target/eval"

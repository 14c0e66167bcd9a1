# shellcheck shell=bash disable=SC2034,SC2154,SC2164
# The labelled photographs of Debian's tuxpaint-stamps-default (GPL-2: read from the package, never copied).
# Sourced after common.sh.
package=tuxpaint-stamps-default
fetch_stamps() {
    mkdir -p "$target/eval/package"
    # In two steps: an apt-get without lists fails, and one with lists needs no root.
    (cd "$target/eval/package" && { apt-get download "$package" || { apt_update && apt-get download "$package"; }; })
    dpkg-deb -x "$target"/eval/package/"$package"_*.deb "$target/eval/package/unpacked"
    rm "$target"/eval/package/"$package"_*.deb
}

# find_stamps: sets stamps to usr/share/tuxpaint/stamps: STAMPS, the installed ones, or fetched by apt, 161 MB, once.
find_stamps() {
    local place
    stamps=${STAMPS:-}
    for place in /usr/share "$target/eval/package/unpacked/usr/share"; do
        [ -n "$stamps" ] || [ ! -d "$place/tuxpaint/stamps/animals" ] || stamps=$place/tuxpaint/stamps
    done
    if [ -z "$stamps" ]; then
        { command -v apt-get && command -v dpkg-deb; } >/dev/null ||
            die "no apt-get to fetch the pictures with: unpack Debian's $package, and set STAMPS to its usr/share/tuxpaint/stamps"
        step eval-stamps "fetching 310 labelled pictures (Debian's $package, 161 MB)" fetch_stamps
        stamps=$target/eval/package/unpacked/usr/share/tuxpaint/stamps
    fi
}

# shellcheck shell=bash disable=SC2034,SC2154,SC2164
# Pictures in Debian's packages, read from the package and never copied: the labelled photographs of tuxpaint-stamps-default
# (GPL-2) and the photographs of gcompris-qt-data.
# Sourced after common.sh.
fetch_package() {
    mkdir -p "$target/eval/package"
    # In two steps: without package lists, apt-get fails; with lists, it needs no root.
    (cd "$target/eval/package" && { apt-get download "$1" || { apt_update && apt-get download "$1"; }; })
    dpkg-deb -x "$target"/eval/package/"$1"_*.deb "$target/eval/package/unpacked"
    rm "$target"/eval/package/"$1"_*.deb
}

# find_package GIVEN PACKAGE FOLDER MEMBER ABOUT VARIABLE: sets `found` to PACKAGE's FOLDER (below /usr/share, with MEMBER in it): GIVEN,
# the value of VARIABLE, if set; otherwise the installed package's, or one fetched once by apt.
find_package() {
    local place
    found=$1
    for place in /usr/share "$target/eval/package/unpacked/usr/share"; do
        [ -n "$found" ] || [ ! -e "$place/$3/$4" ] || found=$place/$3
    done
    if [ -z "$found" ]; then
        { command -v apt-get && command -v dpkg-deb; } >/dev/null ||
            die "no apt-get to fetch the pictures with: unpack Debian's $2, and set $6 to its usr/share/$3"
        step "eval-$2" "fetching $5" fetch_package "$2"
        found=$target/eval/package/unpacked/usr/share/$3
    fi
}

# find_stamps: sets stamps to usr/share/tuxpaint/stamps: STAMPS, the installed one, or one fetched once by apt (161 MB).
find_stamps() {
    local found
    find_package "${STAMPS:-}" tuxpaint-stamps-default tuxpaint/stamps animals \
        "310 labelled pictures (Debian's tuxpaint-stamps-default, 161 MB)" STAMPS
    stamps=$found
}

# find_gcompris: does the same for gcompris, usr/share/gcompris-qt/rcc (44 MB).
find_gcompris() {
    local found
    find_package "${GCOMPRIS:-}" gcompris-qt-data gcompris-qt/rcc categorization.rcc \
        "248 photographs (Debian's gcompris-qt-data, 44 MB)" GCOMPRIS
    gcompris=$found
}

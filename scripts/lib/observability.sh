# shellcheck shell=bash disable=SC2034,SC2154,SC2164
# Prometheus and postgres_exporter for tests/docs/test_observability.py. Sourced by test.sh.

fetch_observability() {
    local archive
    # Only unpacked: installed packages would start services.
    (cd "$1" && apt-get download -q prometheus prometheus-postgres-exporter)
    for archive in "$1"/*.deb; do dpkg-deb -x "$archive" "$1"; done
    rm "$1"/*.deb
}

# observability: exports PROMETHEUS, a folder with both programs. Without apt it stays unset, and the tests that need it are not run.
observability() {
    local to=$target/prometheus
    command -v apt-get >/dev/null || return 0
    if [ ! -x "$to/usr/bin/prometheus-postgres-exporter" ]; then
        rm -rf "$to"
        mkdir -p "$to"
        apt-cache show prometheus-postgres-exporter >/dev/null 2>&1 || apt_update
        step observability "fetching Prometheus and postgres_exporter (apt, 22 MB)" fetch_observability "$to"
    fi
    export PROMETHEUS=$to/usr/bin
}

#!/usr/bin/env bash
# Runs the SQL tests and pytest on every PostgreSQL from 15 to 18 that is installed or can be built, each with its own
# build of the extension; then pg_upgrade from each to each newer one. Prints a table; fails if anything in it fails, or
# if no pair could be upgraded.
#   PG_CONFIGS="path path …"   these servers only
#   PGVECTOR_SRC=path          pgvector from this directory or git repository, for servers that have none
#   TESTS=… K=…                as in make test
# Otherwise each major version is the one of PG_CONFIG, or Debian's packages, or built from Debian's source package in
# target/matrix, with assertions (--enable-cassert). PostgreSQL 16 comes from a Python package without contrib: the tests of
# postgres_fdw are skipped.
# shellcheck source=scripts/lib/common.sh
source "$(dirname "$0")/lib/common.sh"
# shellcheck source=scripts/lib/sources.sh
source "$root/scripts/lib/sources.sh"

place=$target/matrix
# make test only tries the update from the last released version.
export RELEASES=all
configs=() rows=() failed=

# --- servers ---------------------------------------------------------------------------------------------------

# There may be several servers of one major version.
cluster_name() { echo "matrix-$1-pg$(major_of "${configs[$1]}")"; }
add_row() { rows+=("$(printf '%s\t' "$@")"); }

find_server() {
    local major=$1 config
    for config in "${PG_CONFIG:-}" "/usr/lib/postgresql/$major/bin/pg_config" "$place/pg$major/bin/pg_config"; do
        if [ -n "$config" ] && usable "$config" && [ "$(major_of "$config")" = "$major" ]; then
            configs+=("$config")
            return 0
        fi
    done
    if [ "$major" = 16 ] && unpack_server "$place/pg16" && usable "$place/pg16/bin/pg_config"; then
        configs+=("$place/pg16/bin/pg_config")
    elif ! source_pin "postgresql-$major"; then
        add_row "$major" - - "not available: no Debian release has it; give it by PG_CONFIGS" -
    elif build_server "$major" "$place/pg$major" && usable "$place/pg$major/bin/pg_config"; then
        configs+=("$place/pg$major/bin/pg_config")
    else
        add_row "$major" - - "not available: see the message above" -
    fi
}

# --- one server ------------------------------------------------------------------------------------------------

# run_tests CONFIG: runs the stages in order and stops at the first that fails, which it names in target/log/….stage.
run_tests() {
    local stage
    for stage in "deps.sh" "build.sh install" "cluster.sh start" "test.sh sql" "test.sh python"; do
        printf '\n### %s\n' "$stage"
        echo "$stage" >"$1"
        # The SQL tests and pytest both run, even if one of them fails.
        # shellcheck disable=SC2086
        "$root/scripts/"$stage || {
            [ "$stage" = "test.sh sql" ] || return 1
            sql_failed=yes
        }
    done
    [ -z "${sql_failed:-}" ] || { echo "test.sh sql" >"$1" && return 1; }
}

# A failing test may print lines of megabytes.
show_end() { tail -n 40 "$1" | cut -c 1-160 | sed 's/^/  | /' >&2; }

test_server() {
    local config=$1 name=$2 version cassert=no log start=$SECONDS vector result
    version=$("$config" --version | sed -E 's/^PostgreSQL ([^ ]+).*/\1/')
    "$config" --configure | grep -q -- --enable-cassert && cassert=yes
    log=$logs/$name
    mkdir -p "$logs"
    say "PostgreSQL $version: building the extension, and testing (log: $log.log)"
    export PG_CONFIG=$config CLUSTER=$name
    if (run_tests "$log.stage") >"$log.log" 2>&1 </dev/null; then
        # The totals of pg_regress (TAP since 16) and pytest.
        result="passed: $(sed -nE 's/^(# | )?All ([0-9]+) tests passed.*/\2 SQL/p; s/^=+ (.*) in [0-9.]+s.*/\1/p' "$log.log" | paste -sd, | sed 's/,/, /g')"
    else
        result="FAILED: $(cat "$log.stage")"
        failed=yes
        show_end "$log.log"
    fi
    # A failed assertion crashes the backend; a test that expects a crash would not notice.
    if eval "$("$root/scripts/cluster.sh" env 2>/dev/null)" && cp "$PGHOST/server.log" "$log.server.log" 2>/dev/null &&
        grep -m 3 '^TRAP:' "$log.server.log" >&2; then
        result="FAILED: an assertion of the server, see $log.server.log"
        failed=yes
    fi
    vector=$(sed -nE "s/^default_version *= *'(.*)'/\1/p" "$("$config" --sharedir)/extension/vector.control" 2>/dev/null || true)
    add_row "$version" "$cassert" "${vector:--}" "$result" $((SECONDS - start))
}

test_upgrade() {
    local old=$1 new=$2 name=$3 start=$SECONDS log result
    log=$logs/matrix-upgrade-$(major_of "$old")-$(major_of "$new").log
    say "pg_upgrade from $(major_of "$old") to $(major_of "$new") (log: $log)"
    if PG_CONFIG=$new CLUSTER=$name OLD_PG_CONFIG=$old K='' TESTS='' \
        "$root/scripts/test.sh" upgrade >"$log" 2>&1 </dev/null; then
        if grep -q '^SKIPPED' "$log"; then
            result="not possible: $(sed -nE 's/^SKIPPED [^:]*:([0-9]+: )?//p' "$log" | head -n 1 | cut -c 1-200)"
        else
            result="passed: $(sed -nE 's/^=+ (.*) in [0-9.]+s.*/\1/p' "$log" | tail -n 1)"
            upgraded=yes
        fi
    else
        result="FAILED: see $log"
        failed=yes
        show_end "$log"
    fi
    add_row "pg_upgrade $(major_of "$old") to $(major_of "$new")" - - "$result" $((SECONDS - start))
}

remove_clusters() {
    local n
    for n in "${!configs[@]}"; do PG_CONFIG=${configs[n]} CLUSTER=$(cluster_name "$n") "$root/scripts/cluster.sh" remove; done
}

# --- the run ---------------------------------------------------------------------------------------------------

if [ -n "${PG_CONFIGS:-}" ]; then
    for config in $PG_CONFIGS; do
        usable "$config" || die "$config of PG_CONFIGS is no pg_config of a server with headers and pg_regress"
        configs+=("$config")
    done
else
    for major in 15 16 17 18; do find_server "$major"; done
fi
mapfile -t configs < <(for config in "${configs[@]}"; do echo "$(major_of "$config") $config"; done | sort -s -n -k 1,1 | cut -d ' ' -f 2-)
[ ${#configs[@]} -gt 0 ] || die "no PostgreSQL to test with: set PG_CONFIGS"
trap remove_clusters EXIT
for n in "${!configs[@]}"; do test_server "${configs[n]}" "$(cluster_name "$n")"; done
pairs='' upgraded=
for ((m = 0; m < ${#configs[@]}; m++)); do
    for ((n = m + 1; n < ${#configs[@]}; n++)); do
        [ "$(major_of "${configs[m]}")" -lt "$(major_of "${configs[n]}")" ] || continue
        pairs=yes
        test_upgrade "${configs[m]}" "${configs[n]}" "$(cluster_name "$n")"
    done
done
[ -z "$pairs" ] || [ -n "$upgraded" ] || failed=yes

printf '\n'
{
    printf 'PostgreSQL\tassertions\tpgvector\tresult\tseconds\n'
    printf '%s\n' "${rows[@]}" | LC_ALL=C sort -V
} | "$python" -c '
import sys
rows = [line.rstrip("\t\n").split("\t") for line in sys.stdin]
widths = [max(len(row[n]) for row in rows) for n in range(5)]
for row in rows:
    print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
'
[ -z "$failed" ] || die "not all of it passed: the logs are $logs/matrix-*.log"

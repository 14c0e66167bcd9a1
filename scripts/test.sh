#!/usr/bin/env bash
# Runs the tests in three stages; the cluster of `make test-cluster` must be up. The last line is pytest's.
#   test.sh [unit] [sql] [python] [upgrade] [citus]   only these stages; the last two run only if they are named (make matrix,
#               make citus)
#   UNIT=name   only unit tests of crates/ whose name contains it
#   TESTS=a,b   only these tests of tests/sql (setup comes first by itself)
#   K=words     only pytest's tests that match (its -k): K=watch is those of tests/watch and others with the word in their name
# shellcheck source=scripts/lib/common.sh
source "$(dirname "$0")/lib/common.sh"
# shellcheck source=scripts/lib/clients.sh
source "$root/scripts/lib/clients.sh"
# shellcheck source=scripts/lib/observability.sh
source "$root/scripts/lib/observability.sh"
require_pg
cargo_setup
[[ " $* " != *" waiting "* ]] || "$root/scripts/cluster.sh" start
eval "$("$root/scripts/cluster.sh" env)"
cd "$root"
# The path where the engine's unit tests find the library; the extension finds it by itself.
export ORT_DYLIB_PATH=$pg_lib/clip_search/libonnxruntime.so PG_CONFIG=$pg_config

unit=${UNIT:-} tests=${TESTS:-} k=${K:-}
stages=" ${*:-unit sql python} "
# wanted STAGE FILTER
wanted() { [[ $stages == *" $1 "* ]] && { [ -z "$unit$tests$k" ] || [ -n "$2" ]; }; }
stage() { printf '\n== %s ==\n' "$*"; }

unit_tests() {
    stage "unit tests: crates"
    step unit-build "building the unit tests" cargo test --locked --release "${workspace[@]}" --no-run
    # The stages below mostly use one core.
    if wanted python "$k"; then start_releases; fi
    cargo test --locked --release "${workspace[@]}" --quiet -- ${unit:+"$unit"} || die "unit tests failed: see above"
}

# The released versions are built while the tests that don't need them run, in a separate process group: if a test fails before that, the
# build ends too.
releases=
start_releases() {
    mkdir -p "$logs"
    setsid "$root/scripts/releases.sh" >"$logs/releases.log" 2>&1 </dev/null &
    releases=$!
    trap 'kill -- -"$releases" 2>/dev/null || true' EXIT
}
finish_releases() {
    [ -n "$releases" ] || start_releases
    wait "$releases" || die "building the released versions failed: $(cat "$logs/releases.log")"
    trap - EXIT
    cat "$logs/releases.log"
}

regression_tests() {
    local program names output=$target/regress${CLUSTER:+.$CLUSTER}
    stage "SQL tests: tests/sql"
    program=$(dirname "$("$pg_config" --pgxs)")/../test/regress/pg_regress
    [ -x "$program" ] || die "$program is missing: install postgresql-server-dev-$pg_major"
    if [ -n "$tests" ]; then
        names=${tests//,/ }
    else
        names=$(cd tests/sql && printf '%s\n' *.sql | sed 's/\.sql$//' | LC_ALL=C sort)
    fi
    names=$(tr ' ' '\n' <<<"$names" | grep -vx setup || true)
    mkdir -p "$output"
    # shellcheck disable=SC2086
    if ! "$program" --host="$PGHOST" --port="$PGPORT" --user="$PGUSER" --dbname=contrib_regression \
        --bindir="$pg_bin" --inputdir=tests --outputdir="$output" setup $names; then
        [ ! -s "$output/regression.diffs" ] || cat "$output/regression.diffs"
        die "SQL tests failed: the difference is above and in $output/regression.diffs"
    fi
}

# Without a path, pytest uses the directories listed in pyproject.toml.
run_pytest() {
    PYTHONDONTWRITEBYTECODE=1 "$target/venv/bin/python" -m pytest -o cache_dir="$target/pytest${CLUSTER:+.$CLUSTER}" "$@"
}

# The tests of these directories mostly wait for servers, timers and locks, so the directories run in parallel. Each has its own server,
# because tests change the server's settings, roles and connections.
waiting=(tests/watch tests/server)
computing() {
    sed -n '/^testpaths/,/^]/s/^ *"\(.*\)",$/\1/p' pyproject.toml | grep -vxF "$(printf '%s\n' "${waiting[@]}")"
}

# side_by_side: runs all directories in parallel, and prints the waiting directories' output once the others have ended.
side_by_side() {
    local status=0 folder log started=()
    mkdir -p "$logs"
    for folder in "${waiting[@]}"; do
        FOLDER=$folder CLUSTER=test.${folder#tests/} "$root/scripts/test.sh" waiting >"$logs/pytest-${folder#tests/}.log" 2>&1 </dev/null &
        started+=($!)
    done
    mapfile -t folders < <(computing)
    run_pytest -rs "${folders[@]}" || status=$?
    for folder in "${waiting[@]}"; do
        wait "${started[0]}" || status=$?
        started=("${started[@]:1}")
        log=$logs/pytest-${folder#tests/}.log
        say "$folder, which ran beside ($log)"
        cat "$log"
    done
    return "$status"
}

# waiting_tests: runs the tests of FOLDER on a server that lives as long as they do.
waiting_tests() {
    local status=0
    run_pytest -rs "${FOLDER:?}" || status=$?
    "$root/scripts/cluster.sh" stop
    return "$status"
}

python_tests() {
    python_packages
    # PgBouncer for tests/server/test_pool.py. Without apt, its tests are skipped.
    if { [ -z "$k" ] || [[ $k == *pool* || $k == *server* ]]; } && command -v apt-get >/dev/null &&
        ! PATH=$PATH:/usr/sbin command -v pgbouncer >/dev/null; then
        apt_install pgbouncer
    fi
    if [ -z "$k" ] || [[ $k == *update* || $k == *release* ]]; then finish_releases; fi
    if [ -z "$k" ] || [[ $k == *clients* || $k == *docs* ]]; then clients quick; fi
    if [ -z "$k" ] || [[ $k == *observability* || $k == *docs* ]]; then observability; fi
    stage "Python tests: pytest"
    # make matrix and make valgrind configure a single server, so their tests run one after another.
    if [ -z "$k" ] && [ "${CLUSTER:-}" = test ]; then
        side_by_side
    else
        run_pytest -rs ${k:+-k "$k"}
    fi
}

upgrade_tests() {
    python_packages
    stage "pg_upgrade from $OLD_PG_CONFIG to $pg_config"
    run_pytest tests/matrix -rs
}

citus_tests() {
    python_packages
    stage "Citus: a coordinator and two workers"
    run_pytest tests/citus ${k:+-k "$k"}
}

if wanted unit "$unit"; then unit_tests; fi
if wanted sql "$tests"; then regression_tests; fi
if wanted python "$k"; then python_tests; fi
if [[ $stages == *" waiting "* ]]; then waiting_tests; fi
if [[ $stages == *" upgrade "* ]]; then upgrade_tests; fi
if [[ $stages == *" citus "* ]]; then citus_tests; fi

#!/usr/bin/env bash
# Runs the tests of tests/valgrind in a server under valgrind's memcheck, first with connections that load the library and
# then in a server that preloads it. Fails if memcheck reports anything, or a test fails; prints a summary that begins with
# the errors that go through clip_search.so.
#   TESTS=… K=…           tests of tests/sql and of pytest, as in make test, in place of those. Under valgrind photo-mini
#                         takes half a minute a photo and five seconds a text (classify six minutes, cluster four); pytest
#                         has some that measure time or memory, which are valgrind's here
#   PGVECTOR_SRC=path     as in make matrix
#   VALGRIND_OPTS=…       more options of valgrind's own: --track-origins=yes says where a value without a value was
#                         allocated, for twice the time
# The server is PostgreSQL 17 from Debian's source archive, in target/valgrind: with USE_VALGRIND it tells memcheck what is
# palloc'd and what is freed (all of it is one malloc'd block otherwise), and with assertions it overwrites what is freed.
# Programs of the server that run in between (initdb, psql) run natively.
# shellcheck source=scripts/lib/common.sh
source "$(dirname "$0")/lib/common.sh"
# shellcheck source=scripts/lib/sources.sh
source "$root/scripts/lib/sources.sh"

place=$target/valgrind
prefix=$place/pg17
reports=$logs/valgrind

# --- the server ------------------------------------------------------------------------------------------------

# Installed in place of the server's program, so that every pg_ctl starts it. It runs natively if no directory for logs is
# given, and for initdb, which would take minutes.
write_wrapper() {
    [ -e "$prefix/bin/postgres.real" ] || mv "$prefix/bin/postgres" "$prefix/bin/postgres.real"
    cat >"$prefix/bin/postgres.new" <<WRAPPER
#!/bin/sh
case "\${CLIP_SEARCH_VALGRIND:+yes}\${1:-}" in
yes-V | yes--version | yes--boot | yes--check | yes--single | yes-C) ;;
yes*)
    # --fair-sched: of two threads (clip_search.threads) one waits for the other by spinning.
    exec valgrind --leak-check=no --error-limit=no --num-callers=40 --fair-sched=yes --gen-suppressions=all \\
        --error-markers=ERROR-BEGIN,ERROR-END --fullpath-after='$root/' \\
        --suppressions='$prefix/share/valgrind.supp' --suppressions="\$CLIP_SEARCH_VALGRIND/clip_search.supp" \\
        --log-file="\$CLIP_SEARCH_VALGRIND/%p.log" '$prefix/bin/postgres.real' "\$@"
    ;;
esac
exec '$prefix/bin/postgres.real' "\$@"
WRAPPER
    chmod 755 "$prefix/bin/postgres.new"
    mv "$prefix/bin/postgres.new" "$prefix/bin/postgres"
}

have_server() { usable "$prefix/bin/pg_config" && [ -e "$prefix/share/valgrind.supp" ]; }

command -v valgrind >/dev/null && [ -e /usr/include/valgrind/memcheck.h ] || apt_install valgrind
# Valgrind's manual advises against -O2, where some reports concern values that are never used.
have_server || build_server 17 "$prefix" CPPFLAGS=-DUSE_VALGRIND CFLAGS='-O1 -g'
have_server || die "PostgreSQL was not installed in $prefix: see $logs/matrix-pg17-server.log"
write_wrapper
export PG_CONFIG=$prefix/bin/pg_config CLUSTER=valgrind
require_pg

# --- the extension ---------------------------------------------------------------------------------------------

"$root/scripts/deps.sh"
# Line numbers need another profile. It is compiled separately, so the usual build is untouched.
CARGO_TARGET_DIR=$place/cargo CARGO_PROFILE_RELEASE_DEBUG=line-tables-only "$root/scripts/build.sh" install

# Reads past the end of a palloc'd chunk: memcheck must report it each time, or its silence proves nothing.
build_control() {
    cat >"$place/control.c" <<'CONTROL'
#include "postgres.h"
#include "fmgr.h"
PG_MODULE_MAGIC;
PG_FUNCTION_INFO_V1(clip_search_control);
Datum clip_search_control(PG_FUNCTION_ARGS)
{
    volatile char *chunk = palloc0(100);
    PG_RETURN_INT32(chunk[PG_GETARG_INT32(0)]);
}
CONTROL
    cc -shared -fPIC -O1 -g -I"$("$pg_config" --includedir-server)" -o "$pg_lib/clip_search_control.so" "$place/control.c"
}
step valgrind-control "building the control" build_control

# --- the tests -------------------------------------------------------------------------------------------------

# A directory that the server's user can write to and other users can't.
running=$(mktemp -d "${TMPDIR:-/tmp}/clip_search-valgrind.XXXXXX")
cp "$root/scripts/lib/valgrind.supp" "$running/clip_search.supp"
# The miniature takes one second per photo. There are two copies of it, because clip_reembed needs another
# model's name.
mkdir -p "$running/models"
for model in mini copy; do cp -R "$root/tests/fixtures/clip-mini" "$running/models/$model"; done
chmod -R a+rX "$running"
[ "$(id -u)" -ne 0 ] || chown -R "${CLUSTER_USER:-postgres}" "$running"
finish() {
    CLIP_SEARCH_VALGRIND='' "$root/scripts/cluster.sh" remove
    rm -rf "$running"
}
trap finish EXIT
export CLIP_SEARCH_VALGRIND=$running

failed=
# A server that preloads reads the models three times before it answers.
export PGCTLTIMEOUT=600
"$root/scripts/cluster.sh" remove
"$root/scripts/cluster.sh" start
eval "$("$root/scripts/cluster.sh" env)"
psql() { "$pg_bin/psql" -XAtq -v ON_ERROR_STOP=1 -d postgres "$@" >/dev/null; }
psql -c "CREATE FUNCTION clip_search_control(int) RETURNS int
    LANGUAGE c AS 'clip_search_control'" -c 'SELECT clip_search_control(100)'

start=$SECONDS
# glue_tests NAME…: runs tests of tests/valgrind/sql.
glue_tests() {
    printf '\n== %s: tests/valgrind ==\n' "$*"
    mkdir -p "$place/regress"
    if ! (cd "$root" && "$(dirname "$("$pg_config" --pgxs)")/../test/regress/pg_regress" --host="$PGHOST" --port="$PGPORT" \
        --user="$PGUSER" --dbname=contrib_regression --bindir="$pg_bin" --inputdir=tests/valgrind \
        --outputdir="$place/regress" setup "$@"); then
        cat "$place/regress/regression.diffs"
        failed+=" $*"
    fi
}
# ALTER SYSTEM accepts the library's settings only once it is loaded; each -c is a transaction of its own.
set_up() { psql -c "LOAD 'clip_search'" "$@"; }

if [ -n "${TESTS:-}${K:-}" ]; then
    [ -z "${TESTS:-}" ] || UNIT='' K='' "$root/scripts/test.sh" sql || failed+=" sql"
    [ -z "${K:-}" ] || UNIT='' TESTS='' "$root/scripts/test.sh" python || failed+=" python"
else
    set_up -c "ALTER SYSTEM SET clip_search.model_path = '\$system:$running/models'" \
        -c "ALTER SYSTEM SET clip_search.model = 'mini'" -c 'SELECT pg_reload_conf()'
    glue_tests embed groups watch
    set_up -c "ALTER SYSTEM SET shared_preload_libraries = 'clip_search'" -c "ALTER SYSTEM SET clip_search.preload = 'mini'" \
        -c "ALTER SYSTEM SET clip_search.worker_retry_delay = '20ms'"
    "$root/scripts/cluster.sh" stop
    "$root/scripts/cluster.sh" start
    glue_tests worker
fi
took=$((SECONDS - start))

# The logs are complete once the server is down.
"$root/scripts/cluster.sh" stop
rm -rf "$reports"
mkdir -p "$reports"
cp "$running"/*.log "$reports"

printf '\n== memcheck, %d s of tests ==\n' "$took"
"$python" "$root/scripts/lib/valgrind.py" "$reports" clip_search_control || failed+=" memcheck"
[ -z "$failed" ] || die "failed:$failed (the logs: $reports/*.log)"

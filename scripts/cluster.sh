#!/usr/bin/env bash
# A throw-away PostgreSQL cluster under target/, with clip_search created in database clip_search.
#   cluster.sh start   make it, or start it again, or reuse it
#   cluster.sh env     print how to connect to it
#   cluster.sh stop    stop it
#   cluster.sh remove  stop it and delete it
#
# PostgreSQL refuses to run as root: for root, user postgres runs it (or CLUSTER_USER=…). If that user can't reach the
# checkout, for example below a private temporary directory, the data is in the run directory and target/cluster is a
# link to it. The run directory also holds the socket, whose path is limited to 107 bytes. CLUSTER=name selects another
# cluster beside the unnamed one. The unnamed one preloads the default model, as a production server would; others
# don't, so that tests see the extension load.
# shellcheck source=scripts/lib/common.sh
source "$(dirname "$0")/lib/common.sh"

data=$target/cluster${CLUSTER:+.$CLUSTER}
state=$data.state # run directory, server user and checkout of the existing cluster: three lines
database=clip_search
port=5432 # names the socket file; nothing listens on TCP

if [ "$(id -u)" -eq 0 ]; then
    server_user=${CLUSTER_USER:-postgres}
else
    server_user=$(id -un)
fi

# as_server COMMAND…: runs it as the server's user, in a directory that this user can enter.
as_server() {
    if [ "$(id -un)" = "$server_user" ]; then
        (cd / && "$@")
    else
        (cd / && runuser -u "$server_user" -- "$@")
    fi
}

# read_state: succeeds if this checkout has a cluster. A copied target/ describes the original checkout's cluster, which
# it ignores. If the checkout was moved, its server is stopped, because it looks for its files in the old place.
read_state() {
    local checkout=
    [ -e "$state" ] || return 1
    { read -r run_dir && read -r server_user && read -r checkout; } <"$state"
    if [ "$(id -u)" -ne 0 ] && [ "$(id -un)" != "$server_user" ]; then
        die "the cluster in $data belongs to user $server_user: run make as root, or make clean as root to start afresh"
    fi
    if [ "$checkout" != "$root" ]; then
        if [ ! -e "$checkout" ]; then
            stop_server
            as_server rm -rf "$run_dir"
        fi
        rm -rf "$data" "$state"
        return 1
    fi
}

# A socket path longer than 107 bytes can't be bound (sockaddr_un), so a long TMPDIR is replaced by /tmp.
choose_run_dir() {
    local base name
    name=clip_search-$(printf %s "$root${CLUSTER:-}" | sha256sum | cut -c1-10)
    for base in "${TMPDIR:-/tmp}" /tmp; do
        run_dir=${base%/}/$name
        [ ${#run_dir} -gt 90 ] || ! as_server test -w "$base" || break
    done
    if [ ! -e "$run_dir" ] && [ ! -L "$run_dir" ]; then
        as_server mkdir -m 700 "$run_dir" || die "can't make $run_dir for the cluster: set TMPDIR to another directory"
    fi
    # Anyone can create a directory of this name in /tmp; the socket must not go into somebody else's.
    if [ ! -d "$run_dir" ] || [ -L "$run_dir" ] || [ "$(stat -c %U "$run_dir")" != "$server_user" ]; then
        die "$run_dir is not a directory of user $server_user: remove it, or set TMPDIR to another directory"
    fi
    as_server chmod 700 "$run_dir"
}

connect() { "$pg_bin/psql" -h "$run_dir" -p "$port" -U postgres -XAtq -v ON_ERROR_STOP=1 "$@"; }
answers() { connect -d postgres -c 'select 1' >/dev/null 2>&1; }

# The postmaster's process id, if it runs in this data directory.
postmaster() {
    local pid
    pid=$(head -n 1 "$data/postmaster.pid" 2>/dev/null) || return 1
    [ -n "$pid" ] && [ -d "/proc/$pid" ] && [ "$(stat -c %U "/proc/$pid")" = "$server_user" ] && echo "$pid"
}

# By signal instead of pg_ctl, which also stops a server whose programs were replaced or removed. SIGINT is PostgreSQL's fast shutdown; it
# takes less than a second here.
stop_server() {
    local pid
    pid=$(postmaster) || return 0
    as_server kill -INT "$pid"
    for _ in $(seq 300); do
        [ -d "/proc/$pid" ] || return 0
        sleep 0.1
    done
    die "the server (process $pid) did not stop within 30 s: see $run_dir/server.log"
}

remove_cluster() {
    stop_server
    as_server rm -rf "$run_dir"
    rm -rf "$data" "$state"
}

init_cluster() {
    as_server "$pg_bin/initdb" -D "$real_data" -U postgres -A trust -E UTF8 --locale=C.UTF-8 --no-sync
    # The data need not survive a crash of the machine, so no write waits for the disk.
    as_server tee -a "$real_data/postgresql.conf" >/dev/null <<CONF
listen_addresses = ''
port = $port
unix_socket_permissions = 0700
max_connections = 100
fsync = off
synchronous_commit = off
full_page_writes = off
log_line_prefix = '%m [%p] '
CONF
}

make_cluster() {
    choose_run_dir
    mkdir -p "$target"
    printf '%s\n' "$run_dir" "$server_user" "$root" >"$state"
    real_data=$data
    if [ "$(id -un)" != "$server_user" ]; then
        if as_server test -x "$target"; then
            install -d -m 700 -o "$server_user" "$data"
        else
            real_data=$run_dir/data
            ln -sfn "$real_data" "$data"
        fi
    fi
    step initdb "making a throw-away cluster (PostgreSQL $pg_major, user $server_user)" init_cluster
}

# Written to a separate file, because ALTER SYSTEM may override a line; returns false if the line already exists.
configure_preload() {
    local conf
    conf=$(readlink "$data" || echo "$data")/postgresql.conf
    [ -z "${CLUSTER:-}" ] && ! as_server grep -q '^shared_preload_libraries' "$conf" || return 1
    as_server tee -a "$conf" >/dev/null <<CONF
shared_preload_libraries = 'clip_search'
clip_search.preload = 'photo-mini'
CONF
}

start_server() {
    local log=$run_dir/server.log real_data
    real_data=$(readlink "$data" || echo "$data")
    [ -d "$run_dir" ] || choose_run_dir # /tmp may have been swept
    say "starting the throw-away cluster"
    # Descriptors above 2 are closed for the server, which would otherwise hold our lock and make's pipes for its lifetime. With Rust
    # backtraces enabled in a developer's shell, a cancelled query would carry one as its DETAIL.
    if ! as_server env -u RUST_BACKTRACE -u RUST_LIB_BACKTRACE \
        "$pg_bin/pg_ctl" -D "$real_data" -l "$log" -w -t "${PGCTLTIMEOUT:-60}" -s -o "-k '$run_dir' -c max_prepared_transactions=20" start \
        >/dev/null 2>&1 </dev/null 9>&-; then
        as_server tail -n 20 "$log" | sed 's/^/  | /' >&2
        die "the cluster did not start (log: $log); run make clean, then make cluster"
    fi
}

# A server that preloads the extension keeps the library it started with; other sessions load the installed one.
preloads_old_library() {
    local started
    started=$(connect -d postgres -c "select floor(extract(epoch from pg_postmaster_start_time()))
                                      where current_setting('shared_preload_libraries') ~ 'clip_search'")
    [ -n "$started" ] && [ "$(stat -c %Y "$pg_lib/clip_search.so")" -ge "$started" ]
}

# The extension's installed SQL. A database's comment records which SQL created its extension. Lines are sorted, and lines with source
# positions of functions are omitted: cargo-pgrx writes functions in another order each time.
sql_hash() {
    (cd "$pg_share/extension" && cat clip_search.control clip_search--*.sql) | grep -v '^-- src/' | LC_ALL=C sort |
        sha256sum | cut -c1-16
}

create_extension() {
    local hash installed
    [ -e "$pg_share/extension/clip_search.control" ] ||
        die "clip_search is not installed in $pg_share/extension: run make install"
    hash=$(sql_hash)
    [ "$(connect -d postgres -c "select 1 from pg_database where datname = '$database'")" = 1 ] ||
        connect -d postgres -c "create database $database"
    installed=$(connect -d postgres -c "select shobj_description(oid, 'pg_database') from pg_database
                                        where datname = '$database'")
    if [ "$installed" != "sql $hash" ] ||
        [ "$(connect -d "$database" -c "select 1 from pg_extension where extname = 'clip_search'")" != 1 ]; then
        [ -z "$installed" ] || say "the extension's SQL has changed: creating it again in database $database"
        connect -d "$database" -c 'set client_min_messages = warning' -c "set lock_timeout = '30s'" \
            -c 'drop extension if exists clip_search cascade' -c 'create extension clip_search cascade' \
            -c "comment on database $database is 'sql $hash'" ||
            die "CREATE EXTENSION clip_search failed in the throw-away cluster (server log: $run_dir/server.log)"
    fi
}

case ${1:-} in
start)
    require_pg
    mkdir -p "$target"
    exec 9>"$data.lock"
    flock 9
    id "$server_user" >/dev/null 2>&1 ||
        die "root can't run PostgreSQL and there is no user $server_user: set CLUSTER_USER, or run make as another user"
    if read_state; then
        had=$(cat "$data/PG_VERSION" 2>/dev/null || true)
        if [ "$had" != "$pg_major" ]; then
            [ -z "$had" ] || say "replacing the throw-away cluster of PostgreSQL $had"
            remove_cluster
            make_cluster
        fi
    else
        rm -rf "$data"
        make_cluster
    fi
    if configure_preload || ! answers || preloads_old_library; then
        stop_server
        start_server
    fi
    create_extension
    say "cluster is up: eval \"\$(make -s env)\" && psql"
    ;;
env)
    if ! read_state || ! find_pg || ! answers; then
        die "no cluster is running: run make cluster"
    fi
    printf 'export PGHOST=%q PGPORT=%q PGUSER=postgres PGDATABASE=%q\n' "$run_dir" "$port" "$database"
    ;;
stop)
    ! read_state || stop_server
    ;;
remove)
    ! read_state || remove_cluster
    ;;
*) die "usage: cluster.sh start|env|stop|remove" ;;
esac

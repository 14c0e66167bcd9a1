#!/usr/bin/env bash
# The base image of `make image-test` uses this instead of the official image's entrypoint if no registry answers. It implements what the
# test needs: POSTGRES_PASSWORD is required for a new volume, or POSTGRES_HOST_AUTH_METHOD=trust; POSTGRES_USER, POSTGRES_DB and
# /docker-entrypoint-initdb.d work as in the official image.
set -euo pipefail
if [ "${1:0:1}" = - ]; then set -- postgres "$@"; fi
if [ "$1" = postgres ] && [ "$(id -u)" = 0 ]; then
    mkdir -p "$PGDATA"
    chown -R postgres "$PGDATA" /var/run/postgresql
    chmod 700 "$PGDATA"
    exec setpriv --reuid=postgres --regid=postgres --init-groups --reset-env env "PGDATA=$PGDATA" "PATH=$PATH" \
        ${POSTGRES_PASSWORD:+"POSTGRES_PASSWORD=$POSTGRES_PASSWORD"} ${POSTGRES_USER:+"POSTGRES_USER=$POSTGRES_USER"} \
        ${POSTGRES_DB:+"POSTGRES_DB=$POSTGRES_DB"} \
        ${POSTGRES_HOST_AUTH_METHOD:+"POSTGRES_HOST_AUTH_METHOD=$POSTGRES_HOST_AUTH_METHOD"} "$0" "$@"
fi
if [ "$1" = postgres ] && [ ! -s "$PGDATA/PG_VERSION" ]; then
    export POSTGRES_USER=${POSTGRES_USER:-postgres}
    export POSTGRES_DB=${POSTGRES_DB:-$POSTGRES_USER}
    method=${POSTGRES_HOST_AUTH_METHOD:-scram-sha-256}
    if [ -z "${POSTGRES_PASSWORD:-}" ] && [ "$method" != trust ]; then
        echo "POSTGRES_PASSWORD is not set, and a new volume needs it" >&2
        exit 1
    fi
    initdb --username="$POSTGRES_USER" >/dev/null
    printf '\nhost all all all %s\n' "$method" >>"$PGDATA/pg_hba.conf"
    printf "\nlisten_addresses = '*'\n" >>"$PGDATA/postgresql.conf"
    pg_ctl -D "$PGDATA" -o "-c listen_addresses=''" -w start
    if [ -n "${POSTGRES_PASSWORD:-}" ]; then
        psql -X -q -v ON_ERROR_STOP=1 -U "$POSTGRES_USER" -d postgres -v password="$POSTGRES_PASSWORD" <<<"ALTER ROLE CURRENT_USER PASSWORD :'password'"
    fi
    if [ "$POSTGRES_DB" != postgres ]; then createdb -U "$POSTGRES_USER" "$POSTGRES_DB"; fi
    for file in /docker-entrypoint-initdb.d/*; do
        case $file in
        *.sh) "$file" ;;
        *.sql) psql -X -q -v ON_ERROR_STOP=1 -U "$POSTGRES_USER" -d "$POSTGRES_DB" -f "$file" ;;
        esac
    done
    pg_ctl -D "$PGDATA" -m fast -w stop
fi
exec "$@"

# shellcheck shell=bash disable=SC2034,SC2154,SC2164
# Installs what the examples of docs/clients.md need. Sourced by test.sh and clients.sh.

# install_node_clients: installs the packages pinned in tests/docs/clients/node into target/clients/node.
install_node_clients() {
    local from=$root/tests/docs/clients/node to=$target/clients/node
    mkdir -p "$to"
    ! cmp -s "$from/package-lock.json" "$to/node_modules/.made-from" || return 0
    cp "$from/package.json" "$from/package-lock.json" "$to/"
    (cd "$to" && npm ci --ignore-scripts)
    cp "$from/package-lock.json" "$to/node_modules/.made-from"
}

# clients quick|all: installs what is missing and exports CLIENTS, the examples to run. `quick` selects those of Python and Node.js, and
# those whose apt packages take seconds; Go and Rust compile for half a minute, and Java's compiler is a large package. Without apt or npm,
# the examples that need them are not run.
clients() {
    CLIENTS="python sqlalchemy django"
    python_environment venv-clients "$root/tests/docs/clients/python/requirements.txt"
    if command -v npm >/dev/null || { [ "$1" = all ] && command -v apt-get >/dev/null; }; then
        command -v npm >/dev/null || apt_install npm
        step clients-node "installing the packages of tests/docs/clients/node (npm)" install_node_clients
        CLIENTS+=" node drizzle"
    fi
    if command -v apt-get >/dev/null; then
        ruby -e 'require "pg"' 2>/dev/null || apt_install ruby ruby-pg
        [[ $(php -m 2>/dev/null) == *pdo_pgsql* ]] || apt_install php-cli php-pgsql
        CLIENTS+=" ruby php"
    fi
    if [ "$1" = all ]; then
        CLIENTS+=" rust"
        if command -v apt-get >/dev/null; then
            command -v go >/dev/null || apt_install golang-go
            [ -d /usr/share/gocode/src/github.com/jackc/pgx ] || apt_install golang-github-jackc-pgx-v4-dev
            [ -e /usr/share/java/postgresql.jar ] || apt_install libpostgresql-jdbc-java
            command -v javac >/dev/null || apt_install default-jdk-headless
            CLIENTS+=" go java"
        fi
    fi
    export CLIENTS
}

#!/usr/bin/env bash
# Runs once, when the volume is created: creates the extension in the container's initial database, and in template1, which CREATE DATABASE
# copies.
set -euo pipefail
for database in template1 "${POSTGRES_DB:-postgres}"; do
    psql -X -q -v ON_ERROR_STOP=1 --username "${POSTGRES_USER:-postgres}" --no-password --dbname "$database" \
        -c 'CREATE EXTENSION IF NOT EXISTS clip_search CASCADE'
done

#!/usr/bin/env bash
# Run once, when the volume is made: the extension in the database that the container begins with, and in those that CREATE
# DATABASE copies from template1.
set -euo pipefail
for database in template1 "${POSTGRES_DB:-postgres}"; do
    psql -X -q -v ON_ERROR_STOP=1 --username "${POSTGRES_USER:-postgres}" --no-password --dbname "$database" \
        -c 'CREATE EXTENSION IF NOT EXISTS clip_search CASCADE'
done

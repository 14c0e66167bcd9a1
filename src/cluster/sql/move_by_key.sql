WITH a AS MATERIALIZED (
    SELECT u.key::{kind} AS clip_key, u.id AS clip_id, u.old AS clip_old, u.hash AS clip_hash
    FROM unnest($1::pg_catalog.text[], $2::pg_catalog.int8[], $3::pg_catalog.int8[], $4::pg_catalog.int8[]) AS u (key, id, old, hash)
), written AS (
    UPDATE {table} AS t SET {cluster} = a.clip_id FROM a
    WHERE t.{key} = a.clip_key AND t.{cluster} IS NOT DISTINCT FROM a.clip_old AND {hash} = a.clip_hash RETURNING t.{key}
)
SELECT pg_catalog.count(*) FROM written

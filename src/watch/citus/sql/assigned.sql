WITH a AS MATERIALIZED (
    SELECT {values}, u.cluster AS clip_cluster, u.hash AS clip_hash
    FROM unnest($1::pg_catalog.text[], $2::pg_catalog.int8[], $3::pg_catalog.int8[]) AS u (key, cluster, hash)
), written AS (
    UPDATE {table} AS t SET {column} = a.clip_cluster FROM a
    WHERE {same} AND t.{column} IS NULL AND {hash} = a.clip_hash RETURNING {returned}
)
SELECT ARRAY[{key}]::text FROM written

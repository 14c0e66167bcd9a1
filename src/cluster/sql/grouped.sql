cluster AS MATERIALIZED (
    SELECT id, size, centroid, resultant FROM clip_search.cluster
    WHERE collection OPERATOR(pg_catalog.=) $1 AND size OPERATOR(pg_catalog.>=) $2
),
read AS (
    SELECT c.id, t.{key}::text AS key, t.{key} AS key_value, {labels} AS labels{place},
           1 OPERATOR(pg_catalog.-) (t.{embedding}::{schema}.vector OPERATOR({schema}.<=>) c.centroid) AS cosine
    FROM {table} t JOIN cluster c ON c.id OPERATOR(pg_catalog.=) t.{cluster} WHERE t.{embedding} IS NOT NULL
),
member AS MATERIALIZED (
    -- Members whose cosines differ from the largest of the cluster only by rounding (1e-7) are equally near, whichever the
    -- processor rounds up. They are in the order of their keys, as the type of the key sorts them: 2 before 10.
    SELECT r.*, pg_catalog.floor((pg_catalog.max(cosine) OVER (PARTITION BY id) OPERATOR(pg_catalog.-) cosine)
                                 OPERATOR(pg_catalog.*) 1000000::float8) AS millionths_off
    FROM read r
),
grouped AS (
    SELECT id, pg_catalog.array_agg(key ORDER BY millionths_off, key_value) AS keys, pg_catalog.min(cosine) AS lowest
    FROM member GROUP BY id
),
word AS (
    SELECT id, w AS word, pg_catalog.count(*) AS here, pg_catalog.sum(pg_catalog.count(*)) OVER (PARTITION BY w) AS everywhere
    FROM member, pg_catalog.unnest(labels) AS w WHERE w IS NOT NULL GROUP BY id, w
)

SELECT s.logicalrelid::pg_catalog.oid, s.shardid
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_dist_shard AS s
    ON s.shardid OPERATOR(pg_catalog.=) pg_catalog.substring(c.relname::pg_catalog.text, '_([0-9]{1,18})$')::pg_catalog.int8
JOIN pg_catalog.pg_class AS p ON p.oid OPERATOR(pg_catalog.=) s.logicalrelid::pg_catalog.oid
WHERE c.oid OPERATOR(pg_catalog.=) $1 AND p.relnamespace OPERATOR(pg_catalog.=) c.relnamespace
    AND p.oid OPERATOR(pg_catalog.<>) c.oid

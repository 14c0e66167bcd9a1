SELECT s.logicalrelid::pg_catalog.oid, s.shardid
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_dist_shard AS s
    ON s.shardid OPERATOR(pg_catalog.=) pg_catalog.substring(c.relname::pg_catalog.text, '_([0-9]{1,18})$')::pg_catalog.int8
JOIN pg_catalog.pg_class AS p ON p.oid OPERATOR(pg_catalog.=) s.logicalrelid::pg_catalog.oid
JOIN pg_catalog.pg_namespace AS n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
WHERE c.oid OPERATOR(pg_catalog.=) $1 AND p.relnamespace OPERATOR(pg_catalog.=) c.relnamespace
    AND p.oid OPERATOR(pg_catalog.<>) c.oid
    -- The whole name: the number alone can end the name of another role's table. Citus leaves out the schema public.
    AND pg_catalog.shard_name(s.logicalrelid, s.shardid) OPERATOR(pg_catalog.=) ANY (ARRAY[
        pg_catalog.quote_ident(c.relname), pg_catalog.format('%I.%I', n.nspname, c.relname)])

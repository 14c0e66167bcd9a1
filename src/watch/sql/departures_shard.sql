SELECT coalesce(pg_catalog.to_regclass(s.name), pg_catalog.to_regclass('public.' OPERATOR(pg_catalog.||) s.name))::pg_catalog.oid,
    s.shard_key, pg_catalog.format_type(a.atttypid, a.atttypmod)
FROM (SELECT pg_catalog.shard_name(o.logicalrelid, o.shardid) AS name, d.logicalrelid,
          pg_catalog.column_to_column_name(d.logicalrelid, d.partkey) AS shard_key
      FROM pg_catalog.pg_class AS c
      JOIN pg_catalog.pg_dist_shard AS p
          ON p.shardid OPERATOR(pg_catalog.=) pg_catalog.substring(c.relname::pg_catalog.text, '_([0-9]{1,18})$')::pg_catalog.int8
      JOIN pg_catalog.pg_dist_shard AS o ON o.shardminvalue IS NOT DISTINCT FROM p.shardminvalue
      JOIN pg_catalog.pg_dist_partition AS d ON d.logicalrelid::pg_catalog.oid OPERATOR(pg_catalog.=) o.logicalrelid::pg_catalog.oid
      WHERE c.oid OPERATOR(pg_catalog.=) $1
          AND o.logicalrelid::pg_catalog.oid OPERATOR(pg_catalog.=) pg_catalog.to_regclass($2)::pg_catalog.oid) AS s
LEFT JOIN pg_catalog.pg_attribute AS a
    ON a.attrelid OPERATOR(pg_catalog.=) s.logicalrelid::pg_catalog.oid
    AND a.attname::pg_catalog.text OPERATOR(pg_catalog.=) s.shard_key

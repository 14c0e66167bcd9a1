SELECT coalesce(pg_catalog.to_regclass(s.name), pg_catalog.to_regclass('public.' OPERATOR(pg_catalog.||) s.name))::pg_catalog.oid
FROM (SELECT pg_catalog.shard_name(d.logicalrelid, d.shardid) AS name FROM pg_catalog.pg_dist_shard AS d
      WHERE d.logicalrelid::pg_catalog.oid OPERATOR(pg_catalog.=) $1) AS s

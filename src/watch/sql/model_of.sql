SELECT w.model FROM clip_search.watch_setting w
    WHERE (w.relation::oid = $1 OR w.relation IN (SELECT pg_catalog.pg_partition_ancestors($1::oid)))
        AND (w.embedding = $2::text OR $2 IS NULL AND w.replaces IS NULL)

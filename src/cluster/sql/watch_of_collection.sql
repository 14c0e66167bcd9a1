SELECT pg_catalog.format('%I.%I', n.nspname, c.relname)
FROM clip_search.watch_setting w
JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) w.relation::pg_catalog.oid
JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
WHERE w.collection OPERATOR(pg_catalog.=) $1
ORDER BY w.id

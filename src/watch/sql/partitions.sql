WITH tree AS (SELECT c.oid FROM pg_catalog.pg_partition_tree($2::oid::regclass) AS p JOIN pg_catalog.pg_class c ON c.oid = p.relid::oid
              WHERE c.relkind = 'r'),
     known AS (SELECT c.oid FROM clip_search.watch_partition k JOIN pg_catalog.pg_class c ON c.oid = k.relation::oid WHERE k.watch = $1 AND c.oid <> $2)
SELECT coalesce(t.oid, k.oid), k.oid IS NOT NULL, t.oid IS NOT NULL,
       EXISTS (SELECT FROM pg_catalog.pg_trigger g WHERE g.tgrelid = coalesce(t.oid, k.oid) AND g.tgname = $3)
    FROM tree t FULL JOIN known k ON k.oid = t.oid ORDER BY coalesce(t.oid, k.oid)::bigint

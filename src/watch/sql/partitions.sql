-- pg_partition_tree is unsuitable, because it locks every partition: two sessions that alter one partition each would
-- wait for each other.
WITH RECURSIVE below AS (SELECT $2::oid AS oid UNION ALL
              SELECT i.inhrelid FROM below b JOIN pg_catalog.pg_inherits i ON i.inhparent = b.oid AND NOT i.inhdetachpending),
     tree AS (SELECT c.oid FROM below b JOIN pg_catalog.pg_class c ON c.oid = b.oid WHERE c.relkind = 'r'),
     known AS (SELECT c.oid FROM clip_search.watch_partition k JOIN pg_catalog.pg_class c ON c.oid = k.relation::oid WHERE k.watch = $1 AND c.oid <> $2)
SELECT coalesce(t.oid, k.oid), k.oid IS NOT NULL, t.oid IS NOT NULL,
       EXISTS (SELECT FROM pg_catalog.pg_trigger g WHERE g.tgrelid = coalesce(t.oid, k.oid) AND g.tgname = $3)
    FROM tree t FULL JOIN known k ON k.oid = t.oid ORDER BY coalesce(t.oid, k.oid)::bigint

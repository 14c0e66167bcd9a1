-- pg_partition_tree is unsuitable, because it locks every partition.
WITH RECURSIVE tree AS (SELECT $1::oid AS oid UNION ALL
                        SELECT i.inhrelid FROM tree JOIN pg_catalog.pg_class c ON c.oid = tree.oid AND c.relkind = 'p'
                        JOIN pg_catalog.pg_inherits i ON i.inhparent = tree.oid AND NOT i.inhdetachpending)
SELECT t.tgrelid, pg_catalog.quote_ident(t.tgname)
    FROM tree JOIN pg_catalog.pg_trigger t ON t.tgrelid = tree.oid
    WHERE NOT t.tgisinternal AND t.tgparentid = 0 AND t.tgfoid = {function}::regprocedure::oid
        -- Compares the first argument. A shard's trigger has the id of the distributed table's watch. 0.2.0's table has
        -- no column "home".
        AND NOT EXISTS (SELECT FROM clip_search.watch_setting w,
                            pg_catalog.convert_to(coalesce(pg_catalog.to_jsonb(w) -> 'home' ->> 'parent', w.id::text), 'UTF8') AS i (id)
                        WHERE pg_catalog.substr(t.tgargs, 1, pg_catalog.length(i.id) + 1) = i.id || pg_catalog.decode('00', 'hex')
                            AND (w.relation::oid = t.tgrelid OR w.relation IN (SELECT pg_catalog.pg_partition_ancestors(t.tgrelid))))
    ORDER BY t.tgrelid <> $1, t.tgrelid::bigint, t.tgname

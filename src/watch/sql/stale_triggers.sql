-- Not by pg_partition_tree, which locks every partition.
WITH RECURSIVE tree AS (SELECT $1::oid AS oid UNION ALL
                        SELECT i.inhrelid FROM tree JOIN pg_catalog.pg_class c ON c.oid = tree.oid AND c.relkind = 'p'
                        JOIN pg_catalog.pg_inherits i ON i.inhparent = tree.oid AND NOT i.inhdetachpending)
SELECT t.tgrelid, pg_catalog.quote_ident(t.tgname)
    FROM tree JOIN pg_catalog.pg_trigger t ON t.tgrelid = tree.oid
    WHERE NOT t.tgisinternal AND t.tgparentid = 0 AND t.tgfoid = {function}::regprocedure::oid
        AND NOT EXISTS (SELECT FROM clip_search.watch_setting w
                        WHERE t.tgargs = pg_catalog.convert_to(w.id::text, 'UTF8') || pg_catalog.decode('00', 'hex')
                            AND (w.relation::oid = t.tgrelid OR w.relation IN (SELECT pg_catalog.pg_partition_ancestors(t.tgrelid))))
    ORDER BY t.tgrelid <> $1, t.tgrelid::bigint, t.tgname

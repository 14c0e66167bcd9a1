SELECT c.relname::text, format('USING %I (%%I %I.%I)%s%s', m.amname, n.nspname, o.opcname,
        coalesce(' WITH (' || pg_catalog.array_to_string(c.reloptions, ', ') || ')', ''),
        coalesce(' TABLESPACE ' || pg_catalog.quote_ident(s.spcname), '')),
        pg_catalog.obj_description(c.oid, 'pg_class')
    FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid JOIN pg_catalog.pg_am m ON m.oid = c.relam
    JOIN pg_catalog.pg_opclass o ON o.oid = i.indclass[0] JOIN pg_catalog.pg_namespace n ON n.oid = o.opcnamespace
    JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
    LEFT JOIN pg_catalog.pg_tablespace s ON s.oid = c.reltablespace
    WHERE i.indrelid = $1 AND i.indnatts = 1 AND a.attname = $2 ORDER BY c.oid::bigint

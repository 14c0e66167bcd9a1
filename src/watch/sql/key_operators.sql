SELECT DISTINCT ON (u.n) format('%I OPERATOR(%I.%s) (($1::text[])[%s])::%s', a.attname, n.nspname, o.oprname, u.n,
        pg_catalog.format_type(a.atttypid, a.atttypmod)), u.n
    FROM unnest($2::text[]) WITH ORDINALITY AS u (name, n)
    JOIN pg_catalog.pg_attribute a ON a.attrelid = $1 AND a.attname = u.name AND NOT a.attisdropped
    JOIN pg_catalog.pg_index i ON i.indrelid = $1 AND i.indisunique
    JOIN LATERAL unnest(i.indkey::int2[], i.indclass::oid[]) AS k (attnum, class) ON k.attnum = a.attnum
    JOIN pg_catalog.pg_opclass c ON c.oid = k.class
    JOIN pg_catalog.pg_amop m ON m.amopfamily = c.opcfamily AND m.amopstrategy = 3 AND m.amoplefttype = c.opcintype
        AND m.amoprighttype = c.opcintype
    JOIN pg_catalog.pg_operator o ON o.oid = m.amopopr JOIN pg_catalog.pg_namespace n ON n.oid = o.oprnamespace
    ORDER BY u.n, i.indisprimary DESC

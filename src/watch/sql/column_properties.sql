SELECT format('COMMENT ON COLUMN %s.%I IS %L', $3::text, a.attname, pg_catalog.col_description($1, a.attnum))
        FROM pg_catalog.pg_attribute a WHERE a.attrelid = $1 AND a.attname = $2 AND pg_catalog.col_description($1, a.attnum) IS NOT NULL
    UNION ALL SELECT format('ALTER TABLE %s ALTER COLUMN %I SET STORAGE %s', $3::text, a.attname,
            CASE a.attstorage WHEN 'p' THEN 'PLAIN' WHEN 'e' THEN 'EXTERNAL' WHEN 'm' THEN 'MAIN' ELSE 'EXTENDED' END)
        FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
        WHERE a.attrelid = $1 AND a.attname = $2 AND a.attstorage <> t.typstorage
    UNION ALL SELECT format('ALTER TABLE %s ALTER COLUMN %I SET STATISTICS %s', $3::text, a.attname, a.attstattarget)
        FROM pg_catalog.pg_attribute a WHERE a.attrelid = $1 AND a.attname = $2 AND a.attstattarget >= 0
    UNION ALL SELECT format('ALTER TABLE %s ALTER COLUMN %I SET COMPRESSION %s', $3::text, a.attname,
            CASE a.attcompression::text WHEN 'p' THEN 'pglz' ELSE 'lz4' END)
        FROM pg_catalog.pg_attribute a WHERE a.attrelid = $1 AND a.attname = $2 AND a.attcompression::text <> ''
    UNION ALL SELECT format('ALTER TABLE %s ALTER COLUMN %I SET (%s)', $3::text, a.attname, o.option)
        FROM pg_catalog.pg_attribute a, unnest(a.attoptions) AS o (option)
        WHERE a.attrelid = $1 AND a.attname = $2 AND pg_catalog.left(o.option, 10) = 'n_distinct'
    UNION ALL SELECT format('ALTER TABLE %s ALTER COLUMN %I SET NOT NULL', $3::text, a.attname)
        FROM pg_catalog.pg_attribute a WHERE a.attrelid = $1 AND a.attname = $2 AND a.attnotnull
    UNION ALL SELECT format('GRANT %s (%I) ON %s TO %s%s', x.privilege_type, a.attname, $3::text,
            CASE WHEN x.grantee = 0 THEN 'PUBLIC' ELSE pg_catalog.quote_ident(r.rolname) END,
            CASE WHEN x.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
        FROM pg_catalog.pg_attribute a, pg_catalog.aclexplode(a.attacl) x LEFT JOIN pg_catalog.pg_roles r ON r.oid = x.grantee
        WHERE a.attrelid = $1 AND a.attname = $2

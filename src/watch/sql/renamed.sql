-- Columns of these types that could be a missing column under another name. A dropped column leaves an entry in
-- pg_attribute.
SELECT a.attname::text FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
    WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped AND t.typname = ANY ($2) AND a.attname <> ALL ($4)
        AND a.attgenerated = '' AND a.attidentity = ''
        AND ($3 OR NOT EXISTS (SELECT FROM pg_catalog.pg_attribute d WHERE d.attrelid = $1 AND d.attisdropped))
    ORDER BY a.attnum

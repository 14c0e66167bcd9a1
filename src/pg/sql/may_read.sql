SELECT pg_catalog.has_schema_privilege($1, c.relnamespace, 'USAGE')
   AND (pg_catalog.has_table_privilege($1, c.oid, 'SELECT')
        OR pg_catalog.cardinality($3) OPERATOR(pg_catalog.>) 0
           AND (SELECT pg_catalog.count(*) OPERATOR(pg_catalog.=) pg_catalog.cardinality($3)
                FROM pg_catalog.pg_attribute a
                WHERE a.attrelid OPERATOR(pg_catalog.=) c.oid AND NOT a.attisdropped
                  AND a.attname::pg_catalog.text OPERATOR(pg_catalog.=) ANY ($3)
                  AND pg_catalog.has_column_privilege($1, c.oid, a.attnum, 'SELECT')))
FROM pg_catalog.pg_class c
WHERE c.oid OPERATOR(pg_catalog.=) $2

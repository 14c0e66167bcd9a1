WITH tree AS (SELECT $1::oid AS relid UNION SELECT relid::oid FROM pg_catalog.pg_partition_tree($1::oid)),
    col AS (SELECT a.attrelid, a.attnum FROM tree JOIN pg_catalog.pg_attribute a ON a.attrelid = tree.relid
            WHERE a.attname = ANY ($2) AND NOT a.attisdropped)
    -- A constraint depends on a column twice.
    SELECT DISTINCT pg_catalog.pg_describe_object(d.classid, d.objid, d.objsubid),
        coalesce(pg_catalog.pg_get_indexdef(i.indexrelid), pg_catalog.pg_get_constraintdef(k.oid)) FROM col
    JOIN pg_catalog.pg_depend d ON d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = col.attrelid AND d.refobjsubid = col.attnum
    LEFT JOIN pg_catalog.pg_index i ON d.classid = 'pg_catalog.pg_class'::regclass AND i.indexrelid = d.objid
    LEFT JOIN pg_catalog.pg_constraint k ON d.classid = 'pg_catalog.pg_constraint'::regclass AND k.oid = d.objid
    WHERE d.deptype IN ('n', 'a') AND coalesce(k.contype, '') <> 'n' AND (i.indexrelid IS NULL
        OR i.indnatts <> 1 OR i.indisunique OR i.indisexclusion OR i.indpred IS NOT NULL OR i.indexprs IS NOT NULL OR i.indoption[0] <> 0
        OR (col.attrelid <> $1 AND NOT EXISTS (SELECT FROM pg_catalog.pg_inherits h WHERE h.inhrelid = i.indexrelid)))
    ORDER BY 1

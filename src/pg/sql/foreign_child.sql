WITH RECURSIVE child AS (
    SELECT i.inhrelid FROM pg_catalog.pg_inherits i WHERE i.inhparent OPERATOR(pg_catalog.=) $1
    UNION
    SELECT i.inhrelid FROM child JOIN pg_catalog.pg_inherits i ON i.inhparent OPERATOR(pg_catalog.=) child.inhrelid
)
SELECT pg_catalog.format('%I.%I', n.nspname, c.relname)
FROM child
JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) child.inhrelid
JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
WHERE c.relowner OPERATOR(pg_catalog.<>) $2
LIMIT 1

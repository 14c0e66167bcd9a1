UPDATE ONLY {table} AS t SET {cluster} = n.id
FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2)) AS n (tid, id)
WHERE t.ctid OPERATOR(pg_catalog.=) n.tid

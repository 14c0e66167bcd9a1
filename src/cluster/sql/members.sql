SELECT s.threshold, c.oid, s.embedding::pg_catalog.text, s.cluster::pg_catalog.text, s.key::pg_catalog.text,
       s.labels::pg_catalog.text, s.image::pg_catalog.text,
       (SELECT pg_catalog.to_jsonb(w) OPERATOR(pg_catalog.->>) 'tags' FROM clip_search.watch_setting w
        WHERE w.relation::pg_catalog.oid OPERATOR(pg_catalog.=) c.oid AND w.collection OPERATOR(pg_catalog.=) s.name AND w.replaces IS NULL
        ORDER BY w.id LIMIT 1)
FROM clip_search.collection_setting s
LEFT JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) s.members::pg_catalog.oid
WHERE s.name OPERATOR(pg_catalog.=) $1

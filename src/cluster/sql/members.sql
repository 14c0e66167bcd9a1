SELECT s.threshold, c.oid, s.embedding::pg_catalog.text, s.cluster::pg_catalog.text, s.key::pg_catalog.text,
       s.labels::pg_catalog.text, s.image::pg_catalog.text
FROM clip_search.collection_setting s
LEFT JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) s.members::pg_catalog.oid
WHERE s.name OPERATOR(pg_catalog.=) $1

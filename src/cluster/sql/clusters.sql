SELECT id, size, centroid, NULL::text, resultant, NULL::float8, NULL::text[]
FROM clip_search.cluster
WHERE collection OPERATOR(pg_catalog.=) $1 AND size OPERATOR(pg_catalog.>=) $2
ORDER BY size DESC, id

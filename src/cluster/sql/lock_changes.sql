SELECT ctid, cluster, size, sum, rest, NULL::bytea, sequence_number FROM clip_search.cluster_change
WHERE cluster OPERATOR(pg_catalog.=) $1 AND sequence_number OPERATOR(pg_catalog.>) $2
LIMIT 1000 FOR UPDATE SKIP LOCKED

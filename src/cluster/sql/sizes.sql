SELECT part.cluster, pg_catalog.sum(part.size)::bigint
FROM (SELECT cluster, size FROM clip_search.cluster_sum WHERE collection OPERATOR(pg_catalog.=) $1
      UNION ALL
      SELECT cluster, size FROM clip_search.cluster_change WHERE collection OPERATOR(pg_catalog.=) $1) AS part
GROUP BY part.cluster HAVING pg_catalog.sum(part.size) OPERATOR(pg_catalog.>) 0

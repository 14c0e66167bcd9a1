WITH gone AS (DELETE FROM clip_search.watch_partition p
              WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid = p.relation::oid) RETURNING p.watch)
SELECT DISTINCT w.collection FROM gone g JOIN clip_search.watch_setting w ON w.id = g.watch
    JOIN pg_catalog.pg_class c ON c.oid = w.relation::oid
    WHERE w.collection IS NOT NULL

-- From the watches of table $1 and of the partitioned tables that contain it: the model of column $2, or of the only
-- watched column; and the columns that clip_reembed is still filling.
SELECT CASE WHEN count(*) FILTER (WHERE s.searched) = 1 THEN min(s.model) FILTER (WHERE s.searched) END,
       array_agg(s.embedding) FILTER (WHERE s.unfinished)
FROM (SELECT w.model, w.embedding::text, w.replaces IS NOT NULL AS unfinished,
             w.embedding = $2::text OR $2 IS NULL AND w.replaces IS NULL AS searched
      FROM clip_search.watch_setting w
      WHERE w.relation::oid = $1 OR w.relation IN (SELECT pg_catalog.pg_partition_ancestors($1::oid))) AS s

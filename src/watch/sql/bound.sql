-- A column that is no longer in the table has been renamed or dropped: the watch names its replacement.
SELECT c.oid,
       bool_and(n.was = n.now OR NOT EXISTS (SELECT FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attname = n.was
                                             AND NOT a.attisdropped))
    FROM clip_search.collection_setting s
    LEFT JOIN pg_catalog.pg_class c ON c.oid = s.members::oid
    CROSS JOIN LATERAL (VALUES (s.embedding::text, $2::text), (s.cluster::text, $3::text)) AS n (was, now)
    WHERE s.name = $1 GROUP BY c.oid

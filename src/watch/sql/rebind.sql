UPDATE clip_search.collection_setting s SET threshold = coalesce($3, s.threshold),
        key = CASE WHEN $5 THEN $2
                   WHEN EXISTS (SELECT FROM pg_catalog.pg_attribute a WHERE a.attrelid = $4 AND a.attname = s.key
                                AND NOT a.attisdropped) THEN s.key
                   ELSE $2 END,
        embedding = $8, cluster = $9,
        labels = coalesce($6, s.labels), image = coalesce($7, s.image)
    WHERE s.name = $1

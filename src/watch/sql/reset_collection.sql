UPDATE clip_search.collection_setting s
SET threshold = CASE WHEN 'threshold' = ANY ($2::text[]) THEN NULL ELSE s.threshold END,
    key = CASE WHEN 'key' = ANY ($2::text[]) THEN $3 ELSE s.key END,
    labels = CASE WHEN 'labels' = ANY ($2::text[]) THEN NULL ELSE s.labels END,
    image = CASE WHEN 'image' = ANY ($2::text[]) THEN NULL ELSE s.image END
WHERE s.name = $1

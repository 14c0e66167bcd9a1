UPDATE clip_search.collection_setting
SET members = $2, embedding = $3, cluster = $4, key = $5, dimensions = $6, model = coalesce(model, $7),
    threshold = coalesce($8, threshold), labels = coalesce($9, labels), image = coalesce($10, image)
WHERE name = $1

INSERT INTO clip_search.collection_setting
    (name, dimensions, threshold, model, members, embedding, cluster, key, labels, image)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)

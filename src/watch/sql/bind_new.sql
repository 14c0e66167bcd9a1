INSERT INTO clip_search.collection_setting
    (name, members, embedding, cluster, key, dimensions, model, threshold, labels, image)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)

INSERT INTO clip_search.watch_setting AS w
        (relation, image, text, text_weight, embedding, cluster, model, collection, queued, skip, key, replaces,
         added_columns, added_index, added_collection)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11::text[]::name[], $12, $13::text[]::name[], $14, $15)
    ON CONFLICT (relation, embedding) DO UPDATE SET image = excluded.image, text = excluded.text,
        text_weight = excluded.text_weight, cluster = excluded.cluster, model = excluded.model,
        collection = excluded.collection, queued = excluded.queued, skip = excluded.skip, key = excluded.key,
        added_columns = w.added_columns || excluded.added_columns,
        added_index = coalesce(w.added_index, excluded.added_index),
        added_collection = excluded.added_collection
            OR w.added_collection AND w.collection IS NOT DISTINCT FROM excluded.collection RETURNING w.id

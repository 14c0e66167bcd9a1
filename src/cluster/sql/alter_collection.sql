UPDATE clip_search.collection_setting
SET threshold = coalesce($2, threshold), model = coalesce($3, model),
    key = coalesce($4, key::pg_catalog.text)::pg_catalog.name, labels = coalesce($5, labels::pg_catalog.text)::pg_catalog.name,
    image = coalesce($6, image::pg_catalog.text)::pg_catalog.name
WHERE name OPERATOR(pg_catalog.=) $1

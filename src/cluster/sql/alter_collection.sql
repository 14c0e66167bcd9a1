UPDATE clip_search.collection_setting
SET owner = coalesce($2, owner::pg_catalog.oid), threshold = coalesce($3, threshold), model = coalesce($4, model),
    key = coalesce($5, key::pg_catalog.text)::pg_catalog.name, labels = coalesce($6, labels::pg_catalog.text)::pg_catalog.name,
    image = coalesce($7, image::pg_catalog.text)::pg_catalog.name
WHERE name OPERATOR(pg_catalog.=) $1

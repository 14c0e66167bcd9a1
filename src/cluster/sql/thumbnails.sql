, thumbnail AS MATERIALIZED (
    SELECT g.id, pg_catalog.encode({own_schema}.clip_thumbnail(t.{image}, 256, 'jpeg'), 'base64') AS image
    FROM {table} t JOIN grouped g ON t.{key}::text OPERATOR(pg_catalog.=) g.keys[1]
)

(SELECT pg_catalog.encode({own_schema}.clip_thumbnail(t.{image}, 256, 'jpeg'), 'base64')
 FROM {table} t JOIN member m ON m.tableoid OPERATOR(pg_catalog.=) t.tableoid AND m.ctid OPERATOR(pg_catalog.=) t.ctid
 -- The representative is the member nearest the centroid.
 WHERE m.id OPERATOR(pg_catalog.=) c.id ORDER BY m.millionths_off, m.key_value LIMIT 1)

WITH {grouped}
SELECT coalesce(pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object(
           'cluster_id', c.id, 'size', c.size, 'cohesion', c.resultant, 'lowest', g.lowest, 'representative', g.keys[1],
           'representative_thumbnail', {thumbnail}, 'labels', coalesce(pg_catalog.to_jsonb({words}), '[]'::jsonb),
           'assets', (SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object(
                                 'id', m.key, 'cosine', m.cosine, 'keywords', coalesce(pg_catalog.to_jsonb(m.labels), '[]'::jsonb))
                             ORDER BY m.millionths_off, m.key_value)
                      FROM member m WHERE m.id OPERATOR(pg_catalog.=) c.id))
       ORDER BY c.size DESC, c.id), '[]'::jsonb)
FROM cluster c JOIN grouped g ON g.id OPERATOR(pg_catalog.=) c.id

SELECT pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object('id', w.id, 'image', w.image, 'text', w.text,
    'text_weight', w.text_weight, 'embedding', w.embedding, 'cluster', w.cluster, 'model', w.model, 'queued', w.queued,
    'skip', w.skip, 'key', pg_catalog.to_jsonb(w.key), 'tags', w.tags, 'departures', w.home ->> 'departures',
    'existing', $2::text, 'made_by', $3::text))::text
FROM clip_search.watch_setting w WHERE w.id = $1

INSERT INTO clip_search.watch_setting AS w
        (relation, image, text, text_weight, embedding, model, queued, skip, key, added_columns, added_collection, tags, home)
    SELECT $1, s.image, s.text, s.text_weight, s.embedding, s.model, s.queued, s.skip, s.key, '{}', false, s.tags,
        pg_catalog.jsonb_build_object('parent', s.id, 'cluster', s.cluster, 'departures', s.departures, 'arriving', NOT $3)
    FROM pg_catalog.jsonb_to_record($2::jsonb) AS s (id bigint, image name, text name, text_weight double precision,
        embedding name, cluster text, model text, queued boolean, skip boolean, key name[], tags name, departures text)
    ON CONFLICT (relation, embedding) DO UPDATE SET image = excluded.image, text = excluded.text,
        text_weight = excluded.text_weight, cluster = NULL, collection = NULL, model = excluded.model, queued = excluded.queued,
        skip = excluded.skip, key = excluded.key, tags = excluded.tags,
        home = coalesce(w.home, '{}') || excluded.home
    RETURNING w.id

INSERT INTO clip_search.watch_queue (watch, key, again, made_by) SELECT $1, k.key::text[], true, $3 FROM unnest($2::text[]) AS k (key)
    WHERE NOT EXISTS (SELECT FROM clip_search.watch_queue q WHERE q.watch = $1 AND q.key = k.key::text[] AND q.again)

INSERT INTO clip_search.watch_queue (watch, key) SELECT $1, k.key::text[] FROM unnest($2::text[]) AS k (key)
    WHERE NOT EXISTS (SELECT FROM clip_search.watch_queue q WHERE q.watch = $1 AND q.key = k.key::text[])
        AND NOT EXISTS (SELECT FROM clip_search.watch_failure f WHERE f.watch = $1 AND f.key = k.key::text[])

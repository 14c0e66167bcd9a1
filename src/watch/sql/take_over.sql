DELETE FROM clip_search.watch_queue AS d
    WHERE id IN (SELECT q.id FROM clip_search.watch_queue q JOIN unnest($2::text[]) AS k (key) ON q.key = k.key::text[]
                 WHERE q.watch = $1 AND q.id <> ALL ($3) FOR UPDATE OF q SKIP LOCKED)
    RETURNING key::text, coalesce((pg_catalog.to_jsonb(d) ->> 'again')::boolean, false)

INSERT INTO clip_search.watch_failure AS f (watch, key, sqlstate, message, detail, attempts)
    VALUES ($1, $2::text[], $3, $4, $5, $6) ON CONFLICT (watch, key) DO UPDATE SET failed_at = pg_catalog.now(),
        sqlstate = excluded.sqlstate, message = excluded.message, detail = excluded.detail, attempts = f.attempts + excluded.attempts

WITH gone AS (DELETE FROM clip_search.watch_queue WHERE id IN (SELECT id FROM clip_search.watch_queue
        WHERE watch = ANY ($1) AND attempts > 0
            AND attempts >= CASE WHEN sqlstate LIKE ANY ($4) THEN $3 ELSE $2 END AND due <= pg_catalog.clock_timestamp() FOR UPDATE SKIP LOCKED)
        RETURNING watch, key, attempts, sqlstate, message)
    INSERT INTO clip_search.watch_failure AS f (watch, key, sqlstate, message, attempts)
    SELECT DISTINCT ON (watch, key) watch, key, coalesce(sqlstate, '57P02'),
        coalesce(message, 'embedding this row was begun ' || attempts || ' times and never ended'), attempts FROM gone
    ON CONFLICT (watch, key) DO UPDATE SET failed_at = pg_catalog.now(), sqlstate = excluded.sqlstate,
        message = excluded.message, attempts = f.attempts + excluded.attempts

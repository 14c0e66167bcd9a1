UPDATE clip_search.watch_queue SET sqlstate = coalesce($4, sqlstate), message = coalesce($5, message),
    due = least(due, pg_catalog.clock_timestamp() + least($2 * 2 ^ least(greatest(attempts - 1, 0), 20), $3) * interval '1 millisecond')
    WHERE id = ANY ($1)

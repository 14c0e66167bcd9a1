-- A process that holds a lock of a writer on table $1 and waits for a lock that this transaction holds.
SELECT h.pid FROM pg_catalog.pg_locks h
WHERE h.locktype = 'relation' AND h.relation = $1 AND h.granted AND h.pid <> pg_catalog.pg_backend_pid()
    AND h.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database())
    AND h.mode IN ('RowExclusiveLock', 'ShareUpdateExclusiveLock', 'ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock')
    AND pg_catalog.pg_backend_pid() = ANY (pg_catalog.pg_blocking_pids(h.pid))

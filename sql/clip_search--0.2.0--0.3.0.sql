-- From 0.2.0 to 0.3.0.

-- Watches: what is kept of a watched table is dropped with the table; the queue is searched by table.
DROP INDEX clip_search.watch_queue_due_idx;
CREATE INDEX watch_queue_due_idx ON clip_search.watch_queue (watch, due, id);
COMMENT ON INDEX clip_search.watch_queue_due_idx IS 'What is to be done next';
CREATE FUNCTION clip_search.forget_dropped_tables() RETURNS void VOLATILE PARALLEL UNSAFE LANGUAGE c
    AS 'MODULE_PATHNAME', 'forget_dropped_tables_wrapper';
CREATE FUNCTION clip_search.forget_dropped() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF EXISTS (SELECT FROM pg_event_trigger_dropped_objects() AS d JOIN clip_search.watch_setting AS w ON w.relation::oid = d.objid
               WHERE d.classid = 'pg_class'::regclass AND d.objsubid = 0) THEN
        PERFORM clip_search.forget_dropped_tables();
    END IF;
END $$;
CREATE EVENT TRIGGER clip_search_drop ON sql_drop EXECUTE FUNCTION clip_search.forget_dropped();
COMMENT ON FUNCTION clip_search.forget_dropped() IS 'Event trigger: removes what the extension keeps of a watched table that is dropped';
COMMENT ON FUNCTION clip_search.forget_dropped_tables() IS 'Removes what the extension keeps of tables that have been dropped';
COMMENT ON EVENT TRIGGER clip_search_drop IS 'Removes settings, queue, failures and groups of a watched table with the table';

-- What a monitoring role may see of clip_search: counts of all watches, without keys, messages or rows. Run it as a superuser in each
-- database that has the extension. The views of clip_search show a table's queue to its owner only, so these functions run
-- with the rights of whoever creates them; members of pg_monitor may call them.
BEGIN;
CREATE SCHEMA IF NOT EXISTS clip_monitor;

CREATE OR REPLACE FUNCTION clip_monitor.watches(
    OUT relation text, OUT embedding text, OUT active integer, OUT queued integer,
    OUT pending bigint, OUT oldest_seconds double precision, OUT failed bigint)
RETURNS SETOF record LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    -- Not the columns of clip_search.watch that count the rows of the table.
    SELECT w.relation::regclass::text, w.embedding, w.active::integer, (w.mode = 'queued')::integer,
           p.count, p.oldest, (SELECT count(*) FROM clip_search.failure AS f WHERE f.relation = w.relation AND f.embedding = w.embedding)
    FROM (SELECT relation, embedding, active, mode FROM clip_search.watch) AS w
    CROSS JOIN LATERAL (
        SELECT count(*), coalesce(extract(epoch FROM clock_timestamp() - min(p.queued_at)), 0) AS oldest FROM clip_search.pending AS p
        WHERE p.relation = w.relation AND p.embedding = w.embedding) AS p
$$;

CREATE OR REPLACE FUNCTION clip_monitor.cache(OUT bytes bigint, OUT graphs bigint, OUT refused bigint)
RETURNS record LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    -- Unknown until the library is loaded, as it is where the server preloads it.
    folder text := replace(coalesce(current_setting('clip_search.cache_path', true), '$data/pgsql_tmp.clip_search'),
                           '$data', current_setting('data_directory'));
BEGIN
    IF folder = '' THEN
        RETURN; -- switched off
    END IF;
    SELECT coalesce(sum(s.size), 0), count(DISTINCT d.name) FILTER (WHERE s.size IS NOT NULL) INTO bytes, graphs
    FROM pg_ls_dir(folder, true, false) AS d (name)
    CROSS JOIN LATERAL pg_stat_file(format('%s/%s', folder, d.name), true) AS about
    -- Files beside the graphs, such as words' vectors, are no directories. NULL gives no rows.
    CROSS JOIN LATERAL pg_ls_dir(CASE WHEN about.isdir THEN format('%s/%s', folder, d.name) END, true, false) AS f (name)
    CROSS JOIN LATERAL pg_stat_file(format('%s/%s/%s', folder, d.name, f.name), true) AS s
    WHERE d.name NOT LIKE '%.failed';
    -- Such a file notes that a graph could not be written; no connection tries again for an hour.
    SELECT count(*) INTO refused
    FROM pg_ls_dir(folder, true, false) AS d (name)
    CROSS JOIN LATERAL pg_stat_file(format('%s/%s', folder, d.name), true) AS s
    WHERE d.name LIKE '%.failed' AND s.modification > clock_timestamp() - interval '1 hour';
END $$;

REVOKE ALL ON FUNCTION clip_monitor.watches(), clip_monitor.cache() FROM PUBLIC;
GRANT USAGE ON SCHEMA clip_monitor TO pg_monitor;
GRANT EXECUTE ON FUNCTION clip_monitor.watches(), clip_monitor.cache() TO pg_monitor;
COMMIT;

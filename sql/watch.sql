-- Watched columns: their settings, the queue of rows to embed, and the rows that failed.

CREATE SEQUENCE clip_search.watch_id_seq;

CREATE TABLE clip_search.watch_setting (
    id               bigint PRIMARY KEY DEFAULT pg_catalog.nextval('clip_search.watch_id_seq'),
    relation         regclass NOT NULL,
    image            name,
    text             name,
    text_weight      double precision NOT NULL CHECK (text_weight OPERATOR(pg_catalog.>) 0 AND text_weight OPERATOR(pg_catalog.<) 1),
    embedding        name NOT NULL,
    cluster          name,
    model            text NOT NULL,
    collection       text COLLATE "C",
    queued           boolean NOT NULL,
    skip             boolean NOT NULL,
    key              name[] NOT NULL,
    replaces         bigint,
    added_columns    name[] NOT NULL,
    added_index      name,
    added_collection boolean NOT NULL,
    created_at       timestamptz NOT NULL DEFAULT pg_catalog.now(),
    tags             name,
    -- Only under Citus. In the watch of a shard: the id of the distributed table's watch, and what the trigger needs.
    home             jsonb,
    CONSTRAINT watch_setting_column_key UNIQUE (relation, embedding),
    CHECK (image IS NOT NULL OR text IS NOT NULL),
    CHECK ((cluster IS NULL) OPERATOR(pg_catalog.=) (collection IS NULL))
);

-- Writers only insert entries, so no writer waits; a row may have several entries. An entry is deleted soon after it is
-- written, so autovacuum runs every 1000 dead rows regardless of the table's size.
CREATE SEQUENCE clip_search.watch_queue_id_seq;
CREATE TABLE clip_search.watch_queue (
    id        bigint PRIMARY KEY DEFAULT pg_catalog.nextval('clip_search.watch_queue_id_seq'),
    watch     bigint NOT NULL,
    key       text[] COLLATE "C" NOT NULL,
    attempts  integer NOT NULL DEFAULT 0,
    due       timestamptz NOT NULL DEFAULT pg_catalog.now(),
    sqlstate  text,
    message   text,
    queued_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    again     boolean NOT NULL DEFAULT false,
    made_by   text
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
CREATE INDEX watch_queue_due_idx ON clip_search.watch_queue (watch, due, id);
CREATE INDEX watch_queue_tried_idx ON clip_search.watch_queue (attempts) WHERE attempts OPERATOR(pg_catalog.>) 0;
CREATE INDEX watch_queue_watch_idx ON clip_search.watch_queue (watch, key);
CREATE INDEX watch_queue_again_idx ON clip_search.watch_queue (watch) WHERE again;

CREATE TABLE clip_search.watch_failure (
    watch     bigint NOT NULL,
    key       text[] COLLATE "C" NOT NULL,
    failed_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    sqlstate  text NOT NULL,
    message   text NOT NULL,
    detail    text,
    attempts  bigint NOT NULL DEFAULT 1,
    PRIMARY KEY (watch, key)
);

-- The known partitions of watched tables, to detect added and removed partitions.
CREATE TABLE clip_search.watch_partition (
    watch    bigint NOT NULL,
    relation regclass NOT NULL,
    PRIMARY KEY (watch, relation)
);

-- The arguments in CREATE TRIGGER are the id of a watch and, for a distributed table of Citus, the settings for its
-- shards.
CREATE FUNCTION clip_watch_row() RETURNS trigger LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'clip_watch_row';

-- Watches whose triggers exist and are enabled. The triggers are missing during a restore, or if a role dropped them.
CREATE VIEW clip_search.watch_live AS
SELECT w.id, w.relation
FROM clip_search.watch_setting w
CROSS JOIN LATERAL (SELECT pg_catalog.convert_to(coalesce(w.home OPERATOR(pg_catalog.->>) 'parent', w.id::pg_catalog.text), 'UTF8') AS id) AS i
WHERE EXISTS (SELECT FROM pg_catalog.pg_trigger t
              WHERE t.tgrelid OPERATOR(pg_catalog.=) w.relation::pg_catalog.oid AND NOT t.tgisinternal
                AND t.tgfoid OPERATOR(pg_catalog.=) '@extschema@.clip_watch_row()'::pg_catalog.regprocedure::pg_catalog.oid
                AND t.tgenabled OPERATOR(pg_catalog.<>) 'D'
                -- Compares the first argument. The trigger of a shard has the id of the distributed table's watch.
                AND pg_catalog.substr(t.tgargs, 1, pg_catalog.length(i.id) OPERATOR(pg_catalog.+) 1) OPERATOR(pg_catalog.=)
                    (i.id OPERATOR(pg_catalog.||) pg_catalog.decode('00', 'hex')));

-- A role that drops a watched table need not know about the extension: the table's settings, queue and failures, and
-- the collections whose members it contained, are dropped in the same transaction.
CREATE FUNCTION clip_search.forget_dropped() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF EXISTS (SELECT FROM pg_event_trigger_dropped_objects() AS d
               WHERE d.classid = 'pg_class'::regclass AND d.objsubid = 0
                 AND (EXISTS (SELECT FROM clip_search.watch_setting AS w WHERE w.relation::oid = d.objid)
                      OR EXISTS (SELECT FROM clip_search.watch_partition AS p WHERE p.relation::oid = d.objid)
                      OR EXISTS (SELECT FROM clip_search.collection_setting AS s WHERE s.members::oid = d.objid)))
        -- A shard whose distributed table is not watched any more.
        OR EXISTS (SELECT FROM pg_event_trigger_dropped_objects() AS d
                   WHERE d.classid = 'pg_trigger'::regclass AND starts_with(d.object_identity, 'zz_clip_watch_'))
           AND EXISTS (SELECT FROM clip_search.watch_setting AS w WHERE to_jsonb(w) -> 'home' ? 'parent') THEN
        PERFORM clip_search.forget_dropped_tables();
    END IF;
END $$;
CREATE EVENT TRIGGER clip_search_drop ON sql_drop EXECUTE FUNCTION clip_search.forget_dropped();

-- CREATE TABLE may add a partition to a watched table, ALTER TABLE may attach or detach one.
CREATE FUNCTION clip_search.follow_partitions() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    touched bigint[];
BEGIN
    -- Only watched tables that the command has changed. The caller therefore owns them, so a command neither locks
    -- another role's table nor runs its code.
    SELECT array_agg(w.id) INTO touched
    FROM clip_search.watch_setting AS w
    WHERE w.relation::oid IN (SELECT a.relid::oid FROM pg_event_trigger_ddl_commands() AS c
                              CROSS JOIN LATERAL pg_partition_ancestors(c.objid::regclass) AS a
                              WHERE c.classid = 'pg_class'::regclass);
    IF touched IS NOT NULL THEN
        PERFORM clip_search.settle_partitions(touched);
    END IF;
END $$;
CREATE EVENT TRIGGER clip_search_partition ON ddl_command_end WHEN TAG IN ('CREATE TABLE', 'ALTER TABLE')
    EXECUTE FUNCTION clip_search.follow_partitions();

-- Counts by a scan without SQL, if the caller may read the whole table: planning a query would evaluate index
-- expressions, which are the owner's code. NULL for other callers, and where policies apply.
CREATE FUNCTION clip_search.watch_progress(relation regclass, image name, text name, embedding name, cluster name, tags name,
                                           OUT rows bigint, OUT embedded bigint, OUT open bigint)
LANGUAGE sql STABLE PARALLEL UNSAFE COST 100000 SET search_path = pg_catalog, pg_temp AS $$
    SELECT c.rows, c.embedded, c.open
    FROM clip_search.count_rows(relation, ARRAY[image::text, text::text], embedding::text, cluster::text, tags::text) AS c
$$;

-- Asks the servers of a distributed table of Citus a question about its shards, each as the reader. The cost of these
-- functions is the default: the views below name them for every watch, and with their true cost PostgreSQL would
-- compile each query (JIT) for a second. The servers' connections have the reader's search_path, so every name in a
-- question is qualified.
CREATE FUNCTION clip_search.ask_servers(question text) RETURNS SETOF jsonb
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE ROWS 10 SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN QUERY SELECT CASE WHEN a.success THEN a.result::jsonb END
                 FROM run_command_on_all_nodes(question, give_warning_for_connection_errors => true) AS a;
END $$;

-- The sums over the shards of a distributed table. rows, embedded and pending are NULL if a server does not answer or
-- the reader may not read the table. The servers identify the watch by its id and its table, because a role can put any
-- id into a trigger on its own table.
CREATE FUNCTION clip_search.shard_totals(parent bigint, relation regclass, OUT rows bigint, OUT embedded bigint, OUT pending bigint,
                                         OUT failed bigint, OUT outdated bigint)
LANGUAGE sql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE WHEN bool_and(j.v IS NOT NULL) THEN sum((j.v ->> 'rows')::bigint)::bigint END,
           CASE WHEN bool_and(j.v IS NOT NULL) THEN sum((j.v ->> 'embedded')::bigint)::bigint END,
           CASE WHEN bool_and(j.v IS NOT NULL) THEN sum((j.v ->> 'pending')::bigint)::bigint END,
           sum((j.v ->> 'failed')::bigint)::bigint, sum((j.v ->> 'outdated')::bigint)::bigint
    FROM clip_search.ask_servers(format('SELECT pg_catalog.row_to_json(t) FROM (SELECT pg_catalog.sum(p.rows) AS rows, '
        'pg_catalog.sum(p.embedded) AS embedded, pg_catalog.sum(p.pending) AS pending, pg_catalog.sum(p.failed) AS failed, '
        'pg_catalog.sum(p.outdated) AS outdated FROM clip_search.shard_progress AS p WHERE p.parent OPERATOR(pg_catalog.=) %s '
        'AND p.distributed OPERATOR(pg_catalog.=) pg_catalog.to_regclass(%L)::pg_catalog.oid) AS t', parent, relation)) AS j (v)
$$;

CREATE FUNCTION clip_search.shard_failures(parent bigint, relation regclass)
RETURNS TABLE (key text[], failed_at timestamptz, sqlstate text, message text, detail text, attempts bigint)
LANGUAGE sql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
    SELECT r.key, r.failed_at, r.sqlstate, r.message, r.detail, r.attempts
    FROM clip_search.ask_servers(format('SELECT coalesce(pg_catalog.json_agg(f), ''[]'') FROM clip_search.shard_failure AS f '
        'WHERE f.parent OPERATOR(pg_catalog.=) %s AND f.distributed OPERATOR(pg_catalog.=) pg_catalog.to_regclass(%L)::pg_catalog.oid',
        parent, relation)) AS j (v)
    CROSS JOIN LATERAL jsonb_to_recordset(coalesce(j.v, '[]')) AS r (key text[], failed_at timestamptz, sqlstate text,
        message text, detail text, attempts bigint)
$$;

CREATE FUNCTION clip_search.shard_pending(parent bigint, relation regclass)
RETURNS TABLE (key text[], queued_at timestamptz, due timestamptz, attempts integer, sqlstate text, message text)
LANGUAGE sql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
    SELECT r.key, r.queued_at, r.due, r.attempts, r.sqlstate, r.message
    FROM clip_search.ask_servers(format('SELECT coalesce(pg_catalog.json_agg(q), ''[]'') FROM clip_search.shard_queue AS q '
        'WHERE q.parent OPERATOR(pg_catalog.=) %s AND q.distributed OPERATOR(pg_catalog.=) pg_catalog.to_regclass(%L)::pg_catalog.oid',
        parent, relation)) AS j (v)
    CROSS JOIN LATERAL jsonb_to_recordset(coalesce(j.v, '[]')) AS r (key text[], queued_at timestamptz, due timestamptz,
        attempts integer, sqlstate text, message text)
$$;

CREATE VIEW clip_search.watch WITH (security_barrier = true) AS
SELECT clip_search.shown_as(w.relation) AS relation, coalesce(w.image, w.text) AS source, CASE WHEN w.image IS NOT NULL THEN w.text END AS text_source,
       CASE WHEN w.image IS NOT NULL AND w.text IS NOT NULL THEN w.text_weight END AS text_weight,
       w.embedding, w.cluster, w.model, w.collection,
       CASE WHEN w.queued THEN 'queued' ELSE 'immediate' END AS mode, CASE WHEN w.skip THEN 'skip' ELSE 'raise' END AS on_error,
       r.embedding AS replaces, EXISTS (SELECT FROM clip_search.watch_live l WHERE l.id OPERATOR(pg_catalog.=) w.id) AS active,
       p.rows, p.embedded, p.pending, p.failed, p.outdated, m.models, w.tags
FROM clip_search.watch_setting w
LEFT JOIN clip_search.watch_setting r ON r.id OPERATOR(pg_catalog.=) w.replaces
CROSS JOIN LATERAL (SELECT w.home IS NOT NULL AND NOT w.home OPERATOR(pg_catalog.?) 'parent' AS distributed) AS d
CROSS JOIN LATERAL (
    SELECT n.rows, n.embedded,
           CASE WHEN n.rows IS NOT NULL THEN greatest(n.open OPERATOR(pg_catalog.-) f.count, 0) OPERATOR(pg_catalog.+) a.count END AS pending,
           f.count AS failed, a.count AS outdated
    FROM (SELECT pg_catalog.count(*) FROM clip_search.watch_failure f WHERE f.watch OPERATOR(pg_catalog.=) w.id) AS f
    CROSS JOIN (SELECT pg_catalog.count(DISTINCT q.key) FROM clip_search.watch_queue q
                WHERE q.watch OPERATOR(pg_catalog.=) w.id AND q.again) AS a
    CROSS JOIN LATERAL clip_search.watch_progress(w.relation, w.image, w.text, w.embedding, w.cluster, w.tags) AS n
    WHERE NOT d.distributed
    UNION ALL
    SELECT t.rows, t.embedded, t.pending, t.failed, t.outdated FROM clip_search.shard_totals(w.id, w.relation) AS t WHERE d.distributed) AS p
CROSS JOIN LATERAL (SELECT CASE WHEN p.rows IS NOT NULL THEN
                               coalesce(pg_catalog.jsonb_object_agg(o.model, o.rows) FILTER (WHERE o.rows OPERATOR(pg_catalog.>) 0), '{}') END AS models
                    FROM (SELECT n.model, pg_catalog.sum(n.rows) AS rows
                          FROM (SELECT w.model, p.embedded OPERATOR(pg_catalog.-) p.outdated AS rows
                                UNION ALL SELECT coalesce(q.made_by, '(unknown)'), pg_catalog.count(DISTINCT q.key) FROM clip_search.watch_queue q
                                          WHERE q.watch OPERATOR(pg_catalog.=) w.id AND q.again GROUP BY q.made_by
                                UNION ALL SELECT '(unknown)', p.outdated WHERE d.distributed) AS n
                          GROUP BY n.model) AS o) AS m
WHERE clip_search.is_owned(w.relation) OR pg_catalog.has_table_privilege(w.relation::pg_catalog.oid, 'SELECT');

-- Keys and messages reveal data of rows, so only the table's owner sees them. A row that was written several times has
-- several entries but is listed once.
--
-- The union is in a subquery because PostgreSQL pushes conditions into the branches of a view that is a UNION ALL, even
-- if the view is a security barrier.
CREATE VIEW clip_search.pending WITH (security_barrier = true) AS
SELECT u.relation, u.embedding, u.key, u.queued_at, u.due, u.attempts, u.sqlstate, u.message FROM (
    SELECT clip_search.shown_as(w.relation) AS relation, w.embedding, q.key, pg_catalog.min(q.queued_at) AS queued_at, pg_catalog.min(q.due) AS due,
           pg_catalog.max(q.attempts) AS attempts,
           (pg_catalog.array_agg(q.sqlstate ORDER BY q.attempts DESC, q.id) FILTER (WHERE q.sqlstate IS NOT NULL))[1] AS sqlstate,
           (pg_catalog.array_agg(q.message ORDER BY q.attempts DESC, q.id) FILTER (WHERE q.sqlstate IS NOT NULL))[1] AS message
    FROM clip_search.watch_queue q
    JOIN clip_search.watch_setting w ON w.id OPERATOR(pg_catalog.=) q.watch
    WHERE clip_search.is_owned(w.relation) AND NOT coalesce(w.home OPERATOR(pg_catalog.?) 'parent', false)
    GROUP BY w.id, w.relation, w.embedding, q.key
    UNION ALL
    SELECT w.relation, w.embedding, q.key COLLATE "C", q.queued_at, q.due, q.attempts, q.sqlstate, q.message
    FROM clip_search.watch_setting w
    CROSS JOIN LATERAL clip_search.shard_pending(w.id, w.relation) AS q
    WHERE w.home IS NOT NULL AND NOT w.home OPERATOR(pg_catalog.?) 'parent' AND clip_search.is_owned(w.relation)) AS u;

CREATE VIEW clip_search.failure WITH (security_barrier = true) AS
SELECT u.relation, u.embedding, u.key, u.failed_at, u.sqlstate, u.message, u.detail, u.attempts FROM (
    SELECT clip_search.shown_as(w.relation) AS relation, w.embedding, f.key, f.failed_at, f.sqlstate, f.message, f.detail, f.attempts
    FROM clip_search.watch_failure f
    JOIN clip_search.watch_setting w ON w.id OPERATOR(pg_catalog.=) f.watch
    WHERE clip_search.is_owned(w.relation) AND NOT coalesce(w.home OPERATOR(pg_catalog.?) 'parent', false)
    UNION ALL
    SELECT w.relation, w.embedding, f.key COLLATE "C", f.failed_at, f.sqlstate, f.message, f.detail, f.attempts
    FROM clip_search.watch_setting w
    CROSS JOIN LATERAL clip_search.shard_failures(w.id, w.relation) AS f
    WHERE w.home IS NOT NULL AND NOT w.home OPERATOR(pg_catalog.?) 'parent' AND clip_search.is_owned(w.relation)) AS u;

-- The progress, the queue and the failures of the shards on this server. The functions above query these views on each
-- server.
CREATE VIEW clip_search.shard_progress WITH (security_barrier = true) AS
SELECT (w.home OPERATOR(pg_catalog.->>) 'parent')::pg_catalog.int8 AS parent, w.relation, p.rows, p.embedded,
       greatest(p.open OPERATOR(pg_catalog.-) f.count, 0) OPERATOR(pg_catalog.+) a.count AS pending, f.count AS failed, a.count AS outdated,
       clip_search.distributed_table(w.relation) AS distributed
FROM clip_search.watch_setting w
CROSS JOIN LATERAL (SELECT pg_catalog.count(*) FROM clip_search.watch_failure f WHERE f.watch OPERATOR(pg_catalog.=) w.id) AS f
CROSS JOIN LATERAL (SELECT pg_catalog.count(DISTINCT q.key) FROM clip_search.watch_queue q
                    WHERE q.watch OPERATOR(pg_catalog.=) w.id AND q.again) AS a
CROSS JOIN LATERAL clip_search.watch_progress(w.relation, w.image, w.text, w.embedding, NULL, w.tags) AS p
WHERE w.home OPERATOR(pg_catalog.?) 'parent' AND clip_search.is_placed_here(w.relation)
  AND (clip_search.is_owned(w.relation) OR pg_catalog.has_table_privilege(w.relation::pg_catalog.oid, 'SELECT'));

CREATE VIEW clip_search.shard_queue WITH (security_barrier = true) AS
SELECT (w.home OPERATOR(pg_catalog.->>) 'parent')::pg_catalog.int8 AS parent, w.relation, q.key, pg_catalog.min(q.queued_at) AS queued_at,
       pg_catalog.min(q.due) AS due, pg_catalog.max(q.attempts) AS attempts,
       (pg_catalog.array_agg(q.sqlstate ORDER BY q.attempts DESC, q.id) FILTER (WHERE q.sqlstate IS NOT NULL))[1] AS sqlstate,
       (pg_catalog.array_agg(q.message ORDER BY q.attempts DESC, q.id) FILTER (WHERE q.sqlstate IS NOT NULL))[1] AS message,
       clip_search.distributed_table(w.relation) AS distributed
FROM clip_search.watch_queue q
JOIN clip_search.watch_setting w ON w.id OPERATOR(pg_catalog.=) q.watch
WHERE w.home OPERATOR(pg_catalog.?) 'parent' AND clip_search.is_owned(w.relation) AND clip_search.is_placed_here(w.relation)
GROUP BY w.id, w.relation, w.home, q.key;

CREATE VIEW clip_search.shard_failure WITH (security_barrier = true) AS
SELECT (w.home OPERATOR(pg_catalog.->>) 'parent')::pg_catalog.int8 AS parent, w.relation, f.key, f.failed_at, f.sqlstate, f.message, f.detail, f.attempts,
       clip_search.distributed_table(w.relation) AS distributed
FROM clip_search.watch_failure f
JOIN clip_search.watch_setting w ON w.id OPERATOR(pg_catalog.=) f.watch
WHERE w.home OPERATOR(pg_catalog.?) 'parent' AND clip_search.is_owned(w.relation) AND clip_search.is_placed_here(w.relation);

-- Runs a command on every server of Citus, as the caller, with separate transactions on each server. An error on one
-- server doesn't stop the others. The command contains %L for the table's name, which each server looks up itself.
CREATE FUNCTION clip_search.on_servers(command text, relation regclass) RETURNS SETOF text
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    answers text[];
    failure text;
BEGIN
    SELECT array_agg(a.result) FILTER (WHERE a.success), min(format('%s: %s', a.nodeid, a.result)) FILTER (WHERE NOT a.success)
    INTO answers, failure FROM run_command_on_all_nodes(format(command, relation)) AS a;
    IF failure IS NOT NULL THEN
        RAISE EXCEPTION 'a server of Citus failed: %', failure USING ERRCODE = 'external_routine_exception',
            HINT = 'What the other servers did is done. Call it again.';
    END IF;
    RETURN QUERY SELECT unnest(answers);
END $$;

CREATE FUNCTION clip_search.retry_here(parent bigint, distributed regclass, sqlstate text) RETURNS bigint
LANGUAGE sql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce(sum(@extschema@.clip_retry(s.relation::regclass, s.embedding, sqlstate)), 0)::bigint
    FROM clip_search.shards_here(parent, distributed) AS s
$$;

-- Stores the watch of a shard: CREATE TRIGGER on the shard has the settings of clip_watch as an argument.
CREATE FUNCTION clip_search.follow_shards() RETURNS event_trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM clip_search.adopt_shard(c.objid) FROM pg_event_trigger_ddl_commands() AS c WHERE c.classid = 'pg_trigger'::regclass;
END $$;
CREATE EVENT TRIGGER clip_search_shard ON ddl_command_end WHEN TAG IN ('CREATE TRIGGER')
    EXECUTE FUNCTION clip_search.follow_shards();

-- A procedure that commits can't set search_path, so it runs with the caller's. Every name is therefore qualified.
CREATE PROCEDURE clip_backfill(relation regclass, batch integer DEFAULT 16, embedding text DEFAULT NULL)
LANGUAGE plpgsql AS $$
DECLARE
    watches  bigint[];
    lasts    bigint[];
    entries  bigint[];
    total    bigint;
    done     bigint := 0;
    failed   bigint := 0;
    grouped  bigint := 0;
    tagged   bigint := 0;
    idle     bigint := 0;
    now      record;
    said     text;
    in_pass  bigint;
    held     bigint;
    before   bigint[];
    listed   bigint[];
    others   bigint := 0;
    waits    boolean := false;
    after    bigint;
    began    timestamptz := pg_catalog.clock_timestamp();
    told     timestamptz := began;
    seconds  double precision;
    shards   bigint[];
    pause    double precision := 0.1;
BEGIN
    IF batch IS NULL THEN
        RAISE EXCEPTION 'argument "batch" is NULL' USING ERRCODE = 'null_value_not_allowed',
            HINT = 'Give a value, or leave it out where it has a default.';
    ELSIF batch OPERATOR(pg_catalog.<) 1 THEN
        RAISE EXCEPTION 'batch % is not at least 1', batch USING ERRCODE = 'invalid_parameter_value';
    END IF;
    -- Of a distributed table each server embeds its own rows.
    shards := clip_search.distributed_watches(relation, embedding);
    IF pg_catalog.cardinality(shards) OPERATOR(pg_catalog.>) 0 THEN
        FOR i IN 1..pg_catalog.cardinality(shards) LOOP
            SELECT t.embedded OPERATOR(pg_catalog.-) t.outdated AS embedded, t.failed INTO now FROM clip_search.shard_totals(shards[i], relation) AS t;
            COMMIT;
            PERFORM clip_search.on_servers(
                pg_catalog.format('CALL clip_search.backfill_here(%s, pg_catalog.to_regclass(%%L), %s)', shards[i], batch), relation);
            COMMIT;
            SELECT t.embedded OPERATOR(pg_catalog.-) t.outdated, t.failed INTO in_pass, held FROM clip_search.shard_totals(shards[i], relation) AS t;
            done := done OPERATOR(pg_catalog.+) coalesce(in_pass OPERATOR(pg_catalog.-) now.embedded, 0);
            failed := failed OPERATOR(pg_catalog.+) coalesce(held OPERATOR(pg_catalog.-) now.failed, 0);
        END LOOP;
        IF failed OPERATOR(pg_catalog.>) 0 THEN
            RAISE WARNING '% could not be embedded', CASE WHEN failed OPERATOR(pg_catalog.=) 1 THEN '1 row' ELSE pg_catalog.format('%s rows', failed) END
                USING HINT = 'SELECT * FROM clip_search.failure says why; clip_retry tries again.';
        END IF;
        RAISE NOTICE 'clip_search: % embedded in % s', CASE WHEN done OPERATOR(pg_catalog.=) 1 THEN '1 row' ELSE pg_catalog.format('%s rows', done) END,
            pg_catalog.round(pg_catalog.date_part('epoch', pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) began)::pg_catalog.numeric, 1);
        RETURN;
    END IF;
    SELECT pg_catalog.array_agg(b.watch), pg_catalog.array_agg(b.last), coalesce(pg_catalog.sum(b.queued), 0)
    INTO watches, lasts, total FROM clip_search.backfill_begin(relation, embedding) AS b;
    before := clip_search.backfill_failed(watches);
    COMMIT;
    FOR i IN 1..pg_catalog.cardinality(watches) LOOP
        -- Repeats until no entry from before the call is left, because other sessions may have locked some of them.
        LOOP
            after := 0;
            in_pass := 0;
            LOOP
                entries := clip_search.backfill_claim(watches[i], after, lasts[i], batch);
                -- The attempt is recorded before it begins.
                COMMIT;
                EXIT WHEN pg_catalog.cardinality(entries) OPERATOR(pg_catalog.=) 0;
                SELECT b.embedded, b.grouped, b.tagged, b.failed, b.idle INTO now FROM clip_search.backfill_batch(watches[i], entries) AS b;
                SELECT pg_catalog.max(e.id) INTO after FROM pg_catalog.unnest(entries) AS e (id);
                grouped := grouped OPERATOR(pg_catalog.+) now.grouped;
                tagged := tagged OPERATOR(pg_catalog.+) now.tagged;
                done := done OPERATOR(pg_catalog.+) now.embedded OPERATOR(pg_catalog.+) now.grouped OPERATOR(pg_catalog.+) now.tagged;
                failed := failed OPERATOR(pg_catalog.+) now.failed;
                idle := idle OPERATOR(pg_catalog.+) now.idle;
                in_pass := in_pass OPERATOR(pg_catalog.+) now.embedded OPERATOR(pg_catalog.+) now.grouped
                    OPERATOR(pg_catalog.+) now.tagged OPERATOR(pg_catalog.+) now.failed;
                IF pg_catalog.clock_timestamp() OPERATOR(pg_catalog.>) (told OPERATOR(pg_catalog.+) '5 seconds'::pg_catalog.interval) THEN
                    told := pg_catalog.clock_timestamp();
                    seconds := pg_catalog.date_part('epoch', told OPERATOR(pg_catalog.-) began);
                    RAISE NOTICE 'clip_search: % of % %, % a second, % s left', done OPERATOR(pg_catalog.+) failed, total,
                        CASE WHEN total OPERATOR(pg_catalog.=) 1 THEN 'row' ELSE 'rows' END,
                        pg_catalog.round(((done OPERATOR(pg_catalog.+) failed) OPERATOR(pg_catalog./) seconds)::pg_catalog.numeric, 1),
                        pg_catalog.round((GREATEST(total OPERATOR(pg_catalog.-) done OPERATOR(pg_catalog.-) failed, 0)
                            OPERATOR(pg_catalog.*) seconds OPERATOR(pg_catalog./) GREATEST(done OPERATOR(pg_catalog.+) failed, 1))::pg_catalog.numeric);
                    PERFORM pg_catalog.pg_notify('clip_search', pg_catalog.json_build_object('table',
                            (SELECT pg_catalog.format('%I.%I', n.nspname, c.relname) FROM pg_catalog.pg_class c
                             JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
                             WHERE c.oid OPERATOR(pg_catalog.=) relation::pg_catalog.oid),
                        'embedded', done, 'failed', failed, 'queued', GREATEST(total OPERATOR(pg_catalog.-) done OPERATOR(pg_catalog.-) failed, 0))::pg_catalog.text);
                END IF;
                COMMIT;
            END LOOP;
            IF in_pass OPERATOR(pg_catalog.>) 0 THEN
                pause := 0.1;
            ELSE
                held := clip_search.backfill_left(watches[i], lasts[i]);
                EXIT WHEN held OPERATOR(pg_catalog.=) 0;
                IF NOT waits THEN
                    waits := true;
                    RAISE NOTICE 'clip_search: waiting for % that the background worker or another session has in hand',
                        CASE WHEN held OPERATOR(pg_catalog.=) 1 THEN '1 row' ELSE pg_catalog.format('%s rows', held) END;
                END IF;
                COMMIT;
                PERFORM pg_catalog.pg_sleep(pause);
                pause := LEAST(pause OPERATOR(pg_catalog.*) 2::double precision, 2);
            END IF;
        END LOOP;
    END LOOP;
    -- Rows that were deleted meanwhile, got another key or lost their source need nothing.
    total := GREATEST(total OPERATOR(pg_catalog.-) idle, done OPERATOR(pg_catalog.+) failed);
    -- Failures and embeddings of other sessions: the rest of the entries that were queued at the beginning.
    listed := clip_search.backfill_failed(watches);
    IF pg_catalog.array_position(listed, NULL) IS NULL THEN
        FOR i IN 1..pg_catalog.cardinality(watches) LOOP
            others := others OPERATOR(pg_catalog.+) listed[i] OPERATOR(pg_catalog.-) before[i];
        END LOOP;
        failed := GREATEST(failed, LEAST(others, total OPERATOR(pg_catalog.-) done));
        others := GREATEST(total OPERATOR(pg_catalog.-) done OPERATOR(pg_catalog.-) failed, 0);
    END IF;
    IF failed OPERATOR(pg_catalog.>) 0 THEN
        RAISE WARNING '% could not be embedded', CASE WHEN failed OPERATOR(pg_catalog.=) 1 THEN '1 row' ELSE pg_catalog.format('%s rows', failed) END
            USING HINT = 'SELECT * FROM clip_search.failure says why; clip_retry tries '
                OPERATOR(pg_catalog.||) CASE WHEN failed OPERATOR(pg_catalog.=) 1 THEN 'it' ELSE 'them' END OPERATOR(pg_catalog.||) ' again.';
    END IF;
    done := done OPERATOR(pg_catalog.+) others OPERATOR(pg_catalog.-) grouped OPERATOR(pg_catalog.-) tagged;
    SELECT pg_catalog.string_agg(pg_catalog.format(CASE WHEN n.rows OPERATOR(pg_catalog.=) 1 THEN '%s row %s' ELSE '%s rows %s' END, n.rows, n.what), ', ' ORDER BY n.place)
    INTO said FROM (VALUES (1, done, 'embedded'), (2, grouped, 'grouped'), (3, tagged, 'tagged')) AS n (place, rows, what)
    WHERE n.rows OPERATOR(pg_catalog.>) 0 OR (n.place OPERATOR(pg_catalog.=) 1 AND (grouped OPERATOR(pg_catalog.+) tagged) OPERATOR(pg_catalog.=) 0);
    RAISE NOTICE 'clip_search: % in % s%', said,
        pg_catalog.round(pg_catalog.date_part('epoch', pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) began)::pg_catalog.numeric, 1),
        CASE WHEN others OPERATOR(pg_catalog.>) 0 THEN pg_catalog.format(', %s of them by the background worker or other sessions', others) ELSE '' END;
END $$;

-- The part of clip_backfill that runs on each server of a distributed table: it fills the server's shards, one after
-- another.
CREATE PROCEDURE clip_search.backfill_here(parent bigint, distributed regclass, batch integer) LANGUAGE plpgsql AS $$
DECLARE
    relations  pg_catalog.oid[];
    embeddings text[];
BEGIN
    SELECT pg_catalog.array_agg(s.relation), pg_catalog.array_agg(s.embedding) INTO relations, embeddings
    FROM clip_search.shards_here(parent, distributed) AS s;
    FOR i IN 1..coalesce(pg_catalog.cardinality(relations), 0) LOOP
        CALL @extschema@.clip_backfill(relations[i]::pg_catalog.regclass, batch, embeddings[i]);
    END LOOP;
END $$;

CREATE PROCEDURE clip_reembed(relation regclass, model text, embedding text DEFAULT NULL, batch integer DEFAULT 16)
LANGUAGE plpgsql AS $$
DECLARE
    next text;
BEGIN
    IF batch IS NULL THEN
        RAISE EXCEPTION 'argument "batch" is NULL' USING ERRCODE = 'null_value_not_allowed',
            HINT = 'Give a value, or leave it out where it has a default.';
    ELSIF batch OPERATOR(pg_catalog.<) 1 THEN
        RAISE EXCEPTION 'batch % is not at least 1', batch USING ERRCODE = 'invalid_parameter_value';
    END IF;
    next := clip_search.reembed_begin(relation, model, embedding);
    COMMIT;
    -- Several sessions may fill the column; one of them puts it in its place.
    WHILE clip_search.reembed_goes_on(relation, next, model) LOOP
        CALL @extschema@.clip_backfill(relation, batch, next);
        EXIT WHEN clip_search.reembed_finish(relation, next);
        -- Rows have come meanwhile, more than others should wait for.
        COMMIT;
    END LOOP;
    COMMIT;
END $$;

SELECT pg_catalog.pg_extension_config_dump('clip_search.watch_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('clip_search.watch_queue_id_seq', '');
-- Omits rows that refer to dropped tables: a dump writes a regclass by name, but a dropped table as a bare OID, which
-- might belong to another table after the restore.
SELECT pg_catalog.pg_extension_config_dump('clip_search.watch_setting',
    'WHERE EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid OPERATOR(pg_catalog.=) relation::pg_catalog.oid)');
SELECT pg_catalog.pg_extension_config_dump('clip_search.watch_queue',
    'WHERE EXISTS (SELECT FROM clip_search.watch_setting w JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) w.relation::pg_catalog.oid
                   WHERE w.id OPERATOR(pg_catalog.=) watch)');
SELECT pg_catalog.pg_extension_config_dump('clip_search.watch_failure',
    'WHERE EXISTS (SELECT FROM clip_search.watch_setting w JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) w.relation::pg_catalog.oid
                   WHERE w.id OPERATOR(pg_catalog.=) watch)');
SELECT pg_catalog.pg_extension_config_dump('clip_search.watch_partition',
    'WHERE EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid OPERATOR(pg_catalog.=) relation::pg_catalog.oid)');

REVOKE ALL ON FUNCTION clip_search.settle_partitions(bigint[]) FROM PUBLIC;
-- The functions check that the caller owns the table, and the views filter by it.
GRANT SELECT ON clip_search.watch, clip_search.pending, clip_search.failure,
    clip_search.shard_progress, clip_search.shard_queue, clip_search.shard_failure TO PUBLIC;

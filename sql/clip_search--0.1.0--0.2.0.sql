-- 0.1.0 was created with names that its schema might have had objects for (of operators, functions, a type vector). What it may
-- have taken from there is made anew: views, checks, defaults, a partial index. Then what has changed since.

SELECT pg_catalog.set_config('search_path', pg_catalog.quote_ident(n.nspname) OPERATOR(pg_catalog.||) ', pg_temp', true)
FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) e.extnamespace
WHERE e.extname OPERATOR(pg_catalog.=) 'vector';

ALTER TABLE clip_search.collection_setting
    DROP CONSTRAINT collection_setting_name_check, DROP CONSTRAINT collection_setting_dimensions_check,
    DROP CONSTRAINT collection_setting_threshold_check,
    ADD CONSTRAINT collection_setting_name_check
        CHECK (name OPERATOR(pg_catalog.<>) '' AND pg_catalog.octet_length(name) OPERATOR(pg_catalog.<=) 63),
    ADD CONSTRAINT collection_setting_dimensions_check
        CHECK (dimensions OPERATOR(pg_catalog.>=) 1 AND dimensions OPERATOR(pg_catalog.<=) 16000),
    ADD CONSTRAINT collection_setting_threshold_check
        CHECK (threshold OPERATOR(pg_catalog.>) -1 AND threshold OPERATOR(pg_catalog.<=) 1),
    ALTER created_at SET DEFAULT pg_catalog.now();
ALTER TABLE clip_search.cluster_sum
    ALTER made_at SET DEFAULT pg_catalog.now(), ALTER updated_at SET DEFAULT pg_catalog.now(),
    ALTER mark SET DEFAULT pg_catalog.nextval('clip_search.cluster_id_seq');
ALTER TABLE clip_search.cluster_change ALTER made_at SET DEFAULT pg_catalog.now();
ALTER TABLE clip_search.watch_setting
    DROP CONSTRAINT watch_setting_text_weight_check, DROP CONSTRAINT watch_setting_check1,
    ADD CONSTRAINT watch_setting_text_weight_check
        CHECK (text_weight OPERATOR(pg_catalog.>) 0 AND text_weight OPERATOR(pg_catalog.<) 1),
    ADD CONSTRAINT watch_setting_check1 CHECK ((cluster IS NULL) OPERATOR(pg_catalog.=) (collection IS NULL)),
    ALTER id SET DEFAULT pg_catalog.nextval('clip_search.watch_id_seq'), ALTER created_at SET DEFAULT pg_catalog.now();
ALTER TABLE clip_search.watch_queue
    ALTER id SET DEFAULT pg_catalog.nextval('clip_search.watch_queue_id_seq'),
    ALTER due SET DEFAULT pg_catalog.now(), ALTER queued_at SET DEFAULT pg_catalog.now();
ALTER TABLE clip_search.watch_failure ALTER failed_at SET DEFAULT pg_catalog.now();
DROP INDEX clip_search.watch_queue_tried_idx;
CREATE INDEX watch_queue_tried_idx ON clip_search.watch_queue (attempts) WHERE attempts OPERATOR(pg_catalog.>) 0;

-- In a publication FOR ALL TABLES they could not be written.
ALTER TABLE clip_search.cluster_sum REPLICA IDENTITY FULL;
ALTER TABLE clip_search.cluster_change REPLICA IDENTITY FULL;
ALTER TABLE clip_search.cluster_code REPLICA IDENTITY FULL;

CREATE OR REPLACE VIEW clip_search.cluster AS
SELECT cluster AS id, collection, l2_normalize(sum(sum)) AS centroid,
       least(vector_norm(sum(sum)) OPERATOR(pg_catalog./) pg_catalog.sum(size)::double precision, 1) AS resultant,
       pg_catalog.sum(size)::bigint AS size, pg_catalog.min(made_at) AS created_at, pg_catalog.max(updated_at) AS updated_at
FROM (SELECT cluster, collection, size, sum, made_at, updated_at FROM clip_search.cluster_sum
      UNION ALL
      SELECT cluster, collection, size, sum, made_at, made_at FROM clip_search.cluster_change) AS part
GROUP BY cluster, collection HAVING pg_catalog.sum(size) OPERATOR(pg_catalog.>) 0;

CREATE OR REPLACE VIEW clip_search.collection AS
WITH RECURSIVE used AS (
    (SELECT collection FROM clip_search.cluster_sum ORDER BY collection LIMIT 1)
    UNION ALL
    SELECT (SELECT s.collection FROM clip_search.cluster_sum s WHERE s.collection OPERATOR(pg_catalog.>) used.collection
            ORDER BY s.collection LIMIT 1)
    FROM used WHERE used.collection IS NOT NULL
)
SELECT coalesce(setting.name, used.collection) AS name,
       coalesce(setting.dimensions, (SELECT vector_dims(s.sum) FROM clip_search.cluster_sum s
                                     WHERE s.collection OPERATOR(pg_catalog.=) used.collection ORDER BY s.cluster LIMIT 1)) AS dimensions,

       coalesce(setting.threshold,
                CASE WHEN pg_catalog.current_setting('clip_search.cluster_threshold', true) OPERATOR(pg_catalog.<>) ''
                     THEN pg_catalog.current_setting('clip_search.cluster_threshold', true)::double precision END,
                0.82) AS threshold,
       coalesce(setting.model, (SELECT s.model FROM clip_search.cluster_sum s
                                WHERE s.collection OPERATOR(pg_catalog.=) used.collection ORDER BY s.cluster LIMIT 1)) AS model,
       setting.members, setting.embedding, setting.cluster, setting.key, setting.labels, setting.image, setting.created_at
FROM clip_search.collection_setting AS setting
FULL JOIN (SELECT collection FROM used WHERE collection IS NOT NULL) AS used ON used.collection OPERATOR(pg_catalog.=) setting.name;

CREATE OR REPLACE VIEW clip_search.watch_live AS
SELECT w.id, w.relation
FROM clip_search.watch_setting w
WHERE EXISTS (SELECT FROM pg_catalog.pg_trigger t
              WHERE t.tgrelid OPERATOR(pg_catalog.=) w.relation::pg_catalog.oid AND NOT t.tgisinternal
                AND t.tgfoid OPERATOR(pg_catalog.=) '@extschema@.clip_watch_row()'::pg_catalog.regprocedure::pg_catalog.oid
                AND t.tgenabled OPERATOR(pg_catalog.<>) 'D'
                AND t.tgargs OPERATOR(pg_catalog.=)
                    (pg_catalog.convert_to(w.id::pg_catalog.text, 'UTF8') OPERATOR(pg_catalog.||) pg_catalog.decode('00', 'hex')));

CREATE OR REPLACE VIEW clip_search.watch AS
SELECT w.relation, coalesce(w.image, w.text) AS source, CASE WHEN w.image IS NOT NULL THEN w.text END AS text_source,
       CASE WHEN w.image IS NOT NULL AND w.text IS NOT NULL THEN w.text_weight END AS text_weight,
       w.embedding, w.cluster, w.model, w.collection,
       CASE WHEN w.queued THEN 'queued' ELSE 'immediate' END AS mode, CASE WHEN w.skip THEN 'skip' ELSE 'raise' END AS on_error,
       r.embedding AS replaces, EXISTS (SELECT FROM clip_search.watch_live l WHERE l.id OPERATOR(pg_catalog.=) w.id) AS active,
       p.rows, p.embedded, CASE WHEN p.rows IS NOT NULL THEN greatest(p.open OPERATOR(pg_catalog.-) f.count, 0) END AS pending, f.count AS failed
FROM clip_search.watch_setting w
JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) w.relation::pg_catalog.oid
LEFT JOIN clip_search.watch_setting r ON r.id OPERATOR(pg_catalog.=) w.replaces
CROSS JOIN LATERAL (SELECT pg_catalog.count(*) FROM clip_search.watch_failure f WHERE f.watch OPERATOR(pg_catalog.=) w.id) AS f
CROSS JOIN LATERAL clip_search.watch_progress(w.relation, w.image, w.text, w.embedding, w.cluster) AS p
WHERE pg_catalog.pg_has_role(c.relowner, 'USAGE') OR pg_catalog.has_table_privilege(c.oid, 'SELECT');

CREATE OR REPLACE VIEW clip_search.pending AS
SELECT w.relation, w.embedding, q.key, q.queued_at, q.due, q.attempts, q.sqlstate, q.message
FROM clip_search.watch_queue q
JOIN clip_search.watch_setting w ON w.id OPERATOR(pg_catalog.=) q.watch
JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) w.relation::pg_catalog.oid
WHERE pg_catalog.pg_has_role(c.relowner, 'USAGE');

CREATE OR REPLACE VIEW clip_search.failure AS
SELECT w.relation, w.embedding, f.key, f.failed_at, f.sqlstate, f.message, f.detail, f.attempts
FROM clip_search.watch_failure f
JOIN clip_search.watch_setting w ON w.id OPERATOR(pg_catalog.=) f.watch
JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) w.relation::pg_catalog.oid
WHERE pg_catalog.pg_has_role(c.relowner, 'USAGE');

SELECT pg_catalog.set_config('search_path', '@extschema@, ' OPERATOR(pg_catalog.||) pg_catalog.current_setting('search_path'), true);

-- Dumped is all but what is left of tables that have been dropped: a dump names tables, and those would come back as numbers, which
-- another table might have there.
SELECT pg_catalog.pg_extension_config_dump('clip_search.watch_setting',
    'WHERE EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid OPERATOR(pg_catalog.=) relation::pg_catalog.oid)');
SELECT pg_catalog.pg_extension_config_dump('clip_search.watch_queue',
    'WHERE EXISTS (SELECT FROM clip_search.watch_setting w JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) w.relation::pg_catalog.oid
                   WHERE w.id OPERATOR(pg_catalog.=) watch)');
SELECT pg_catalog.pg_extension_config_dump('clip_search.watch_failure',
    'WHERE EXISTS (SELECT FROM clip_search.watch_setting w JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) w.relation::pg_catalog.oid
                   WHERE w.id OPERATOR(pg_catalog.=) watch)');

-- Whoever owns the database can dump it, as he could before; the tables have keys and messages of all tables' rows.
GRANT SELECT ON clip_search.collection_setting, clip_search.cluster_sum, clip_search.cluster_change, clip_search.cluster_code,
    clip_search.watch_setting, clip_search.watch_queue, clip_search.watch_failure TO pg_database_owner;
GRANT SELECT ON SEQUENCE clip_search.cluster_id_seq, clip_search.watch_id_seq, clip_search.watch_queue_id_seq TO pg_database_owner;

-- Policies are not run with the rights of whoever counts, and an EXCEPTION clause is a subtransaction, which can't begin
-- while a query runs in parallel.
CREATE OR REPLACE FUNCTION clip_search.watch_progress(relation regclass, image name, text name, embedding name, cluster name,
                                           OUT rows bigint, OUT embedded bigint, OUT open bigint)
LANGUAGE plpgsql STABLE PARALLEL UNSAFE COST 100000
SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
DECLARE
    source text;
    target text;
BEGIN
    -- NULL of a table that has been dropped, which the view may ask for before it leaves it out.
    IF has_table_privilege(relation, 'SELECT') IS NOT TRUE THEN
        RETURN;
    END IF;
    SELECT format('%s%I.%I', CASE WHEN c.relkind = 'p' THEN '' ELSE 'ONLY ' END, n.nspname, c.relname) INTO target
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = watch_progress.relation;
    SELECT string_agg(format('%I IS NOT NULL', s.name), ' OR ') INTO source FROM unnest(ARRAY[image, text]) AS s (name) WHERE s.name IS NOT NULL;
    EXECUTE format('SELECT count(*), count(%1$I), count(*) FILTER (WHERE (%1$I IS NULL%2$s) AND (%3$s)) FROM %4$s', embedding,
                   CASE WHEN cluster IS NULL THEN '' ELSE format(' OR %I IS NULL', cluster) END, source, target)
    INTO rows, embedded, open;
EXCEPTION
    WHEN undefined_column THEN
        NULL; -- renamed or dropped: writers are told
    WHEN undefined_table OR invalid_schema_name THEN
        NULL; -- dropped, or renamed, by a transaction that this has waited for
    WHEN insufficient_privilege THEN
        NULL; -- no USAGE on the schema, or a policy
END $$;

CREATE OR REPLACE PROCEDURE clip_backfill(relation regclass, batch integer DEFAULT 16, embedding text DEFAULT NULL)
LANGUAGE plpgsql AS $$
DECLARE
    watches  bigint[];
    lasts    bigint[];
    entries  bigint[];
    total    bigint;
    done     bigint := 0;
    failed   bigint := 0;
    now_done bigint;
    now_failed bigint;
    in_pass  bigint;
    after    bigint;
    began    timestamptz := pg_catalog.clock_timestamp();
    told     timestamptz := began;
    seconds  double precision;
BEGIN
    IF batch IS NULL THEN
        RAISE EXCEPTION 'argument "batch" is NULL' USING ERRCODE = 'null_value_not_allowed',
            HINT = 'Give a value, or leave it out where it has a default.';
    ELSIF batch OPERATOR(pg_catalog.<) 1 THEN
        RAISE EXCEPTION 'batch % is not at least 1', batch USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT pg_catalog.array_agg(b.watch), pg_catalog.array_agg(b.last), coalesce(pg_catalog.sum(b.queued), 0)
    INTO watches, lasts, total FROM clip_search.backfill_begin(relation, embedding) AS b;
    COMMIT;
    FOR i IN 1..pg_catalog.cardinality(watches) LOOP
        -- Once more, for what another session had, until nothing is left that can be had.
        LOOP
            after := 0;
            in_pass := 0;
            LOOP
                entries := clip_search.backfill_claim(watches[i], after, lasts[i], batch);
                -- An attempt is on record before it is made.
                COMMIT;
                EXIT WHEN pg_catalog.cardinality(entries) OPERATOR(pg_catalog.=) 0;
                SELECT b.embedded, b.failed INTO now_done, now_failed FROM clip_search.backfill_work(watches[i], entries) AS b;
                SELECT pg_catalog.max(e.id) INTO after FROM pg_catalog.unnest(entries) AS e (id);
                done := done OPERATOR(pg_catalog.+) now_done;
                failed := failed OPERATOR(pg_catalog.+) now_failed;
                in_pass := in_pass OPERATOR(pg_catalog.+) now_done OPERATOR(pg_catalog.+) now_failed;
                IF pg_catalog.clock_timestamp() OPERATOR(pg_catalog.>) (told OPERATOR(pg_catalog.+) '5 seconds'::pg_catalog.interval) THEN
                    told := pg_catalog.clock_timestamp();
                    seconds := pg_catalog.date_part('epoch', told OPERATOR(pg_catalog.-) began);
                    RAISE NOTICE 'clip_search: % of % rows, % a second, % s left', done OPERATOR(pg_catalog.+) failed, total,
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
            EXIT WHEN in_pass OPERATOR(pg_catalog.=) 0;
        END LOOP;
    END LOOP;
    IF failed OPERATOR(pg_catalog.>) 0 THEN
        RAISE WARNING '% rows could not be embedded', failed USING HINT = 'SELECT * FROM clip_search.failure says why; clip_retry tries them again.';
    END IF;
    RAISE NOTICE 'clip_search: % rows embedded in % s', done,
        pg_catalog.round(pg_catalog.date_part('epoch', pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) began)::pg_catalog.numeric, 1);
END $$;

CREATE FUNCTION clip_search.reembed_goes_on(relation regclass, embedding text, model text) RETURNS boolean
STRICT VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'reembed_goes_on_wrapper';
COMMENT ON FUNCTION clip_search.reembed_goes_on(regclass, text, text) IS 'A step of clip_reembed: whether the column is still to be filled, or another session has seen to it';

CREATE OR REPLACE PROCEDURE clip_reembed(relation regclass, model text, embedding text DEFAULT NULL, batch integer DEFAULT 16)
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

COMMENT ON COLUMN clip_search.watch.rows IS 'Rows of the table; NULL for those who may not read them all';

COMMENT ON INDEX clip_search.watch_queue_tried_idx IS 'What has been tried before';
COMMENT ON FUNCTION clip_watch(regclass, text, text, text, text, text, text, text, text, double precision, double precision, boolean) IS 'Keeps a table''s embedding, and its cluster, true to the image or text in another column
For the table''s owner. Columns, index and collection that are missing are made; rows that are there already are for clip_backfill.
source: the column of images (bytea) or of texts
embedding: the column that is kept true, a vector or halfvec; made as a vector
cluster: the column with the cluster''s id; NULL: rows are not grouped
model: else clip_search.model
collection: of the clusters; else one named like the table
mode: immediate, as a row is written; or queued, by the background worker, with NULL until then
on_error: raise, the statement fails; or skip, the row is stored without an embedding and listed in clip_search.failure
text_source: a column of texts whose vectors are averaged with the images''
text_weight: share of the text in that average, between 0 and 1
threshold: of the collection; NULL: its own as it is, else clip_search.cluster_threshold
index: whether to make an HNSW index for cosine distance';
COMMENT ON FUNCTION clip_unwatch(regclass, text, boolean) IS 'Undoes clip_watch, with the columns, index and collection that it has added
embedding: the column; NULL: the only one that is watched in this table
keep_columns: takes the triggers away, and leaves columns, index and collection';
COMMENT ON FUNCTION clip_retry(regclass, text) IS 'Tries rows of clip_search.failure again; returns how many are listed no longer
embedding: of this column; NULL: of all that are watched in this table';
COMMENT ON PROCEDURE clip_backfill(regclass, integer, text) IS 'Embeds the rows of a watched table that have no embedding, a batch a transaction
Not inside a transaction. It may be called again, and by several sessions at once.
batch: rows in one transaction
embedding: of this column; NULL: of all that are watched in this table';
COMMENT ON PROCEDURE clip_reembed(regclass, text, text, integer) IS 'Embeds a watched table by another model into a column beside the old one, and swaps the two when it is complete
Not inside a transaction. Called again, it goes on where it ended.
model: the new one
embedding: the column; NULL: the only one that is watched in this table
batch: rows in one transaction';
COMMENT ON SCHEMA clip_search IS 'Views of the extension clip_search: collection, cluster, watch, pending and failure; its tables are its own';
COMMENT ON COLUMN clip_search.collection.name IS 'Its name, as given to clip_assign_cluster; default where none was';
COMMENT ON COLUMN clip_search.collection.created_at IS 'When clip_create_collection made it; NULL for one that came to be by its first cluster';
COMMENT ON VIEW clip_search.cluster IS 'Groups of look-alikes, as clip_assign_cluster and clip_recluster keep them';
COMMENT ON COLUMN clip_search.cluster.size IS 'How many members it has';
COMMENT ON FUNCTION clip_embed_image(bytea) IS 'Embedding of an image file (JPEG, PNG, WebP, GIF, BMP, TIFF, ICO) by the model clip_search.model, of length 1';
COMMENT ON FUNCTION clip_embed_image(bytea, text) IS 'Embedding of an image file by the named model, of length 1; immutable, so a generated column can use it';
COMMENT ON FUNCTION clip_embed_text(text) IS 'Embedding of a text by the model clip_search.model, of length 1';
COMMENT ON FUNCTION clip_embed_text(text, text) IS 'Embedding of a text by the named model, of length 1; immutable, so a generated column can use it';
COMMENT ON FUNCTION clip_embed_images(bytea[]) IS 'Embeddings of many image files, in batches; NULL elements stay NULL, and one bad file is an error for all';
COMMENT ON FUNCTION clip_embed_images(bytea[], text) IS 'Embeddings of many image files by the named model, in batches; NULL elements stay NULL';
COMMENT ON FUNCTION clip_embed_texts(text[]) IS 'Embeddings of many texts, in batches; NULL elements stay NULL, and one bad text is an error for all';
COMMENT ON FUNCTION clip_embed_texts(text[], text) IS 'Embeddings of many texts by the named model, in batches; NULL elements stay NULL';
COMMENT ON FUNCTION clip_classify(bytea, text[], text, text) IS 'Zero-shot classification of an image file, the most probable label first
labels: what to choose from; none may be NULL or empty
template: the text that is embedded for each label, which takes the place of {}
model: else clip_search.model
probability: by the model''s own logit scale: a softmax over the labels, or SigLIP''s sigmoid of each';
COMMENT ON FUNCTION clip_classify(bytea, text[], text[], text) IS 'Zero-shot classification of an image file by an ensemble: each label is the mean of its texts in all templates';
COMMENT ON FUNCTION clip_classify(vector, text[], text, text) IS 'Zero-shot classification of a stored embedding, which must be of the same model as the labels will be';
COMMENT ON FUNCTION clip_classify(vector, text[], text[], text) IS 'Zero-shot classification of a stored embedding by an ensemble of templates';
COMMENT ON FUNCTION clip_query(text[], double precision[], bytea[], double precision[], vector[], double precision[], text) IS 'One query of many: the weighted sum of texts, image files and vectors, scaled to length 1
Each term counts by its direction alone and by its weight: 1 where none are given, below 0 to lead away.
weights: of the texts; image_weights and vector_weights of the others; as many as there are terms
model: else clip_search.model; vectors must be of the same';
COMMENT ON FUNCTION clip_diversify(vector, anyarray, vector[], integer, double precision) IS 'The best of some candidates that are unlike each other (maximal marginal relevance)
ids: what names the candidates, of any type; their embeddings in the same order
k: how many are chosen, at most
lambda: share of nearness to the query, from 0 to 1; the rest is unlikeness to those chosen before
score: lambda × cosine to the query − (1 − lambda) × highest cosine to one chosen before';
COMMENT ON FUNCTION clip_assign_cluster(vector) IS 'Joins the nearest cluster of collection default, if near enough, or founds one; returns its id';
COMMENT ON FUNCTION clip_assign_cluster(vector, text) IS 'Joins the nearest cluster of a collection, if near enough, or founds one; returns its id
Near enough is a cosine to the centroid of at least the collection''s threshold, else clip_search.cluster_threshold.';
COMMENT ON FUNCTION clip_leave_cluster(bigint, vector) IS 'Takes a member out of its cluster, and the cluster away with its last one; false if there is no such cluster
embedding: the one that joined';
COMMENT ON FUNCTION clip_create_collection(text, double precision, integer, text, regclass, text, text, text, text, text) IS 'Gives a collection its settings, and says in which table and columns its members are
threshold: cosine from which on a vector joins a cluster; else clip_search.cluster_threshold
dimensions: of its vectors; else those of the first
model: whose vectors it takes; else that of the first, if known
members: the table of the members
embedding, cluster: its columns of the embedding (vector or halfvec) and of the cluster''s id (bigint)
key: its column that names a member; else its primary key
labels: its column of keywords (text[])
image: its column of image files (bytea), for thumbnails';
COMMENT ON FUNCTION clip_recluster(text, text) IS 'Groups all members of a collection anew by agglomerative clustering, writes that to their table and returns what has changed
linkage: average, or single (a chain of near ones is one group)
cluster: the group; it keeps the id of the one that most of its members were in
change: new, merged (of several, whole), split (a part of one) or moved (members came or went)
sources: the clusters that its members were in
moved: members that were not in it before';
COMMENT ON FUNCTION clip_clusters(text, bigint) IS 'Clusters of a collection with at least min_size members, the largest first
representative: key of the member nearest the centroid
cohesion: mean cosine of the members to the centroid; lowest: the lowest
labels: its five most telling keywords
Of a collection that was not told its members'' table, representative, lowest and labels are NULL.';
COMMENT ON FUNCTION clip_cluster_groups(text, bigint) IS 'Clusters of a collection as JSON for a user interface: representative with thumbnail, members, keywords
Its shape is that of docs/cluster_groups.schema.json.';
COMMENT ON FUNCTION clip_duplicates(text, double precision) IS 'Members of a collection that nearly equal one before them, each with the nearest such, by their keys
threshold: the cosine from which on they do';
COMMENT ON FUNCTION clip_thumbnail(bytea, integer, text) IS 'Small upright copy of an image file, in its proportions; smaller images keep their size
edge: the longer side in pixels, from 1 to 4096
format: jpeg (quality 85), png or webp (lossless)';
COMMENT ON FUNCTION clip_image_info(bytea) IS 'What the header of an image file says; no pixel is decoded, and no limit of size applies
format: JPEG, PNG, GIF, WebP, BMP, TIFF or ICO
width, height: pixels as stored, before orientation
orientation: EXIF''s, from 1 (upright) to 8; from 5 on the sides are swapped
channels: samples a pixel: 1 grey or palette, 2 grey with alpha, 3 RGB, 4 RGB with alpha or CMYK
frames: of an animation, or pages
bytes: length of the file';
COMMENT ON FUNCTION clip_models() IS 'Models that can be used, and what this connection has loaded of them
path: its directory; dimensions: of its vectors, NULL while unknown
selected: named by clip_search.model
loaded: image_loaded or text_loaded, its towers
images, texts: embedded by this connection';
COMMENT ON FUNCTION clip_check_model(text) IS 'Looks over a model: its files, inputs, outputs, preprocessing, and whether it tells red, green and blue apart
model: a name, or the absolute path of a directory
The last item is the verdict: good, or what is wrong.';
COMMENT ON FUNCTION clip_stats() IS 'What the embedding functions have done, for each model, and how long it took
images, texts: embedded by the model; memo_hits: texts that were remembered instead
errors: calls that failed
runs: of a graph, with one item or a batch; loads: of graphs
load_ms, decode_ms, inference_ms: milliseconds for loading, from image file to input, and in the graphs
total_ms: of all calls
since: when counting began
shared: over all connections (clip_search is in shared_preload_libraries); else of this one';
COMMENT ON FUNCTION clip_reset_stats() IS 'Begins the figures of clip_stats() anew';
COMMENT ON FUNCTION clip_benchmark(text) IS 'How long each step takes here, on made-up photos and texts, with the model loaded anew
model: else clip_search.model
ms_each: milliseconds an item';
COMMENT ON FUNCTION clip_version() IS 'Version of the extension, and of ONNX Runtime once that is loaded';

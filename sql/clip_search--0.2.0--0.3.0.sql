-- From 0.2.0 to 0.3.0.

-- All tables that are altered below, at once. Writers hold them in any order, so a lock that were taken while others are
-- held could be a deadlock with one; an attempt that takes longer than half a second, less than deadlock_timeout, gives all
-- of them back.
DO $$
DECLARE
    before text := pg_catalog.current_setting('lock_timeout');
BEGIN
    FOR attempt IN 1..120 LOOP
        BEGIN
            PERFORM pg_catalog.set_config('lock_timeout', '500ms', true);
            LOCK TABLE clip_search.watch_setting, clip_search.collection_setting, clip_search.cluster_sum, clip_search.cluster_change,
                clip_search.cluster_code, clip_search.watch_queue, clip_search.watch_failure IN ACCESS EXCLUSIVE MODE;
            PERFORM pg_catalog.set_config('lock_timeout', before, true);
            RETURN;
        EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
            PERFORM pg_catalog.pg_sleep(0.1);
        END;
    END LOOP;
    RAISE EXCEPTION 'transactions that write embeddings or clusters have been open for over a minute'
        USING ERRCODE = 'lock_not_available', HINT = 'End them, and update again.';
END $$;

-- The comments that psql shows, with the texts of 0.3.0. In the types of arguments, vector is pgvector's.
SELECT pg_catalog.set_config('search_path', pg_catalog.quote_ident(n.nspname) OPERATOR(pg_catalog.||) ', pg_temp', true)
FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) e.extnamespace
WHERE e.extname OPERATOR(pg_catalog.=) 'vector';
COMMENT ON SCHEMA clip_search IS 'Views of the extension clip_search: collection, cluster, watch, pending and failure. Its tables are internal';
COMMENT ON VIEW clip_search.collection IS 'Separate sets of clusters and their settings; clip_create_collection or the first assignment to a name creates one';
COMMENT ON COLUMN clip_search.collection.name IS 'Name, as passed to clip_assign_cluster; default if none was passed';
COMMENT ON COLUMN clip_search.collection.dimensions IS 'Dimensions of the vectors';
COMMENT ON COLUMN clip_search.collection.threshold IS 'Lowest cosine at which a vector joins a cluster: the collection''s own, else clip_search.cluster_threshold';
COMMENT ON COLUMN clip_search.collection.model IS 'Model that computed the vectors, if known';
COMMENT ON COLUMN clip_search.collection.members IS 'Table that holds the members';
COMMENT ON COLUMN clip_search.collection.embedding IS 'Column of that table with the embedding';
COMMENT ON COLUMN clip_search.collection.cluster IS 'Column of that table with the cluster''s id';
COMMENT ON COLUMN clip_search.collection.key IS 'Column of that table that identifies a member';
COMMENT ON COLUMN clip_search.collection.labels IS 'Column of that table with keywords (text[])';
COMMENT ON COLUMN clip_search.collection.image IS 'Column of that table with the image file';
COMMENT ON COLUMN clip_search.collection.created_at IS 'When clip_create_collection created it; NULL if the first assignment did';
COMMENT ON VIEW clip_search.cluster IS 'Clusters of similar vectors, maintained by clip_assign_cluster and clip_recluster';
COMMENT ON COLUMN clip_search.cluster.id IS 'Id, as returned by clip_assign_cluster';
COMMENT ON COLUMN clip_search.cluster.collection IS 'Collection of the cluster';
COMMENT ON COLUMN clip_search.cluster.centroid IS 'Mean of the members, scaled to length 1';
COMMENT ON COLUMN clip_search.cluster.resultant IS 'Length of the mean of the members, which equals their mean cosine to the centroid: 1 if all are equal';
COMMENT ON COLUMN clip_search.cluster.size IS 'Number of members';
COMMENT ON COLUMN clip_search.cluster.created_at IS 'When its first member arrived';
COMMENT ON COLUMN clip_search.cluster.updated_at IS 'When a member last joined or left';
COMMENT ON TABLE clip_search.collection_setting IS 'Settings of collections, written by clip_create_collection; the view clip_search.collection shows them';
COMMENT ON TABLE clip_search.cluster_sum IS 'Sums of the members of clusters; the view clip_search.cluster shows them';
COMMENT ON COLUMN clip_search.cluster_sum.rest IS 'Remainder of that rounding';
COMMENT ON COLUMN clip_search.cluster_sum.code IS 'Binary code of the sum, as stored in cluster_code; NULL: not stored there yet, so searches read the sum';
COMMENT ON COLUMN clip_search.cluster_sum.model IS 'Model of the first vector, if known';
COMMENT ON COLUMN clip_search.cluster_sum.mark IS 'Sequence number: the order in which rows became visible to searches';
COMMENT ON TABLE clip_search.cluster_change IS 'Members that joined or left since the sums were written; the view clip_search.cluster includes them';
COMMENT ON TABLE clip_search.cluster_code IS 'Binary codes of clusters, many in a row, for nearest-neighbor search';
COMMENT ON COLUMN clip_search.cluster_code.mark IS 'Highest sequence number of the sums whose codes the row holds';
COMMENT ON SEQUENCE clip_search.cluster_id_seq IS 'Ids of clusters, and sequence numbers of sums';
COMMENT ON INDEX clip_search.collection_setting_pkey IS 'Unique names';
COMMENT ON INDEX clip_search.cluster_sum_cluster_idx IS 'Sums by cluster';
COMMENT ON INDEX clip_search.cluster_sum_collection_idx IS 'Sums by collection';
COMMENT ON INDEX clip_search.cluster_sum_recent_idx IS 'Sums without a binary code';
COMMENT ON INDEX clip_search.cluster_change_cluster_idx IS 'Changes by cluster';
COMMENT ON INDEX clip_search.cluster_code_collection_idx IS 'Binary codes by collection';
COMMENT ON FUNCTION @extschema@.clip_embed_image(bytea) IS 'Embedding of an image (JPEG, PNG, WebP, GIF, BMP, TIFF, ICO, HEIC, AVIF, JPEG XL, RAW) by clip_search.model, scaled to length 1';
COMMENT ON FUNCTION @extschema@.clip_embed_image(bytea, text) IS 'Embedding of an image file by the named model, scaled to length 1; immutable, so a generated column can use it';
COMMENT ON FUNCTION @extschema@.clip_embed_text(text) IS 'Embedding of a text by the model clip_search.model, scaled to length 1';
COMMENT ON FUNCTION @extschema@.clip_embed_text(text, text) IS 'Embedding of a text by the named model, scaled to length 1; immutable, so a generated column can use it';
COMMENT ON FUNCTION @extschema@.clip_embed_images(bytea[]) IS 'Embeddings of an array of image files, in batches; NULL elements stay NULL, and one bad file fails the call';
COMMENT ON FUNCTION @extschema@.clip_embed_images(bytea[], text) IS 'Embeddings of an array of image files by the named model, in batches; NULL elements stay NULL';
COMMENT ON FUNCTION @extschema@.clip_embed_texts(text[]) IS 'Embeddings of an array of texts, in batches; NULL elements stay NULL, and one bad text fails the call';
COMMENT ON FUNCTION @extschema@.clip_embed_texts(text[], text) IS 'Embeddings of an array of texts by the named model, in batches; NULL elements stay NULL';
COMMENT ON FUNCTION @extschema@.clip_classify(bytea, text[], text, text) IS 'Zero-shot classification of an image file, the most probable label first
labels: the labels to choose from; none may be NULL or empty
template: the text that is embedded for each label; the label replaces {}
model: defaults to clip_search.model
probability: computed with the model''s own logit scale: a softmax over the labels, or for SigLIP the sigmoid of each';
COMMENT ON FUNCTION @extschema@.clip_classify(bytea, text[], text[], text) IS 'Zero-shot classification of an image file by prompt ensembling: each label is the mean of its texts in all templates';
COMMENT ON FUNCTION @extschema@.clip_classify(vector, text[], text, text) IS 'Zero-shot classification of a stored embedding; the labels must be embedded by the model that computed it';
COMMENT ON FUNCTION @extschema@.clip_classify(vector, text[], text[], text) IS 'Zero-shot classification of a stored embedding by prompt ensembling';
COMMENT ON FUNCTION @extschema@.clip_query(text[], double precision[], bytea[], double precision[], vector[], double precision[], text) IS 'Combines texts, image files and vectors into one query: their weighted sum, scaled to length 1
Each term is scaled to length 1 before its weight applies. Weights default to 1; a negative weight moves the query away from a term.
weights: weights of the texts, one for each; image_weights: weights of the images; vector_weights: weights of the vectors
model: defaults to clip_search.model; the vectors must come from the same model';
COMMENT ON FUNCTION @extschema@.clip_diversify(vector, anyarray, vector[], integer, double precision) IS 'Chooses relevant candidates that differ from each other (maximal marginal relevance)
ids: identifiers of the candidates, of any type, in the order of their embeddings
k: the number of candidates to choose, at most
lambda: weight of relevance, from 0 to 1; the rest is the weight of difference from the candidates already chosen
score: lambda * cosine to the query - (1 - lambda) * highest cosine to a candidate already chosen';
COMMENT ON FUNCTION @extschema@.clip_assign_cluster(vector) IS 'Adds a vector to the nearest cluster of the collection default, or to a new one; returns the cluster''s id';
COMMENT ON FUNCTION @extschema@.clip_assign_cluster(vector, text) IS 'Adds a vector to the nearest cluster of a collection, or to a new one; returns the cluster''s id
The vector joins if its cosine to the centroid is at least the collection''s threshold, or clip_search.cluster_threshold if the collection has none.';
COMMENT ON FUNCTION @extschema@.clip_leave_cluster(bigint, vector) IS 'Removes a member from its cluster, and the cluster with its last member; false if the cluster does not exist
embedding: the vector that was assigned';
COMMENT ON FUNCTION @extschema@.clip_create_collection(text, double precision, integer, text, regclass, text, text, text, text, text) IS 'Creates a collection, or sets up one that an assignment created: its settings and the table of its members
threshold: lowest cosine at which a vector joins a cluster; defaults to clip_search.cluster_threshold
dimensions: dimensions of the vectors; defaults to the length of the first vector
model: model that computes the vectors; defaults to the model of the first vector, if known
members: the table of the members
embedding, cluster: its columns with the embedding (vector or halfvec) and the cluster''s id (bigint)
key: its column that identifies a member; defaults to the primary key
labels: its column with keywords (text[])
image: its column with image files (bytea), for thumbnails';
COMMENT ON FUNCTION @extschema@.clip_drop_collection(text) IS 'Drops a collection and its clusters; the members'' table is not changed';
COMMENT ON FUNCTION @extschema@.clip_recluster(text, text) IS 'Regroups all members of a collection by agglomerative clustering, updates their table and returns the changes
linkage: average, or single (a chain of similar members forms one cluster)
cluster: the cluster, which keeps the id of the cluster that most of its members come from
change: new, merged (from several whole clusters), split (a part of one) or moved (members joined or left)
sources: the clusters that the members come from
moved: the number of members that were not in this cluster before';
COMMENT ON FUNCTION @extschema@.clip_thumbnail(bytea, integer, text) IS 'Thumbnail of an image file, upright and with its aspect ratio; smaller images keep their size
edge: length of the longer side in pixels, from 1 to 4096
format: jpeg (quality 85), png or webp (lossless)';
COMMENT ON FUNCTION @extschema@.clip_models() IS 'Available models, and their use by this connection
path: directory of the model; dimensions: dimensions of its vectors, NULL while unknown
selected: whether clip_search.model names it
loaded: whether this connection has loaded the image tower (image_loaded) or the text tower (text_loaded)
images, texts: number of items that this connection has embedded';
COMMENT ON FUNCTION @extschema@.clip_check_model(text) IS 'Checks a model: its files, inputs, outputs and preprocessing, and whether it distinguishes red, green and blue
model: a name, or the absolute path of a directory
The last item is the verdict: good, or the faults.';
COMMENT ON FUNCTION @extschema@.clip_stats() IS 'Counters and timings of the embedding functions for each model
images, texts: number of items embedded; memo_hits: number of texts and images whose embedding came from the connection''s cache
errors: number of failed calls
runs: number of inferences, each of one item or a batch; loads: number of graphs loaded
load_ms, decode_ms, inference_ms: milliseconds spent on loading models, on converting image files to input, and on inference
total_ms: milliseconds of all calls
since: when counting began
shared: whether the counters cover all connections (if clip_search is in shared_preload_libraries) or this one only';
COMMENT ON FUNCTION @extschema@.clip_reset_stats() IS 'Resets the counters of clip_stats() to zero';
COMMENT ON FUNCTION @extschema@.clip_benchmark(text) IS 'Measures how long each step takes on this server, with generated photos and texts and a freshly loaded model
model: defaults to clip_search.model
ms_each: milliseconds per item';
COMMENT ON FUNCTION @extschema@.clip_version() IS 'Version of the extension, and of ONNX Runtime once it is loaded';
COMMENT ON VIEW clip_search.watch IS 'Columns that clip_watch keeps in sync, and their progress';
COMMENT ON COLUMN clip_search.watch.relation IS 'Watched table';
COMMENT ON COLUMN clip_search.watch.source IS 'Embedded column: images (bytea) or texts';
COMMENT ON COLUMN clip_search.watch.text_source IS 'Column of texts whose vectors are averaged with the images'' vectors';
COMMENT ON COLUMN clip_search.watch.text_weight IS 'Weight of the text in that average';
COMMENT ON COLUMN clip_search.watch.embedding IS 'Column that receives the embedding';
COMMENT ON COLUMN clip_search.watch.cluster IS 'Column that receives the cluster''s id, if rows are grouped';
COMMENT ON COLUMN clip_search.watch.model IS 'Model that computes the embeddings';
COMMENT ON COLUMN clip_search.watch.collection IS 'Collection of the clusters';
COMMENT ON COLUMN clip_search.watch.mode IS 'immediate: embeds when a row is written; queued: the background worker embeds';
COMMENT ON COLUMN clip_search.watch.replaces IS 'Column that clip_reembed will replace by this one';
COMMENT ON COLUMN clip_search.watch.active IS 'Whether the triggers exist and are enabled';
COMMENT ON COLUMN clip_search.watch.rows IS 'Rows of the table; NULL if the current role may not read them all';
COMMENT ON COLUMN clip_search.watch.pending IS 'Rows that still need embedding, grouping or tags, except failed rows';
COMMENT ON VIEW clip_search.pending IS 'Rows of the current role''s tables that await embedding by the background worker or by clip_backfill; a row that was deleted or got another key since is listed until its turn';
COMMENT ON COLUMN clip_search.pending.relation IS 'Watched table';
COMMENT ON COLUMN clip_search.pending.embedding IS 'Column that receives the embedding';
COMMENT ON COLUMN clip_search.pending.key IS 'Primary key of the row';
COMMENT ON COLUMN clip_search.pending.queued_at IS 'When the row was queued';
COMMENT ON COLUMN clip_search.pending.due IS 'When the next attempt is due';
COMMENT ON COLUMN clip_search.pending.attempts IS 'Number of attempts so far';
COMMENT ON COLUMN clip_search.pending.sqlstate IS 'SQLSTATE of the last error';
COMMENT ON COLUMN clip_search.pending.message IS 'Message of the last error';
COMMENT ON VIEW clip_search.failure IS 'Rows of the current role''s tables that could not be embedded; clip_retry retries them';
COMMENT ON COLUMN clip_search.failure.relation IS 'Watched table';
COMMENT ON COLUMN clip_search.failure.embedding IS 'Column that receives the embedding';
COMMENT ON COLUMN clip_search.failure.key IS 'Primary key of the row';
COMMENT ON COLUMN clip_search.failure.failed_at IS 'When the last attempt failed';
COMMENT ON COLUMN clip_search.failure.sqlstate IS 'SQLSTATE of the error';
COMMENT ON COLUMN clip_search.failure.message IS 'Message of the error';
COMMENT ON COLUMN clip_search.failure.detail IS 'Detail of the error';
COMMENT ON COLUMN clip_search.failure.attempts IS 'Number of attempts';
COMMENT ON TABLE clip_search.watch_setting IS 'Arguments of clip_watch; the view clip_search.watch shows them';
COMMENT ON TABLE clip_search.watch_queue IS 'Rows that await embedding; the view clip_search.pending shows them';
COMMENT ON TABLE clip_search.watch_failure IS 'Rows that could not be embedded; the view clip_search.failure shows them';
COMMENT ON VIEW clip_search.watch_live IS 'Watches whose triggers exist and are enabled';
COMMENT ON SEQUENCE clip_search.watch_id_seq IS 'Ids of watches';
COMMENT ON SEQUENCE clip_search.watch_queue_id_seq IS 'Ids of queue entries';
COMMENT ON INDEX clip_search.watch_setting_pkey IS 'Unique ids';
COMMENT ON INDEX clip_search.watch_setting_column_key IS 'Each column is watched at most once';
COMMENT ON INDEX clip_search.watch_queue_pkey IS 'Unique ids';
COMMENT ON INDEX clip_search.watch_queue_due_idx IS 'Entries of a watch in the order in which they are due';
COMMENT ON INDEX clip_search.watch_queue_tried_idx IS 'Entries that have been tried before';
COMMENT ON INDEX clip_search.watch_queue_watch_idx IS 'Entries by watch and row';
COMMENT ON INDEX clip_search.watch_failure_pkey IS 'Each row is listed at most once';
COMMENT ON FUNCTION @extschema@.clip_watch_row() IS 'Trigger function of watched tables';
COMMENT ON PROCEDURE @extschema@.clip_backfill(regclass, integer, text) IS 'Embeds the rows of a watched table that have no embedding, one transaction per batch
It returns when all rows that existed when it was called are embedded or listed as failed.
It can''t run inside a transaction block. It can be interrupted and called again, and run in several sessions at once.
batch: rows per transaction
embedding: the watched column; NULL: all watched columns of this table';
COMMENT ON FUNCTION clip_search.backfill_begin(regclass, text) IS 'Step of clip_backfill: queues the rows without an embedding';
COMMENT ON FUNCTION clip_search.backfill_claim(bigint, bigint, bigint, integer) IS 'Step of clip_backfill: claims the next queue entries';
COMMENT ON PROCEDURE @extschema@.clip_reembed(regclass, text, text, integer) IS 'Embeds a watched table by another model into a second column, and swaps the columns once the second is complete
It can''t run inside a transaction block. If interrupted, call it again: it resumes.
model: the new model
embedding: the watched column; NULL: the only one in this table
batch: rows per transaction';
COMMENT ON FUNCTION clip_search.reembed_begin(regclass, text, text) IS 'Step of clip_reembed: adds and watches the second column';
COMMENT ON FUNCTION clip_search.reembed_goes_on(regclass, text, text) IS 'Step of clip_reembed: whether the second column still has to be filled; false if another session has finished';
COMMENT ON FUNCTION clip_search.reembed_finish(regclass, text) IS 'Step of clip_reembed: swaps the columns; false if rows are missing';
-- Everything below is created in the extension's schema, as in a new installation.
SELECT pg_catalog.set_config('search_path', '@extschema@, ' OPERATOR(pg_catalog.||) pg_catalog.current_setting('search_path'), true);
-- End of the comments.

-- Watches: the entries of a watched table are dropped with the table; the queue is searched by table, and marks rows
-- whose vectors will be replaced; a second call of clip_watch changes the settings that it names.
DROP INDEX clip_search.watch_queue_due_idx;
CREATE INDEX watch_queue_due_idx ON clip_search.watch_queue (watch, due, id);
ALTER TABLE clip_search.watch_queue ADD COLUMN again boolean NOT NULL DEFAULT false;
ALTER TABLE clip_search.watch_queue ADD COLUMN made_by text;
CREATE INDEX watch_queue_again_idx ON clip_search.watch_queue (watch) WHERE again;
DROP FUNCTION @extschema@.clip_watch(regclass, text, text, text, text, text, text, text, text, double precision, double precision, boolean);
DROP FUNCTION @extschema@.clip_unwatch(regclass, text, boolean);
DROP FUNCTION @extschema@.clip_retry(regclass, text);
CREATE FUNCTION @extschema@.clip_watch(
	"relation" regclass,
	"source" TEXT DEFAULT NULL,
	"embedding" TEXT DEFAULT 'embedding',
	"cluster" TEXT DEFAULT NULL,
	"model" TEXT DEFAULT NULL,
	"collection" TEXT DEFAULT NULL,
	"mode" TEXT DEFAULT NULL,
	"on_error" TEXT DEFAULT NULL,
	"text_source" TEXT DEFAULT NULL,
	"text_weight" double precision DEFAULT NULL,
	"threshold" double precision DEFAULT NULL,
	"index" bool DEFAULT NULL,
	"existing" TEXT DEFAULT NULL,
	"key" TEXT DEFAULT NULL,
	"labels" TEXT DEFAULT NULL,
	"image" TEXT DEFAULT NULL,
	"tags" TEXT DEFAULT NULL,
	"reset" TEXT[] DEFAULT NULL
) RETURNS VOID
VOLATILE PARALLEL UNSAFE
LANGUAGE c
AS 'MODULE_PATHNAME', 'set_watch_wrapper';
CREATE FUNCTION @extschema@.clip_unwatch(
	"relation" regclass,
	"embedding" TEXT DEFAULT NULL,
	"keep_columns" bool DEFAULT NULL,
	"drop_columns" bool DEFAULT false
) RETURNS VOID
VOLATILE PARALLEL UNSAFE
LANGUAGE c
AS 'MODULE_PATHNAME', 'end_watch_wrapper';
CREATE FUNCTION @extschema@.clip_retry(
	"relation" regclass,
	"embedding" TEXT DEFAULT NULL,
	"sqlstate" TEXT DEFAULT NULL
) RETURNS bigint
VOLATILE PARALLEL UNSAFE  COST 1000000
LANGUAGE c
AS 'MODULE_PATHNAME', 'retry_wrapper';
CREATE FUNCTION @extschema@.clip_embed_text_for(
	"relation" regclass,
	"query" text,
	"embedding" TEXT DEFAULT NULL
) RETURNS vector
STABLE PARALLEL RESTRICTED COST 10000
LANGUAGE c
AS 'MODULE_PATHNAME', 'clip_embed_text_for_wrapper';
CREATE FUNCTION @extschema@.clip_embed_image_for(
	"relation" regclass,
	"query" bytea,
	"embedding" TEXT DEFAULT NULL
) RETURNS vector
STABLE PARALLEL RESTRICTED COST 100000
LANGUAGE c
AS 'MODULE_PATHNAME', 'clip_embed_image_for_wrapper';
CREATE FUNCTION clip_search.backfill_failed(
	"watches" bigint[]
) RETURNS bigint[]
STRICT VOLATILE PARALLEL UNSAFE
LANGUAGE c
AS 'MODULE_PATHNAME', 'backfill_failed_wrapper';
CREATE FUNCTION clip_search.backfill_left(
	"watch" bigint,
	"last" bigint
) RETURNS bigint
STRICT VOLATILE PARALLEL UNSAFE
LANGUAGE c
AS 'MODULE_PATHNAME', 'backfill_left_wrapper';
CREATE TABLE clip_search.watch_partition (
    watch    bigint NOT NULL,
    relation regclass NOT NULL,
    PRIMARY KEY (watch, relation)
);
CREATE FUNCTION clip_search.forget_dropped_tables() RETURNS VOID
STRICT VOLATILE PARALLEL UNSAFE
LANGUAGE c
AS 'MODULE_PATHNAME', 'forget_dropped_tables_wrapper';
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
CREATE OR REPLACE PROCEDURE @extschema@.clip_backfill(relation regclass, batch integer DEFAULT 16, embedding text DEFAULT NULL)
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
COMMENT ON FUNCTION @extschema@.clip_watch(regclass, text, text, text, text, text, text, text, text, double precision, double precision, boolean, text, text, text, text, text, text[]) IS 'Keeps a table''s embeddings, and optionally its clusters, in sync with a column of images or texts
Only the table''s owner can call it. It creates missing columns, index and collection; clip_backfill embeds existing rows.
A second call changes the settings that it names, and keeps the others.
source: the column of images (bytea) or texts
embedding: the column that receives the embedding, a vector or halfvec; created as a vector
cluster: the column that receives the cluster''s id; without it rows are not grouped
model: defaults to clip_search.model, in the variant NAME:auto-int8 if clip_search.precision is int8
collection: the collection of the clusters; defaults to a collection named after the table
mode: immediate (default) embeds when a row is written; queued leaves this to the background worker, and the column is NULL until it has finished
on_error: raise (default) fails the statement; skip stores the row without an embedding and lists it in clip_search.failure; in queued mode no statement fails, and the row is listed either way
text_source: a column of texts whose vectors are averaged with the images'' vectors
text_weight: weight of the text in that average, between 0 and 1; 0.5 by default
threshold: the collection''s threshold; NULL: keep its own, or use clip_search.cluster_threshold
index: whether to create an HNSW index for cosine distance
existing: vectors that the column already contains: replace (default) counts them as pending, to be embedded again; keep leaves them unchanged
key: the column that identifies a member of the collection; defaults to the primary key
labels: the column with keywords (text[]) that describe clusters; the tags describe members without keywords
image: the column with image files (bytea), for thumbnails of clusters
tags: the column that receives the tags (text[]), created if missing: the words that clip_tags(embedding, 10) rates at 0.5 or more, the most relevant first
reset: names of options to reset to their defaults, or to remove: cluster, mode, on_error, text_source, text_weight, threshold, key, labels, image, tags';
COMMENT ON FUNCTION @extschema@.clip_unwatch(regclass, text, boolean, boolean) IS 'Stops watching a table, and keeps its columns, index and collection
embedding: the watched column; NULL: the only one in this table
keep_columns: deprecated; false means drop_columns => true
drop_columns: drops the columns, index and collection that clip_watch added';
COMMENT ON FUNCTION @extschema@.clip_retry(regclass, text, text) IS 'Retries the rows of clip_search.failure; returns the number of rows that are no longer listed
embedding: the watched column; NULL: all watched columns of this table
sqlstate: retries only rows that failed with this SQLSTATE, or with a SQLSTATE of this class (its first two characters)';
COMMENT ON FUNCTION @extschema@.clip_embed_text_for(regclass, text, text) IS 'Embeds a text by the model of a watched column, to search that column
Every role that can read the table can call it.
embedding: the watched column; NULL: the only one in this table';
COMMENT ON FUNCTION @extschema@.clip_embed_image_for(regclass, bytea, text) IS 'Embeds an image by the model of a watched column, to search that column
Every role that can read the table can call it.
embedding: the watched column; NULL: the only one in this table';
COMMENT ON PROCEDURE @extschema@.clip_backfill(regclass, integer, text) IS 'Embeds the rows of a watched table that have no embedding, one transaction per batch
It returns when all rows that existed when it was called are embedded or listed as failed.
It can''t run inside a transaction block. It can be interrupted and called again, and run in several sessions at once.
batch: rows per transaction
embedding: the watched column; NULL: all watched columns of this table';
COMMENT ON FUNCTION clip_search.backfill_failed(bigint[]) IS 'Step of clip_backfill: counts the failures of each watch';
COMMENT ON FUNCTION clip_search.backfill_left(bigint, bigint) IS 'Step of clip_backfill: counts the entries that other sessions are working on';
COMMENT ON FUNCTION clip_search.forget_dropped() IS 'Event trigger: removes the extension''s entries of a dropped table';
COMMENT ON FUNCTION clip_search.forget_dropped_tables() IS 'Removes the extension''s entries of dropped tables';
COMMENT ON EVENT TRIGGER clip_search_drop IS 'Removes settings, queue, failures and groups of a watched table with the table';
COMMENT ON INDEX clip_search.watch_queue_due_idx IS 'Entries of a watch in the order in which they are due';
COMMENT ON INDEX clip_search.watch_queue_again_idx IS 'Rows whose vector will be replaced';
COMMENT ON COLUMN clip_search.watch.embedded IS 'Rows with an embedding, outdated ones included';

-- Owners of collections, and the privileges with which tables are read.
SELECT pg_catalog.set_config('search_path', pg_catalog.quote_ident(n.nspname) OPERATOR(pg_catalog.||) ', pg_temp', true)
FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) e.extnamespace
WHERE e.extname OPERATOR(pg_catalog.=) 'vector';

-- Privileges on collections; grantee 0 (-) is PUBLIC. A collection whose members are in a table belongs to that table's
-- owner. Any other collection has a row for its owner here. A collection that was created by its first assignment may
-- have several such rows, because a unique row would make transactions wait for each other.
CREATE TABLE clip_search.collection_grant (
    collection text COLLATE "C" NOT NULL,
    grantee    regrole NOT NULL,
    privilege  text COLLATE "C" NOT NULL
        CHECK (privilege OPERATOR(pg_catalog.=) ANY (ARRAY['owner', 'select', 'assign', 'recluster']))
);
CREATE INDEX collection_grant_collection_idx ON clip_search.collection_grant (collection);
ALTER TABLE clip_search.collection_grant REPLICA IDENTITY FULL;
GRANT SELECT ON clip_search.collection_grant TO pg_database_owner;
-- Omits collections whose members' table has been dropped: a dump writes the table's bare OID, which might belong to
-- another table after the restore.
SELECT pg_catalog.pg_extension_config_dump('clip_search.collection_setting',
    'WHERE members IS NULL OR EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid OPERATOR(pg_catalog.=) members::pg_catalog.oid)');
-- Omits grants to dropped roles: a dump writes the role's bare OID, which might belong to another role after the
-- restore.
SELECT pg_catalog.pg_extension_config_dump('clip_search.collection_grant',
    'WHERE grantee::pg_catalog.oid OPERATOR(pg_catalog.=) 0::pg_catalog.oid
        OR EXISTS (SELECT FROM pg_catalog.pg_roles r WHERE r.oid OPERATOR(pg_catalog.=) grantee::pg_catalog.oid)');

CREATE SEQUENCE clip_search.cluster_change_id_seq;
ALTER TABLE clip_search.cluster_change
    ADD COLUMN mark bigint NOT NULL DEFAULT pg_catalog.nextval('clip_search.cluster_change_id_seq');
DROP INDEX clip_search.cluster_change_cluster_idx;
CREATE INDEX cluster_change_cluster_idx ON clip_search.cluster_change (cluster, mark);
GRANT SELECT ON SEQUENCE clip_search.cluster_change_id_seq TO pg_database_owner;
SELECT pg_catalog.pg_extension_config_dump('clip_search.cluster_change_id_seq', '');
COMMENT ON COLUMN clip_search.cluster_change.mark IS 'Sequence number: the order in which changes were written';
COMMENT ON SEQUENCE clip_search.cluster_change_id_seq IS 'Sequence numbers of changes';
COMMENT ON INDEX clip_search.cluster_change_cluster_idx IS 'Changes by cluster';

-- A collection belongs to the owner of its members' table, or without such a table to the owner of the database, and
-- stays open.
DO $$
DECLARE
    opened text[];
BEGIN
    SELECT pg_catalog.array_agg(c.name ORDER BY c.name) INTO opened FROM clip_search.collection c
    WHERE c.name OPERATOR(pg_catalog.<>) 'default' OR EXISTS (SELECT FROM clip_search.collection_setting s WHERE s.name OPERATOR(pg_catalog.=) c.name);
    IF opened IS NULL THEN
        RETURN;
    END IF;
    INSERT INTO clip_search.collection_grant (collection, grantee, privilege)
    SELECT o.name, d.datdba, 'owner'
    FROM pg_catalog.unnest(opened) AS o (name)
    JOIN pg_catalog.pg_database d ON d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()
    WHERE NOT EXISTS (SELECT FROM clip_search.collection_setting s
                      WHERE s.name OPERATOR(pg_catalog.=) o.name AND s.members IS NOT NULL);
    INSERT INTO clip_search.collection_grant (collection, grantee, privilege)
    SELECT o.name, 0, p.name
    FROM pg_catalog.unnest(opened) AS o (name), (VALUES ('select'), ('assign'), ('recluster')) AS p (name);
    -- PostgreSQL shows only warnings of an extension's script.
    PERFORM pg_catalog.set_config('client_min_messages', 'notice', true);
    RAISE NOTICE 'every role can still see and change the clusters of % collections: %',
        pg_catalog.cardinality(opened), pg_catalog.array_to_string(opened, ', ')
        USING HINT = 'Close one with SELECT clip_revoke_collection(name, ''PUBLIC''), and clip_grant_collection to the roles that use it.';
    PERFORM pg_catalog.set_config('client_min_messages', 'warning', true);
END $$;

-- The owner of a table. Citus hides shards in pg_class, and a table of members that Citus takes over becomes a shard.
CREATE FUNCTION clip_search.owner_of(relation regclass) RETURNS oid
STRICT STABLE PARALLEL SAFE LANGUAGE c AS 'MODULE_PATHNAME', 'owner_of_wrapper';

-- The owners of collections; a role that has been dropped is replaced by the owner of the database.
CREATE VIEW clip_search.collection_owner AS
SELECT o.name, coalesce(r.oid, d.datdba)::pg_catalog.regrole AS owner
FROM (SELECT s.name, coalesce(clip_search.owner_of(s.members), g.role) AS role
      FROM clip_search.collection_setting s
      LEFT JOIN LATERAL (SELECT g.grantee::pg_catalog.oid AS role FROM clip_search.collection_grant g
                         WHERE g.collection OPERATOR(pg_catalog.=) s.name AND g.privilege OPERATOR(pg_catalog.=) 'owner'
                         LIMIT 1) AS g ON true
      UNION ALL
      SELECT g.collection, g.grantee::pg_catalog.oid FROM clip_search.collection_grant g
      WHERE g.privilege OPERATOR(pg_catalog.=) 'owner'
        AND NOT EXISTS (SELECT FROM clip_search.collection_setting s WHERE s.name OPERATOR(pg_catalog.=) g.collection)) AS o
JOIN pg_catalog.pg_database d ON d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()
LEFT JOIN pg_catalog.pg_roles r ON r.oid OPERATOR(pg_catalog.=) o.role;

-- The collections whose clusters the reader may see: its own collections, collections granted to it or to PUBLIC, and
-- default until it has settings or grants.
CREATE VIEW clip_search.collection_visible AS
SELECT o.name FROM clip_search.collection_owner o WHERE pg_catalog.pg_has_role(o.owner::pg_catalog.oid, 'USAGE')
UNION ALL
SELECT g.collection FROM clip_search.collection_grant g
WHERE g.privilege OPERATOR(pg_catalog.=) 'select'
  AND (g.grantee::pg_catalog.oid OPERATOR(pg_catalog.=) 0::pg_catalog.oid OR pg_catalog.pg_has_role(g.grantee::pg_catalog.oid, 'USAGE'))
UNION ALL
SELECT 'default' COLLATE "C"
WHERE NOT EXISTS (SELECT FROM clip_search.collection_setting s WHERE s.name OPERATOR(pg_catalog.=) 'default')
  AND NOT EXISTS (SELECT FROM clip_search.collection_grant g WHERE g.collection OPERATOR(pg_catalog.=) 'default');

-- The views that users read. The owner of the database dumps every collection, and so sees all of them.
CREATE OR REPLACE VIEW clip_search.cluster WITH (security_barrier = true) AS
SELECT cluster AS id, collection, l2_normalize(sum(sum)) AS centroid,
       least(vector_norm(sum(sum)) OPERATOR(pg_catalog./) pg_catalog.sum(size)::double precision, 1) AS resultant,
       pg_catalog.sum(size)::bigint AS size, pg_catalog.min(made_at) AS created_at, pg_catalog.max(updated_at) AS updated_at
FROM (SELECT cluster, collection, size, sum, made_at, updated_at FROM clip_search.cluster_sum
      UNION ALL
      SELECT cluster, collection, size, sum, made_at, made_at FROM clip_search.cluster_change) AS part
WHERE (SELECT pg_catalog.pg_has_role(d.datdba, 'USAGE') FROM pg_catalog.pg_database d
       WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database())
   OR collection IN (SELECT v.name FROM clip_search.collection_visible v)
GROUP BY cluster, collection HAVING pg_catalog.sum(size) OPERATOR(pg_catalog.>) 0;

-- The first assignment to a name creates a collection without a row here; clip_create_collection stores a row. A skip
-- scan of the index finds the names without a row.
CREATE OR REPLACE VIEW clip_search.collection WITH (security_barrier = true) AS
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
       -- The setting is undefined in a session that has not loaded the library yet: use its default.
       coalesce(setting.threshold,
                CASE WHEN pg_catalog.current_setting('clip_search.cluster_threshold', true) OPERATOR(pg_catalog.<>) ''
                     THEN pg_catalog.current_setting('clip_search.cluster_threshold', true)::double precision END,
                0.82) AS threshold,
       coalesce(setting.model, (SELECT s.model FROM clip_search.cluster_sum s
                                WHERE s.collection OPERATOR(pg_catalog.=) used.collection ORDER BY s.cluster LIMIT 1)) AS model,
       setting.members, setting.embedding, setting.cluster, setting.key, setting.labels, setting.image, setting.created_at,
       coalesce((SELECT o.owner FROM clip_search.collection_owner o
                 WHERE o.name OPERATOR(pg_catalog.=) coalesce(setting.name, used.collection) LIMIT 1),
                d.datdba::pg_catalog.regrole) AS owner
FROM clip_search.collection_setting AS setting
FULL JOIN (SELECT collection FROM used WHERE collection IS NOT NULL) AS used ON used.collection OPERATOR(pg_catalog.=) setting.name
JOIN pg_catalog.pg_database d ON d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()
WHERE pg_catalog.pg_has_role(d.datdba, 'USAGE')
   OR coalesce(setting.name, used.collection) IN (SELECT v.name FROM clip_search.collection_visible v);

COMMENT ON COLUMN clip_search.collection.owner IS 'Role that owns it';
COMMENT ON TABLE clip_search.collection_grant IS 'Privileges on collections, written by clip_grant_collection and clip_revoke_collection';
COMMENT ON COLUMN clip_search.collection_grant.grantee IS 'Role; 0 (-) for PUBLIC';
COMMENT ON COLUMN clip_search.collection_grant.privilege IS 'select, assign or recluster; owner for collections without a table of members';
COMMENT ON VIEW clip_search.collection_owner IS 'Owners of collections';
COMMENT ON VIEW clip_search.collection_visible IS 'Collections whose clusters the current role may see';
COMMENT ON INDEX clip_search.collection_grant_collection_idx IS 'Grants by collection';

-- These functions check the caller's privileges before they use the extension's.
ALTER FUNCTION @extschema@.clip_assign_cluster(vector) SECURITY INVOKER RESET ALL;
ALTER FUNCTION @extschema@.clip_assign_cluster(vector, text) SECURITY INVOKER RESET ALL;
ALTER FUNCTION @extschema@.clip_leave_cluster(bigint, vector) SECURITY INVOKER RESET ALL;

-- Recreated, to remove every trace of the former restriction to some roles.
DROP FUNCTION @extschema@.clip_create_collection(text, double precision, integer, text, regclass, text, text, text, text, text);
CREATE FUNCTION @extschema@.clip_create_collection(collection text, threshold double precision DEFAULT NULL, dimensions integer DEFAULT NULL,
    model text DEFAULT NULL, members regclass DEFAULT NULL, embedding text DEFAULT 'embedding', cluster text DEFAULT 'cluster_id',
    key text DEFAULT NULL, labels text DEFAULT NULL, image text DEFAULT NULL) RETURNS void
VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'clip_create_collection_wrapper';
DROP FUNCTION @extschema@.clip_drop_collection(text);
CREATE FUNCTION @extschema@.clip_drop_collection(collection text) RETURNS void
STRICT VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'clip_drop_collection_wrapper';
COMMENT ON FUNCTION @extschema@.clip_create_collection(text, double precision, integer, text, regclass, text, text, text, text, text) IS 'Creates a collection, or sets up one that an assignment created: its settings and the table of its members
threshold: lowest cosine at which a vector joins a cluster; defaults to clip_search.cluster_threshold
dimensions: dimensions of the vectors; defaults to the length of the first vector
model: model that computes the vectors; defaults to the model of the first vector, if known
members: the table of the members
embedding, cluster: its columns with the embedding (vector or halfvec) and the cluster''s id (bigint)
key: its column that identifies a member; defaults to the primary key
labels: its column with keywords (text[])
image: its column with image files (bytea), for thumbnails';
COMMENT ON FUNCTION @extschema@.clip_drop_collection(text) IS 'Drops a collection and its clusters; the members'' table is not changed';

-- The key of a row of any table, as results return it. A function has one result type and tables have keys of many, so a
-- key is text that compares with each of them: photo.id = representative looks up an index on a bigint or a uuid. It is
-- stored as text, and sorts by its bytes. It has no collation: PostgreSQL 15 fails at a foreign key between a column that has
-- one and a bigint (XX000, cache lookup failed for collation 0). Casts are functions, since a foreign key takes no others.
CREATE TYPE @extschema@.clip_key;
CREATE FUNCTION clip_search.key_in(cstring) RETURNS @extschema@.clip_key IMMUTABLE STRICT PARALLEL SAFE LANGUAGE internal AS 'textin';
CREATE FUNCTION clip_search.key_out(@extschema@.clip_key) RETURNS cstring IMMUTABLE STRICT PARALLEL SAFE LANGUAGE internal AS 'textout';
CREATE FUNCTION clip_search.key_recv(internal) RETURNS @extschema@.clip_key STABLE STRICT PARALLEL SAFE LANGUAGE internal AS 'textrecv';
CREATE FUNCTION clip_search.key_send(@extschema@.clip_key) RETURNS bytea STABLE STRICT PARALLEL SAFE LANGUAGE internal AS 'textsend';
CREATE TYPE @extschema@.clip_key (
    INPUT = clip_search.key_in,
    OUTPUT = clip_search.key_out,
    RECEIVE = clip_search.key_recv,
    SEND = clip_search.key_send,
    LIKE = pg_catalog.text,
    CATEGORY = 'S'
);

CREATE FUNCTION clip_search.key_to_bigint(@extschema@.clip_key) RETURNS pg_catalog.int8
IMMUTABLE STRICT PARALLEL SAFE LANGUAGE sql AS 'SELECT $1::pg_catalog.text::pg_catalog.int8';
CREATE FUNCTION clip_search.key_to_numeric(@extschema@.clip_key) RETURNS pg_catalog.numeric
IMMUTABLE STRICT PARALLEL SAFE LANGUAGE sql AS 'SELECT $1::pg_catalog.text::pg_catalog.numeric';
CREATE FUNCTION clip_search.key_to_uuid(@extschema@.clip_key) RETURNS pg_catalog.uuid
IMMUTABLE STRICT PARALLEL SAFE LANGUAGE sql AS 'SELECT $1::pg_catalog.text::pg_catalog.uuid';
CREATE CAST (@extschema@.clip_key AS pg_catalog.text) WITHOUT FUNCTION AS IMPLICIT;
CREATE CAST (@extschema@.clip_key AS pg_catalog.varchar) WITHOUT FUNCTION AS IMPLICIT;
CREATE CAST (@extschema@.clip_key AS pg_catalog.bpchar) WITHOUT FUNCTION AS IMPLICIT;
CREATE CAST (pg_catalog.text AS @extschema@.clip_key) WITHOUT FUNCTION AS ASSIGNMENT;
CREATE CAST (@extschema@.clip_key AS pg_catalog.int8) WITH FUNCTION clip_search.key_to_bigint(@extschema@.clip_key) AS IMPLICIT;
CREATE CAST (@extschema@.clip_key AS pg_catalog.numeric) WITH FUNCTION clip_search.key_to_numeric(@extschema@.clip_key) AS IMPLICIT;
CREATE CAST (@extschema@.clip_key AS pg_catalog.uuid) WITH FUNCTION clip_search.key_to_uuid(@extschema@.clip_key) AS IMPLICIT;
-- Comparisons with these go by bigint.
CREATE CAST (@extschema@.clip_key AS pg_catalog.int4) WITH INOUT AS ASSIGNMENT;
CREATE CAST (@extschema@.clip_key AS pg_catalog.int2) WITH INOUT AS ASSIGNMENT;

CREATE FUNCTION clip_search.key_eq(@extschema@.clip_key, @extschema@.clip_key) RETURNS boolean IMMUTABLE STRICT LEAKPROOF PARALLEL SAFE LANGUAGE internal AS 'byteaeq';
CREATE FUNCTION clip_search.key_ne(@extschema@.clip_key, @extschema@.clip_key) RETURNS boolean IMMUTABLE STRICT LEAKPROOF PARALLEL SAFE LANGUAGE internal AS 'byteane';
CREATE FUNCTION clip_search.key_lt(@extschema@.clip_key, @extschema@.clip_key) RETURNS boolean IMMUTABLE STRICT LEAKPROOF PARALLEL SAFE LANGUAGE internal AS 'bytealt';
CREATE FUNCTION clip_search.key_le(@extschema@.clip_key, @extschema@.clip_key) RETURNS boolean IMMUTABLE STRICT LEAKPROOF PARALLEL SAFE LANGUAGE internal AS 'byteale';
CREATE FUNCTION clip_search.key_gt(@extschema@.clip_key, @extschema@.clip_key) RETURNS boolean IMMUTABLE STRICT LEAKPROOF PARALLEL SAFE LANGUAGE internal AS 'byteagt';
CREATE FUNCTION clip_search.key_ge(@extschema@.clip_key, @extschema@.clip_key) RETURNS boolean IMMUTABLE STRICT LEAKPROOF PARALLEL SAFE LANGUAGE internal AS 'byteage';
CREATE FUNCTION clip_search.key_cmp(@extschema@.clip_key, @extschema@.clip_key) RETURNS integer IMMUTABLE STRICT LEAKPROOF PARALLEL SAFE LANGUAGE internal AS 'byteacmp';
CREATE FUNCTION clip_search.key_hash(@extschema@.clip_key) RETURNS integer IMMUTABLE STRICT PARALLEL SAFE LANGUAGE internal AS 'hashvarlena';
CREATE FUNCTION clip_search.key_hash_extended(@extschema@.clip_key, bigint) RETURNS bigint IMMUTABLE STRICT PARALLEL SAFE LANGUAGE internal AS 'hashvarlenaextended';
CREATE OPERATOR @extschema@.= (FUNCTION = clip_search.key_eq, LEFTARG = @extschema@.clip_key, RIGHTARG = @extschema@.clip_key,
    COMMUTATOR = OPERATOR(@extschema@.=), NEGATOR = OPERATOR(@extschema@.<>), RESTRICT = eqsel, JOIN = eqjoinsel, HASHES, MERGES);
CREATE OPERATOR @extschema@.<> (FUNCTION = clip_search.key_ne, LEFTARG = @extschema@.clip_key, RIGHTARG = @extschema@.clip_key,
    COMMUTATOR = OPERATOR(@extschema@.<>), NEGATOR = OPERATOR(@extschema@.=), RESTRICT = neqsel, JOIN = neqjoinsel);
CREATE OPERATOR @extschema@.< (FUNCTION = clip_search.key_lt, LEFTARG = @extschema@.clip_key, RIGHTARG = @extschema@.clip_key,
    COMMUTATOR = OPERATOR(@extschema@.>), NEGATOR = OPERATOR(@extschema@.>=), RESTRICT = scalarltsel, JOIN = scalarltjoinsel);
CREATE OPERATOR @extschema@.<= (FUNCTION = clip_search.key_le, LEFTARG = @extschema@.clip_key, RIGHTARG = @extschema@.clip_key,
    COMMUTATOR = OPERATOR(@extschema@.>=), NEGATOR = OPERATOR(@extschema@.>), RESTRICT = scalarlesel, JOIN = scalarlejoinsel);
CREATE OPERATOR @extschema@.> (FUNCTION = clip_search.key_gt, LEFTARG = @extschema@.clip_key, RIGHTARG = @extschema@.clip_key,
    COMMUTATOR = OPERATOR(@extschema@.<), NEGATOR = OPERATOR(@extschema@.<=), RESTRICT = scalargtsel, JOIN = scalargtjoinsel);
CREATE OPERATOR @extschema@.>= (FUNCTION = clip_search.key_ge, LEFTARG = @extschema@.clip_key, RIGHTARG = @extschema@.clip_key,
    COMMUTATOR = OPERATOR(@extschema@.<=), NEGATOR = OPERATOR(@extschema@.<), RESTRICT = scalargesel, JOIN = scalargejoinsel);
CREATE OPERATOR CLASS @extschema@.clip_key_ops DEFAULT FOR TYPE @extschema@.clip_key USING btree AS
    OPERATOR 1 @extschema@.<(@extschema@.clip_key, @extschema@.clip_key), OPERATOR 2 @extschema@.<=(@extschema@.clip_key, @extschema@.clip_key), OPERATOR 3 @extschema@.=(@extschema@.clip_key, @extschema@.clip_key), OPERATOR 4 @extschema@.>=(@extschema@.clip_key, @extschema@.clip_key), OPERATOR 5 @extschema@.>(@extschema@.clip_key, @extschema@.clip_key),
    FUNCTION 1 clip_search.key_cmp(@extschema@.clip_key, @extschema@.clip_key);
CREATE OPERATOR CLASS @extschema@.clip_key_ops DEFAULT FOR TYPE @extschema@.clip_key USING hash AS
    OPERATOR 1 @extschema@.=(@extschema@.clip_key, @extschema@.clip_key), FUNCTION 1 clip_search.key_hash(@extschema@.clip_key), FUNCTION 2 clip_search.key_hash_extended(@extschema@.clip_key, bigint);
COMMENT ON TYPE @extschema@.clip_key IS 'Key of a row, as text
It compares without a cast with columns of integers, numeric, uuid and character types, and uses their indexes. It sorts by its bytes; cast it to sort numbers. Columns of other types need a cast: photo.day = representative::date.
Drivers do not know the type: select representative::text, or join.';
COMMENT ON FUNCTION clip_search.key_in(cstring) IS 'Input of clip_key';
COMMENT ON FUNCTION clip_search.key_out(@extschema@.clip_key) IS 'Output of clip_key';
COMMENT ON FUNCTION clip_search.key_recv(internal) IS 'Binary input of clip_key';
COMMENT ON FUNCTION clip_search.key_send(@extschema@.clip_key) IS 'Binary output of clip_key';
COMMENT ON FUNCTION clip_search.key_to_bigint(@extschema@.clip_key) IS 'Cast of clip_key';
COMMENT ON FUNCTION clip_search.key_to_numeric(@extschema@.clip_key) IS 'Cast of clip_key';
COMMENT ON FUNCTION clip_search.key_to_uuid(@extschema@.clip_key) IS 'Cast of clip_key';
COMMENT ON CAST (@extschema@.clip_key AS pg_catalog.text) IS 'A key is its text';
COMMENT ON CAST (@extschema@.clip_key AS pg_catalog.varchar) IS 'A key is its text';
COMMENT ON CAST (@extschema@.clip_key AS pg_catalog.bpchar) IS 'A key is its text';
COMMENT ON CAST (pg_catalog.text AS @extschema@.clip_key) IS 'Text of a key';
COMMENT ON CAST (@extschema@.clip_key AS pg_catalog.int8) IS 'Key of an integer column';
COMMENT ON CAST (@extschema@.clip_key AS pg_catalog.numeric) IS 'Key of a numeric column';
COMMENT ON CAST (@extschema@.clip_key AS pg_catalog.uuid) IS 'Key of a uuid column';
COMMENT ON CAST (@extschema@.clip_key AS pg_catalog.int4) IS 'Key for an integer column';
COMMENT ON CAST (@extschema@.clip_key AS pg_catalog.int2) IS 'Key for a smallint column';
COMMENT ON FUNCTION clip_search.key_eq(@extschema@.clip_key, @extschema@.clip_key) IS 'Operator = of clip_key';
COMMENT ON FUNCTION clip_search.key_ne(@extschema@.clip_key, @extschema@.clip_key) IS 'Operator <> of clip_key';
COMMENT ON FUNCTION clip_search.key_lt(@extschema@.clip_key, @extschema@.clip_key) IS 'Operator < of clip_key';
COMMENT ON FUNCTION clip_search.key_le(@extschema@.clip_key, @extschema@.clip_key) IS 'Operator <= of clip_key';
COMMENT ON FUNCTION clip_search.key_gt(@extschema@.clip_key, @extschema@.clip_key) IS 'Operator > of clip_key';
COMMENT ON FUNCTION clip_search.key_ge(@extschema@.clip_key, @extschema@.clip_key) IS 'Operator >= of clip_key';
COMMENT ON FUNCTION clip_search.key_cmp(@extschema@.clip_key, @extschema@.clip_key) IS 'Order of clip_key';
COMMENT ON FUNCTION clip_search.key_hash(@extschema@.clip_key) IS 'Hash of clip_key';
COMMENT ON FUNCTION clip_search.key_hash_extended(@extschema@.clip_key, bigint) IS 'Seeded hash of clip_key';
COMMENT ON OPERATOR @extschema@.= (@extschema@.clip_key, @extschema@.clip_key) IS 'equal, by bytes';
COMMENT ON OPERATOR @extschema@.<> (@extschema@.clip_key, @extschema@.clip_key) IS 'not equal, by bytes';
COMMENT ON OPERATOR @extschema@.< (@extschema@.clip_key, @extschema@.clip_key) IS 'less, by bytes';
COMMENT ON OPERATOR @extschema@.<= (@extschema@.clip_key, @extschema@.clip_key) IS 'less or equal, by bytes';
COMMENT ON OPERATOR @extschema@.> (@extschema@.clip_key, @extschema@.clip_key) IS 'greater, by bytes';
COMMENT ON OPERATOR @extschema@.>= (@extschema@.clip_key, @extschema@.clip_key) IS 'greater or equal, by bytes';
COMMENT ON OPERATOR CLASS @extschema@.clip_key_ops USING btree IS 'Keys by their bytes';
COMMENT ON OPERATOR FAMILY @extschema@.clip_key_ops USING btree IS 'Keys by their bytes';
COMMENT ON OPERATOR CLASS @extschema@.clip_key_ops USING hash IS 'Keys by their bytes';
COMMENT ON OPERATOR FAMILY @extschema@.clip_key_ops USING hash IS 'Keys by their bytes';

DROP FUNCTION @extschema@.clip_clusters(text, bigint);
CREATE FUNCTION @extschema@.clip_clusters(collection text, min_size bigint DEFAULT 2, members regclass DEFAULT NULL)
RETURNS TABLE (id bigint, size bigint, centroid vector, representative @extschema@.clip_key, cohesion double precision, lowest double precision, labels text[])
STABLE PARALLEL RESTRICTED COST 10000 LANGUAGE c AS 'MODULE_PATHNAME', 'clip_clusters_of_wrapper';
DROP FUNCTION @extschema@.clip_cluster_groups(text, bigint);
CREATE FUNCTION @extschema@.clip_cluster_groups(collection text, min_size bigint DEFAULT 2, members regclass DEFAULT NULL) RETURNS jsonb
STABLE PARALLEL RESTRICTED COST 10000 LANGUAGE c AS 'MODULE_PATHNAME', 'clip_cluster_groups_of_wrapper';
DROP FUNCTION @extschema@.clip_duplicates(text, double precision);
CREATE FUNCTION @extschema@.clip_duplicates(collection text, threshold double precision DEFAULT 0.99, members regclass DEFAULT NULL)
RETURNS TABLE (original @extschema@.clip_key, duplicate @extschema@.clip_key, cosine double precision)
STABLE PARALLEL RESTRICTED COST 100000 LANGUAGE c AS 'MODULE_PATHNAME', 'clip_duplicates_of_wrapper';
CREATE FUNCTION @extschema@.clip_alter_collection(collection text, owner text DEFAULT NULL, threshold double precision DEFAULT NULL,
    model text DEFAULT NULL, key text DEFAULT NULL, labels text DEFAULT NULL, image text DEFAULT NULL) RETURNS void
VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'clip_alter_collection_wrapper';
CREATE FUNCTION @extschema@.clip_grant_collection(collection text, role text, privilege text DEFAULT 'all') RETURNS void
VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'clip_grant_collection_wrapper';
CREATE FUNCTION @extschema@.clip_revoke_collection(collection text, role text, privilege text DEFAULT 'all') RETURNS void
VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'clip_revoke_collection_wrapper';
CREATE FUNCTION @extschema@.clip_has_collection_privilege(collection text, privilege text) RETURNS boolean
STRICT STABLE PARALLEL RESTRICTED LANGUAGE c AS 'MODULE_PATHNAME', 'clip_has_collection_privilege_wrapper';
CREATE FUNCTION clip_search.count_rows(relation regclass, sources text[], embedding text, cluster text, tags text)
RETURNS TABLE (rows bigint, embedded bigint, open bigint)
STABLE PARALLEL UNSAFE COST 100000 LANGUAGE c AS 'MODULE_PATHNAME', 'count_rows_wrapper';
CREATE FUNCTION clip_search.watch_progress(relation regclass, image name, text name, embedding name, cluster name, tags name,
                                           OUT rows bigint, OUT embedded bigint, OUT open bigint)
LANGUAGE sql STABLE PARALLEL UNSAFE COST 100000 SET search_path = pg_catalog, pg_temp AS $$
    SELECT c.rows, c.embedded, c.open
    FROM clip_search.count_rows(relation, ARRAY[image::text, text::text], embedding::text, cluster::text, tags::text) AS c
$$;
-- A watch may keep a column of tags.
ALTER TABLE clip_search.watch_setting ADD COLUMN tags name;
-- Distributed tables of Citus.
ALTER TABLE clip_search.watch_setting ADD COLUMN home jsonb;
CREATE FUNCTION @extschema@.clip_group(relation regclass, most integer DEFAULT 10000, embedding text DEFAULT NULL) RETURNS bigint
VOLATILE PARALLEL UNSAFE COST 1000000 LANGUAGE c AS 'MODULE_PATHNAME', 'clip_group_wrapper';
CREATE FUNCTION clip_search.adopt_shard(trigger oid) RETURNS VOID
STRICT VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'adopt_shard_wrapper';
CREATE FUNCTION clip_search.is_placed_here(relation regclass) RETURNS boolean
STRICT VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'is_placed_here_wrapper';
CREATE FUNCTION clip_search.distributed_table(relation regclass) RETURNS oid
STRICT VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'distributed_table_wrapper';
CREATE FUNCTION clip_search.shards_here(parent bigint, distributed regclass) RETURNS TABLE (watch bigint, relation oid, embedding text)
STRICT VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'shards_here_wrapper';
CREATE FUNCTION clip_search.forget_rows(shard regclass) RETURNS boolean
STRICT VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'forget_rows_wrapper';
CREATE FUNCTION clip_search.distributed_watches(relation regclass, embedding text) RETURNS bigint[]
VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'distributed_watches_wrapper';
CREATE FUNCTION clip_search.is_owned(relation regclass) RETURNS boolean
STRICT STABLE PARALLEL SAFE LANGUAGE c AS 'MODULE_PATHNAME', 'is_owned_wrapper';
CREATE FUNCTION clip_search.shown_as(relation regclass) RETURNS regclass
STRICT STABLE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'shown_as_wrapper';
-- Watches whose triggers exist and are enabled. The triggers are missing during a restore, or if a role dropped them.
CREATE OR REPLACE VIEW clip_search.watch_live AS
SELECT w.id, w.relation
FROM clip_search.watch_setting w
CROSS JOIN LATERAL (SELECT pg_catalog.convert_to(coalesce(w.home OPERATOR(pg_catalog.->>) 'parent', w.id::pg_catalog.text), 'UTF8') AS id) AS i
WHERE EXISTS (SELECT FROM pg_catalog.pg_trigger t
              WHERE t.tgrelid OPERATOR(pg_catalog.=) w.relation::pg_catalog.oid AND NOT t.tgisinternal
                AND t.tgfoid OPERATOR(pg_catalog.=) '@extschema@.clip_watch_row()'::pg_catalog.regprocedure::pg_catalog.oid
                AND t.tgenabled OPERATOR(pg_catalog.<>) 'D'
                -- The first argument; a shard's trigger has the distributed table's watch.
                AND pg_catalog.substr(t.tgargs, 1, pg_catalog.length(i.id) OPERATOR(pg_catalog.+) 1) OPERATOR(pg_catalog.=)
                    (i.id OPERATOR(pg_catalog.||) pg_catalog.decode('00', 'hex')));

-- What the servers of a distributed table of Citus answer to a question about its shards. They are asked as the reader. The cost of these
-- functions is the default: the views below name them for every watch, and with their true cost PostgreSQL would compile each query (JIT) for a second.
-- The search_path of the servers' connections is the reader's, so every name in a question is qualified.
CREATE FUNCTION clip_search.ask_servers(question text) RETURNS SETOF jsonb
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE ROWS 10 SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN QUERY SELECT CASE WHEN a.success THEN a.result::jsonb END
                 FROM run_command_on_all_nodes(question, give_warning_for_connection_errors => true) AS a;
END $$;

-- The sums over the shards of a distributed table; NULL where a server does not answer or the reader may not read it.
-- The servers know the watch by its number and its table: each role may give a trigger on its own table any number.
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

CREATE OR REPLACE VIEW clip_search.watch WITH (security_barrier = true) AS
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

-- Keys and messages reveal data of rows, so only the table's owner sees them.
-- The union stands in a subquery: conditions are pushed into the branches of a view that is a UNION ALL, although it is a
-- security barrier.
CREATE OR REPLACE VIEW clip_search.pending WITH (security_barrier = true) AS
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

CREATE OR REPLACE VIEW clip_search.failure WITH (security_barrier = true) AS
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

-- The shards of this server, for the functions above, which the coordinator calls.
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

-- Runs a command on the servers of Citus, as the caller, each in transactions of its own. An error on one doesn't keep the
-- others from it. The table's name, which a server looks up by itself, takes the place of %L.
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

-- CREATE TRIGGER on a shard brings the settings of clip_watch there.
CREATE FUNCTION clip_search.follow_shards() RETURNS event_trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM clip_search.adopt_shard(c.objid) FROM pg_event_trigger_ddl_commands() AS c WHERE c.classid = 'pg_trigger'::regclass;
END $$;
CREATE EVENT TRIGGER clip_search_shard ON ddl_command_end WHEN TAG IN ('CREATE TRIGGER')
    EXECUTE FUNCTION clip_search.follow_shards();

-- A server's part of clip_backfill of a distributed table: its shards, one after another.
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

GRANT SELECT ON clip_search.shard_progress, clip_search.shard_queue, clip_search.shard_failure TO PUBLIC;
COMMENT ON COLUMN clip_search.watch_setting.home IS 'For distributed tables of Citus and their shards: the watch of the distributed table, the column of clusters, the table of departures';
COMMENT ON FUNCTION @extschema@.clip_group(regclass, integer, text) IS 'Brings the groups of a distributed table of Citus up to date; returns the number of rows assigned
Rows that changed or left are taken out of their groups, then rows without a group are assigned.
Call it on the coordinator until it returns 0, or every minute.
most: rows that are taken out at most, and as many that are assigned
embedding: the watched column; NULL: all watched columns of this table';
COMMENT ON FUNCTION clip_search.ask_servers(text) IS 'Asks the servers of Citus about the shards of watched tables';
COMMENT ON FUNCTION clip_search.on_servers(text, regclass) IS 'Runs a command on the servers of Citus, as the caller';
COMMENT ON FUNCTION clip_search.shard_totals(bigint, regclass) IS 'Sums of clip_search.shard_progress over the servers of a distributed table';
COMMENT ON FUNCTION clip_search.shard_failures(bigint, regclass) IS 'Failed rows of the shards of a distributed table';
COMMENT ON FUNCTION clip_search.shard_pending(bigint, regclass) IS 'Queued rows of the shards of a distributed table';
COMMENT ON FUNCTION clip_search.shards_here(bigint, regclass) IS 'Shards of a distributed table that this server has, for their owner';
COMMENT ON FUNCTION clip_search.retry_here(bigint, regclass, text) IS 'A server''s part of clip_retry of a distributed table';
COMMENT ON PROCEDURE clip_search.backfill_here(bigint, regclass, integer) IS 'A server''s part of clip_backfill of a distributed table';
COMMENT ON FUNCTION clip_search.distributed_watches(regclass, text) IS 'Step of clip_backfill: the watches of a distributed table';
COMMENT ON FUNCTION clip_search.forget_rows(regclass) IS 'Removes queue and failures of a shard whose rows TRUNCATE removes';
COMMENT ON FUNCTION clip_search.adopt_shard(oid) IS 'Stores the settings that a trigger of clip_watch has brought to a shard';
COMMENT ON FUNCTION clip_search.is_placed_here(regclass) IS 'Whether Citus sends queries on a shard to this server';
COMMENT ON FUNCTION clip_search.is_owned(regclass) IS 'Whether the current role has the privileges of a table''s owner';
COMMENT ON FUNCTION clip_search.shown_as(regclass) IS 'The table that users name: of a shard of a table that Citus keeps on the coordinator, that table; otherwise the same';
COMMENT ON FUNCTION clip_search.distributed_table(regclass) IS 'The distributed table of a shard';
COMMENT ON FUNCTION clip_search.owner_of(regclass) IS 'The owner of a table, also of a shard, which Citus hides in pg_class';
COMMENT ON COLUMN clip_search.shard_progress.distributed IS 'The distributed table';
COMMENT ON COLUMN clip_search.shard_queue.distributed IS 'The distributed table';
COMMENT ON COLUMN clip_search.shard_failure.distributed IS 'The distributed table';
COMMENT ON FUNCTION clip_search.follow_shards() IS 'Event trigger: takes up the settings of clip_watch on shards of Citus';
COMMENT ON EVENT TRIGGER clip_search_shard IS 'Keeps shards of distributed tables watched, also where Citus moves them';
COMMENT ON VIEW clip_search.shard_progress IS 'Progress of the watched shards of this server, which clip_search.watch sums up on the coordinator';
COMMENT ON VIEW clip_search.shard_queue IS 'Queued rows of the watched shards of this server, which clip_search.pending shows on the coordinator';
COMMENT ON VIEW clip_search.shard_failure IS 'Failed rows of the watched shards of this server, which clip_search.failure shows on the coordinator';
COMMENT ON COLUMN clip_search.shard_progress.parent IS 'The distributed table''s watch';
COMMENT ON COLUMN clip_search.shard_progress.relation IS 'Shard';
COMMENT ON COLUMN clip_search.shard_progress.rows IS 'Rows of the shard; NULL if the current role may not read them all';
COMMENT ON COLUMN clip_search.shard_progress.embedded IS 'Rows with an embedding';
COMMENT ON COLUMN clip_search.shard_progress.pending IS 'Rows that still need embedding or tags, except failed rows';
COMMENT ON COLUMN clip_search.shard_progress.failed IS 'Rows that could not be embedded';
COMMENT ON COLUMN clip_search.shard_progress.outdated IS 'Rows whose embedding will be replaced';
COMMENT ON COLUMN clip_search.shard_queue.parent IS 'The distributed table''s watch';
COMMENT ON COLUMN clip_search.shard_queue.relation IS 'Shard';
COMMENT ON COLUMN clip_search.shard_queue.key IS 'Primary key of the row';
COMMENT ON COLUMN clip_search.shard_queue.queued_at IS 'When the row was queued';
COMMENT ON COLUMN clip_search.shard_queue.due IS 'When the next attempt is due';
COMMENT ON COLUMN clip_search.shard_queue.attempts IS 'Number of attempts so far';
COMMENT ON COLUMN clip_search.shard_queue.sqlstate IS 'SQLSTATE of the last attempt''s error';
COMMENT ON COLUMN clip_search.shard_queue.message IS 'Message of that error';
COMMENT ON COLUMN clip_search.shard_failure.parent IS 'The distributed table''s watch';
COMMENT ON COLUMN clip_search.shard_failure.relation IS 'Shard';
COMMENT ON COLUMN clip_search.shard_failure.key IS 'Primary key of the row';
COMMENT ON COLUMN clip_search.shard_failure.failed_at IS 'When the last attempt failed';
COMMENT ON COLUMN clip_search.shard_failure.sqlstate IS 'SQLSTATE of the error';
COMMENT ON COLUMN clip_search.shard_failure.message IS 'Message of the error';
COMMENT ON COLUMN clip_search.shard_failure.detail IS 'Its DETAIL';
COMMENT ON COLUMN clip_search.shard_failure.attempts IS 'Number of attempts';
DROP FUNCTION clip_search.watch_progress(regclass, name, name, name, name);
COMMENT ON COLUMN clip_search.watch.models IS 'Number of rows with an embedding of each model, as a JSON object; "(unknown)" counts vectors from before the watch';
COMMENT ON COLUMN clip_search.watch.outdated IS 'Rows whose embedding is older than the watch, or was computed with an earlier source, weight or model; they count as pending';
COMMENT ON COLUMN clip_search.watch.tags IS 'Column that receives the tags, if rows are tagged';

COMMENT ON FUNCTION @extschema@.clip_alter_collection(text, text, double precision, text, text, text, text) IS 'Changes the passed settings of a collection, and no others; only its owner can call it
owner: a role that the caller is a member of, and that owns the members'' table
threshold: lowest cosine at which a vector joins a cluster
model: model that computes the vectors
key: column that identifies a member; labels: column with keywords (text[]); image: column with image files (bytea)';
COMMENT ON FUNCTION @extschema@.clip_grant_collection(text, text, text) IS 'Grants a role, or PUBLIC, privileges on a collection; only its owner can call it
privilege: select (see clusters and reports), assign (join and leave), recluster, or all';
COMMENT ON FUNCTION @extschema@.clip_revoke_collection(text, text, text) IS 'Revokes privileges on a collection from a role, or from PUBLIC; only its owner can call it
privilege: select, assign, recluster or all';
COMMENT ON FUNCTION @extschema@.clip_has_collection_privilege(text, text) IS 'Whether the current role has a privilege on a collection
privilege: select, assign, recluster, all or owner';
COMMENT ON FUNCTION @extschema@.clip_clusters(text, bigint, regclass) IS 'Clusters of a collection with at least min_size members, largest first
representative: key of the member nearest to the centroid
cohesion: mean cosine of the members to the centroid; lowest: the lowest such cosine
labels: the five most characteristic keywords
members: the members'' table; name it if row-level policies apply to you, or if the members are in a view
If the collection has no members'' table, representative, lowest and labels are NULL.';
COMMENT ON FUNCTION @extschema@.clip_cluster_groups(text, bigint, regclass) IS 'Clusters of a collection as JSON for a user interface: representative with thumbnail, members, keywords
members: the members'' table; name it if row-level policies apply to you, or if the members are in a view
The JSON Schema is docs/cluster_groups.schema.json.';
COMMENT ON FUNCTION @extschema@.clip_duplicates(text, double precision, regclass) IS 'Near-duplicates in a collection: each member that nearly equals an earlier one (by key), with the nearest such member
threshold: lowest cosine of near-duplicates
members: the members'' table; name it if row-level policies apply to you, or if the members are in a view';
COMMENT ON FUNCTION clip_search.watch_progress(regclass, name, name, name, name, name) IS 'Counts the rows of a watched table for clip_search.watch';
COMMENT ON FUNCTION clip_search.count_rows(regclass, text[], text, text, text) IS 'Counts a table''s rows by a scan without SQL, for a caller that may read all of them; NULL for others';

-- Functions in a reader's WHERE must not see rows of other owners before the views' own conditions have run.
ALTER VIEW clip_search.watch SET (security_barrier = true);
ALTER VIEW clip_search.pending SET (security_barrier = true);
ALTER VIEW clip_search.failure SET (security_barrier = true);

-- clip_image_info also returns bits per sample and the date. The earlier columns keep their positions.
DROP FUNCTION @extschema@.clip_image_info(bytea);
CREATE FUNCTION @extschema@.clip_image_info(image bytea)
RETURNS TABLE (format text, width bigint, height bigint, orientation integer, channels integer, frames bigint, bytes bigint, bits integer,
    taken timestamp, taken_offset interval)
IMMUTABLE STRICT PARALLEL SAFE COST 100 ROWS 1 LANGUAGE c AS 'MODULE_PATHNAME', 'clip_image_info_wrapper';
COMMENT ON FUNCTION @extschema@.clip_image_info(bytea) IS 'Reads the header of an image file; no pixel is decoded, and no size limit applies
format: JPEG, PNG, GIF, WebP, BMP, TIFF, ICO, HEIC, AVIF or JPEG XL; for camera RAW the name of its format (DNG, CR2, NEF and others)
width, height: size in pixels as stored, before orientation is applied; for camera RAW, the size of the largest preview
orientation: EXIF orientation, from 1 (upright) to 8; 5 to 8 swap width and height
channels: samples per pixel: 1 grey or palette, 2 grey with alpha, 3 RGB, 4 RGB with alpha or CMYK
frames: number of frames or pages
bytes: length of the file
bits: bits per sample
taken: when the picture was taken, by the camera''s clock (EXIF DateTimeOriginal); NULL if the file does not state it
taken_offset: offset of that clock from UTC (EXIF OffsetTimeOriginal), so taken - taken_offset is in UTC; NULL if the file does not state it';

-- Partitions of watched tables.
CREATE FUNCTION clip_search.settle_partitions(watches bigint[]) RETURNS VOID
STRICT VOLATILE PARALLEL UNSAFE
LANGUAGE c
AS 'MODULE_PATHNAME', 'settle_partitions_wrapper';
REVOKE ALL ON FUNCTION clip_search.settle_partitions(bigint[]) FROM PUBLIC;
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
SELECT clip_search.settle_partitions(pg_catalog.array_agg(id)) FROM clip_search.watch_setting;
SELECT pg_catalog.pg_extension_config_dump('clip_search.watch_partition',
    'WHERE EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid OPERATOR(pg_catalog.=) relation::pg_catalog.oid)');
GRANT SELECT ON clip_search.watch_partition TO pg_database_owner;
COMMENT ON TABLE clip_search.watch_partition IS 'Partitions of watched tables';
COMMENT ON INDEX clip_search.watch_partition_pkey IS 'One row per watch and partition';
COMMENT ON FUNCTION clip_search.follow_partitions() IS 'Event trigger: follows partitions that are added to a watched table, attached or detached';
COMMENT ON FUNCTION clip_search.settle_partitions(bigint[]) IS 'Removes the rows of detached partitions from their clusters, and creates triggers on new partitions';
COMMENT ON EVENT TRIGGER clip_search_partition IS 'Keeps the clusters of partitioned tables in sync when partitions are attached or detached';

-- Relevance, tags, and a search that returns only matches.
CREATE FUNCTION @extschema@.clip_relevance(embedding vector, query text, model text DEFAULT NULL) RETURNS double precision
STABLE PARALLEL SAFE COST 1000 LANGUAGE c AS 'MODULE_PATHNAME', 'clip_relevance_wrapper';
CREATE FUNCTION @extschema@.clip_explain(embedding vector, query text, k integer DEFAULT 5, model text DEFAULT NULL)
RETURNS TABLE (word text, in_photo double precision, in_query double precision)
STABLE PARALLEL SAFE COST 2000 ROWS 5 LANGUAGE c AS 'MODULE_PATHNAME', 'clip_explain_wrapper';
CREATE FUNCTION @extschema@.clip_prepare_words(model text DEFAULT NULL) RETURNS integer
VOLATILE PARALLEL RESTRICTED COST 1000000 LANGUAGE c AS 'MODULE_PATHNAME', 'clip_prepare_words_wrapper';
CREATE FUNCTION @extschema@.clip_tags(embedding vector, k integer DEFAULT 5, model text DEFAULT NULL)
RETURNS TABLE (tag text, relevance double precision)
STABLE PARALLEL SAFE COST 1000 ROWS 5 LANGUAGE c AS 'MODULE_PATHNAME', 'clip_tags_wrapper';
CREATE FUNCTION @extschema@.clip_tags(embedding vector, labels text[], model text DEFAULT NULL)
RETURNS TABLE (tag text, relevance double precision)
STABLE PARALLEL SAFE COST 10000 ROWS 10 LANGUAGE c AS 'MODULE_PATHNAME', 'clip_tags_of_labels_wrapper';
CREATE FUNCTION @extschema@.clip_classify_or_none(embedding vector, labels text[], otherwise text DEFAULT 'none of these',
    template text DEFAULT 'a photo of a {}', model text DEFAULT NULL) RETURNS TABLE (label text, probability double precision)
STABLE PARALLEL SAFE COST 10000 ROWS 10 LANGUAGE c AS 'MODULE_PATHNAME', 'clip_classify_or_none_wrapper';
CREATE FUNCTION @extschema@.clip_find(relation regclass, query text, k integer DEFAULT 40, cut double precision DEFAULT 0.5,
    after_relevance double precision DEFAULT NULL, after_id text DEFAULT NULL, candidates integer DEFAULT 1000,
    key text DEFAULT NULL, embedding text DEFAULT NULL, model text DEFAULT NULL)
RETURNS TABLE (id @extschema@.clip_key, cosine double precision, relevance double precision)
STABLE PARALLEL RESTRICTED COST 100000 ROWS 40 LANGUAGE c AS 'MODULE_PATHNAME', 'clip_find_wrapper';
CREATE FUNCTION @extschema@.clip_find(relation regclass, query bytea, k integer DEFAULT 40, cut double precision DEFAULT 0.5,
    after_relevance double precision DEFAULT NULL, after_id text DEFAULT NULL, candidates integer DEFAULT 1000,
    key text DEFAULT NULL, embedding text DEFAULT NULL, model text DEFAULT NULL)
RETURNS TABLE (id @extschema@.clip_key, cosine double precision, relevance double precision)
STABLE PARALLEL RESTRICTED COST 100000 ROWS 40 LANGUAGE c AS 'MODULE_PATHNAME', 'clip_find_by_photo_wrapper';
COMMENT ON FUNCTION @extschema@.clip_relevance(vector, text, text) IS 'How certainly a photo shows the subject of a text, from 0 to 1; a photo from 0.5 on is an answer
model: model that computed the embedding; defaults to clip_search.model
The text competes with everyday words (clip_search.words), which a model embeds once, in the first call.';
COMMENT ON FUNCTION @extschema@.clip_explain(vector, text, integer, text) IS 'Why a photo matches a query: the words that fit both, best first
k: number of words
in_photo: relevance of the word to the photo; in_query: relevance of the word to the query
model: model that computed the embedding; defaults to clip_search.model';
COMMENT ON FUNCTION @extschema@.clip_prepare_words(text) IS 'Embeds the words that clip_relevance and clip_tags need, ahead of the first search; returns their number
model: model that embeds them; defaults to clip_search.model';
COMMENT ON FUNCTION @extschema@.clip_tags(vector, integer, text) IS 'Words for the subject of a photo, the most relevant first
k: number of words, whether relevant or not
relevance: as returned by clip_relevance, up to rounding; a tag from 0.5 on is good
model: model that computed the embedding; defaults to clip_search.model';
COMMENT ON FUNCTION @extschema@.clip_tags(vector, text[], text) IS 'Your own labels with their relevance to a photo, the most relevant first; several may fit, or none
labels: pass the argument by name (labels => ...) if it is a literal
model: model that computed the embedding; defaults to clip_search.model';
COMMENT ON FUNCTION @extschema@.clip_classify_or_none(vector, text[], text, text, text) IS 'Zero-shot classification of a stored embedding, with a row for photos that show none of the labels
otherwise: name of that row; a photo shows a label to the degree that the label, or a word that fits both, is relevant
template: text with {} in the place of the label
model: model that computed the embedding; defaults to clip_search.model
The labels share the remaining probability in the proportions of clip_classify.';
COMMENT ON FUNCTION @extschema@.clip_find(regclass, text, integer, double precision, double precision, text, integer, text, text, text) IS 'Rows of a table that match a text, the most relevant first, in pages; it reads the table with the caller''s privileges
k: number of rows per page
cut: lowest relevance of a row
after_relevance, after_id: values of the previous page''s last row
candidates: number of nearest rows to rate; an HNSW index finds them regardless of hnsw.ef_search
key: column that identifies a row, by default the primary key; embedding: column of type vector or halfvec, by default the only one
id: key of the row; cosine: cosine of the row to the query; relevance: as returned by clip_relevance
model: model that computed the embeddings; defaults to the model of the watched column, or to clip_search.model';
COMMENT ON FUNCTION @extschema@.clip_find(regclass, bytea, integer, double precision, double precision, text, integer, text, text, text) IS 'Rows of a table that show what a photo shows, the most relevant first, in pages; other arguments as for a text
query: image file, which is embedded once
relevance: how certainly both photos show the word that they share most, from 0 to 1';

-- A row that waits is listed once; clip_backfill tells rows embedded, grouped, tagged, and rows that needed nothing.
DROP FUNCTION clip_search.backfill_work(bigint, bigint[]);
CREATE FUNCTION clip_search.backfill_batch(watch bigint, entries bigint[])
RETURNS TABLE (embedded bigint, grouped bigint, tagged bigint, failed bigint, idle bigint)
STRICT VOLATILE PARALLEL UNSAFE COST 1000000 LANGUAGE c AS 'MODULE_PATHNAME', 'backfill_batch_wrapper';
COMMENT ON FUNCTION clip_search.backfill_batch(bigint, bigint[]) IS 'Step of clip_backfill: embeds the claimed entries';

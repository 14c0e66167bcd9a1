-- Watched tables: what clip_watch does and undoes, what is listed, and what can't be.
SET client_min_messages = warning;
CREATE TABLE shot (id int PRIMARY KEY, picture bytea, caption text, tags text[], made text GENERATED ALWAYS AS (caption || '!') STORED);
INSERT INTO shot (id, picture) SELECT 1, data FROM image WHERE name = 'cat.png';
SELECT clip_watch('shot', 'picture', cluster => 'cluster_id', on_error => 'skip', index => true, threshold => 0.9);
\d shot
SELECT relation, source, text_source, text_weight, embedding, cluster, model, collection, mode, on_error, replaces, active, rows, embedded, pending, failed FROM clip_search.watch;
SELECT name, dimensions, threshold, model, members, embedding, cluster, key FROM clip_search.collection;
RESET client_min_messages;
CALL clip_backfill('shot', batch => 0);
DO $$ BEGIN CALL clip_backfill('shot'); EXCEPTION WHEN active_sql_transaction THEN RAISE NOTICE 'not in a transaction of the caller''s'; END $$;
SET client_min_messages = warning;
CALL clip_backfill('shot');
INSERT INTO shot (id, picture) SELECT 2, data FROM image WHERE name = 'cat.jpg';
INSERT INTO shot (id, picture) SELECT 3, data FROM image WHERE name = 'coffee.png';
INSERT INTO shot (id, picture) VALUES (4, 'no picture'), (5, NULL);
SELECT id, embedding <=> (SELECT clip_embed_image(picture) FROM shot s WHERE s.id = shot.id AND id <> 4) AS off,
       dense_rank() OVER (ORDER BY cluster_id) AS grouping FROM shot ORDER BY id;
SELECT rows, embedded, pending, failed FROM clip_search.watch;
SELECT relation, embedding, key, sqlstate, message, attempts FROM clip_search.failure;
SELECT relation, embedding, key FROM clip_search.pending;
SELECT size, representative FROM clip_clusters('shot', 1);
SELECT clip_retry('shot');

-- Again with the same arguments nothing changes; other settings are taken over.
SELECT clip_watch('shot', 'picture', cluster => 'cluster_id', on_error => 'skip', index => true);
SELECT clip_watch('shot', 'picture', cluster => 'cluster_id', on_error => 'raise');
SELECT on_error, rows, embedded, pending, failed FROM clip_search.watch;
INSERT INTO shot (id, picture) VALUES (6, 'no picture');
SELECT count(*) FROM pg_indexes WHERE tablename = 'shot';

-- A second column of the same table, of the text.
SELECT clip_watch('shot', 'caption', embedding => 'caption_embedding');
UPDATE shot SET caption = 'a cat' WHERE id = 1;
SELECT embedding, source, rows, embedded, pending FROM clip_search.watch ORDER BY 1;
SELECT clip_unwatch('shot', drop_columns => true);
SELECT clip_unwatch('shot', 'caption_embedding');
SELECT vector_dims(caption_embedding) FROM shot WHERE id = 1;

-- Queued, where the server has no worker: it says so, and clip_backfill does it.
SELECT (outcome($q$SELECT clip_watch('shot', 'caption', embedding => 'later', mode => 'queued')$q$)).code;
UPDATE shot SET caption = 'picture ' || id;
SELECT relation, embedding, key, attempts FROM clip_search.pending ORDER BY key;
SELECT rows, embedded, pending, failed FROM clip_search.watch WHERE embedding = 'later';
CALL clip_backfill('shot', embedding => 'later');
SELECT rows, embedded, pending, failed FROM clip_search.watch WHERE embedding = 'later';
UPDATE shot SET caption = 'another picture' WHERE id = 2;
SELECT id, later IS NOT NULL AS embedded FROM shot ORDER BY id;
TRUNCATE shot;
SELECT count(*) FROM clip_search.pending;
SELECT clip_unwatch('shot', 'later', drop_columns => true);
RESET client_min_messages;
SELECT clip_watch('shot', 'caption', embedding => 'later', mode => 'queued');

-- What can't be.
CREATE TABLE keyless (body text);
CREATE TEMPORARY TABLE passing (id int PRIMARY KEY, body text);
CREATE TABLE narrow (id int PRIMARY KEY, body text, embedding vector(3));
\x
SELECT statement, o.* FROM unnest(ARRAY[
    $q$SELECT clip_watch('shot', 'nothing')$q$,
    $q$SELECT clip_watch('shot', 'tags')$q$,
    $q$SELECT clip_watch('shot', 'made')$q$,
    $q$SELECT clip_watch('shot', 'picture', mode => 'sometimes')$q$,
    $q$SELECT clip_watch('shot', 'picture', on_error => 'ignore')$q$,
    $q$SELECT clip_watch('shot', 'picture', embedding => 'tags')$q$,
    $q$SELECT clip_watch('shot', 'picture', embedding => 'e', cluster => 'caption')$q$,
    $q$SELECT clip_watch('shot', 'picture', text_source => 'picture')$q$,
    $q$SELECT clip_watch('shot', 'picture', text_source => 'caption', text_weight => 1)$q$,
    $q$SELECT clip_watch('shot', 'picture', embedding => 'e', model => 'nope')$q$,
    $q$SELECT clip_watch('shot', 'picture', embedding => 'e', cluster => 'c', threshold => 2)$q$,
    $q$SELECT clip_watch('shot', 'picture', embedding => 'e', cluster => 'c', collection => 'shot')$q$,
    $q$SELECT clip_watch('shot', 'picture', cluster => 'other')$q$,
    $q$SELECT clip_watch('shot', 'picture', cluster => 'cluster_id', model => 'another')$q$,
    $q$SELECT clip_watch('clip_search.watch', 'source')$q$,
    $q$SELECT clip_watch('keyless', 'body')$q$,
    $q$SELECT clip_watch('narrow', 'body')$q$,
    $q$SELECT clip_watch(NULL, 'body')$q$,
    $q$SELECT clip_unwatch(NULL)$q$,
    $q$CALL clip_backfill(NULL)$q$,
    $q$CALL clip_reembed('shot', NULL, 'later')$q$,
    $q$SELECT clip_unwatch('image')$q$,
    $q$SELECT clip_unwatch('shot', 'picture')$q$,
    $q$SELECT clip_retry('image')$q$,
    $q$CALL clip_backfill('image')$q$,
    $q$CALL clip_reembed('image', 'photo-mini')$q$,
    $q$CALL clip_reembed('shot', 'photo-mini')$q$,
    $q$SELECT clip_search.reembed_finish('shot', 'later')$q$
]) AS statement, outcome(statement) o;
\x
SELECT regexp_replace(message, 'pg_temp_\d+', 'pg_temp') AS message FROM outcome($q$SELECT clip_watch('passing', 'body')$q$);

-- Columns that are renamed are missed by the next writer, not silently left alone.
ALTER TABLE shot RENAME later TO afterwards;
INSERT INTO shot (id, caption) VALUES (1, 'a cat');
SELECT active, rows FROM clip_search.watch ORDER BY rows NULLS FIRST;
ALTER TABLE shot RENAME afterwards TO later;
INSERT INTO shot (id, caption) VALUES (1, 'a cat');

-- A dropped table leaves nothing behind for long.
DROP TABLE shot;
SELECT count(*) FROM clip_search.watch;
SELECT clip_watch('narrow', 'body', embedding => 'e');
SELECT (SELECT count(*) FROM clip_search.watch_setting) AS watches, (SELECT count(*) FROM clip_search.watch_queue) AS entries;
SELECT clip_unwatch('narrow', drop_columns => true);
DROP TABLE narrow, keyless;
SELECT name FROM clip_search.collection;

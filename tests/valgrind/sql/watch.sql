-- Watched columns: triggers, backfill, failures, another model.
SET client_min_messages = warning;
CREATE TABLE shot (id int PRIMARY KEY, picture bytea, caption text);
INSERT INTO shot SELECT row_number() OVER (ORDER BY name COLLATE "C"), data, name FROM image;
SELECT clip_watch('shot', 'picture', cluster => 'cluster_id', on_error => 'skip', index => true, threshold => 0.9);
CALL clip_backfill('shot', batch => 3);
SELECT rows, embedded, pending, failed FROM clip_search.watch;
INSERT INTO shot (id, picture) VALUES (20, 'no picture'), (21, NULL);
INSERT INTO shot (id, picture) SELECT 22, picture FROM shot WHERE id = 1 ON CONFLICT (id) DO UPDATE SET picture = excluded.picture;
INSERT INTO shot (id, picture) SELECT 22, picture FROM shot WHERE id = 2 ON CONFLICT (id) DO UPDATE SET picture = excluded.picture;
UPDATE shot SET picture = (SELECT picture FROM shot WHERE id = 1) WHERE id = 3;
UPDATE shot SET id = 30 WHERE id = 4;
UPDATE shot SET embedding = NULL WHERE id = 5;
DELETE FROM shot WHERE id = 2;
BEGIN;
SAVEPOINT s;
UPDATE shot SET picture = NULL WHERE id = 6;
ROLLBACK TO s;
UPDATE shot SET picture = 'broken' WHERE id = 6;
COMMIT;
MERGE INTO shot USING (VALUES (7), (40)) AS v (id) ON shot.id = v.id
    WHEN MATCHED THEN UPDATE SET picture = NULL WHEN NOT MATCHED THEN INSERT (id) VALUES (v.id);
SELECT relation, key, sqlstate, attempts FROM clip_search.failure ORDER BY key;
SELECT clip_retry('shot');
SELECT id, embedding IS NOT NULL AS embedded, cluster_id IS NOT NULL AS grouped FROM shot ORDER BY id;
SELECT rows, embedded, pending, failed FROM clip_search.watch;
-- Both of image and text; by another model, in place.
SELECT clip_watch('shot', 'picture', embedding => 'both', text_source => 'caption', text_weight => 0.3, on_error => 'skip');
CALL clip_backfill('shot', embedding => 'both');
UPDATE shot SET caption = 'a cat' WHERE id = 1;
SELECT embedding, rows, embedded, pending, failed FROM clip_search.watch ORDER BY 1;
CALL clip_reembed('shot', 'copy', 'both', batch => 2);
SELECT embedding, model FROM clip_search.watch ORDER BY 1;
-- Queued, without a worker.
CREATE TABLE note (id int, body text, PRIMARY KEY (id, body)) PARTITION BY RANGE (id);
CREATE TABLE note_1 PARTITION OF note FOR VALUES FROM (0) TO (100);
CREATE TABLE note_2 PARTITION OF note FOR VALUES FROM (100) TO (200);
SELECT clip_watch('note', 'body', cluster => 'cluster_id', mode => 'queued');
INSERT INTO note SELECT n, 'text ' || n FROM generate_series(91, 110) n;
UPDATE note SET id = id + 100 WHERE id < 95;
SELECT count(*) FROM clip_search.pending;
CALL clip_backfill('note');
SELECT rows, embedded, pending, failed FROM clip_search.watch WHERE relation = 'note'::regclass;
-- Odd names, a column that is renamed, copied rows, another owner's rights.
CREATE ROLE clip_valgrind_user;
CREATE SCHEMA "Odd schema" AUTHORIZATION clip_valgrind_user;
SET ROLE clip_valgrind_user;
CREATE TABLE "Odd schema"."a ""table""" ("the Id" uuid, "no. 2" date, "the Body" text, PRIMARY KEY ("no. 2", "the Id"));
SELECT clip_watch('"Odd schema"."a ""table"""', 'the Body', embedding => 'an Embedding');
COPY "Odd schema"."a ""table""" ("the Id", "no. 2", "the Body") FROM STDIN;
a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11	2024-01-01	a cat
c0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11	2024-01-02	a dog
\.
SELECT vector_dims("an Embedding") FROM "Odd schema"."a ""table""";
ALTER TABLE "Odd schema"."a ""table""" RENAME "the Body" TO body;
INSERT INTO "Odd schema"."a ""table""" VALUES ('a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '2024-01-03', 'a fish');
RESET ROLE;
SELECT outcome(s), s FROM unnest(ARRAY[
    $$SELECT clip_watch('shot', 'nothing')$$,
    $$SELECT clip_watch('shot', 'picture', mode => 'sometimes')$$,
    $$SELECT clip_watch('shot', 'picture', embedding => 'e', model => 'nope')$$,
    $$SELECT clip_unwatch('image')$$,
    $$CALL clip_backfill('image')$$,
    $$SELECT clip_retry('image')$$,
    $$CALL clip_reembed('shot', 'mini')$$
]) WITH ORDINALITY AS u (s, n) ORDER BY n;
-- Cancelled, and continued.
UPDATE shot SET embedding = NULL;
CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_catalog.pg_sleep(0.3); RETURN NEW; END $$;
CREATE TRIGGER slow BEFORE UPDATE ON shot FOR EACH ROW EXECUTE FUNCTION slow();
SET statement_timeout = '500ms';
\set SHOW_CONTEXT never
CALL clip_backfill('shot', batch => 1);
\set SHOW_CONTEXT errors
RESET statement_timeout;
DROP FUNCTION slow CASCADE;
CALL clip_backfill('shot', embedding => 'embedding');
SELECT embedding, rows, embedded, pending, failed FROM clip_search.watch WHERE relation = 'shot'::regclass ORDER BY 1;
TRUNCATE note;
SELECT clip_unwatch('shot', 'both', drop_columns => true);
SELECT clip_unwatch('note');
DROP TABLE shot, note, "Odd schema"."a ""table""" CASCADE;
DROP SCHEMA "Odd schema";
DROP ROLE clip_valgrind_user;
SELECT count(*) FROM clip_search.watch;

-- Embeddings of images and texts, alone and in arrays, with NULLs; queries, classes, diversity; what is refused.
SELECT clip_version() ~ 'not loaded yet' AS version;
SELECT name, dimensions, selected, loaded FROM clip_models() ORDER BY name;
SELECT name, vector_dims(clip_embed_image(data)) AS dimensions FROM image ORDER BY name COLLATE "C";
SELECT vector_dims(clip_embed_text('a cat')) AS text, vector_dims(clip_embed_text('a cat', 'copy')) AS model, vector_dims(clip_embed_text('a cat')) AS again;
SELECT vector_dims(clip_embed_image(data, 'copy')) AS model FROM image WHERE name = 'cat.png';
SELECT clip_embed_image(NULL) IS NULL AS image, clip_embed_text(NULL) IS NULL AS text, clip_embed_texts(NULL) IS NULL AS texts;
SELECT i, v IS NULL AS null, v <=> clip_embed_text(t) < 1e-5 AS same
FROM unnest(ARRAY['a cat', NULL, 'a much longer text about a dog in the garden'],
            clip_embed_texts(ARRAY['a cat', NULL, 'a much longer text about a dog in the garden'])) WITH ORDINALITY AS u (t, v, i) ORDER BY i;
WITH files AS (SELECT array_agg(data ORDER BY name) || NULL::bytea AS list FROM image)
SELECT i, v IS NULL AS null, v <=> clip_embed_image(d) < 1e-5 AS same
FROM files, unnest(list, clip_embed_images(list)) WITH ORDINALITY AS u (d, v, i) ORDER BY i;
SELECT clip_embed_texts('{}') AS texts, clip_embed_images('{}') AS images, clip_embed_texts(ARRAY[NULL, NULL]::text[]) AS nulls;
-- Cut texts and images, with warnings.
SELECT vector_dims(clip_embed_text(repeat('word ', 200)));
SET clip_search.allow_truncated_images = on;
SELECT vector_dims(clip_embed_image(substr(data, 1, length(data) * 9 / 10))) FROM image WHERE name = 'cat_exif6.jpg';
RESET clip_search.allow_truncated_images;
-- Out of line, compressed and sliced values.
CREATE TABLE stored (id int, body text, data bytea);
ALTER TABLE stored ALTER data SET STORAGE EXTERNAL;
INSERT INTO stored SELECT 1, repeat('a cat ', 1000), data || decode(repeat('00', 9000), 'hex') FROM image WHERE name = 'cat.png';
SELECT vector_dims(clip_embed_text(left(body, 90))) AS text, vector_dims(clip_embed_image(data)) AS image FROM stored;
-- Generated columns, expression indexes and parallel workers.
CREATE TABLE document (body text, embedding vector(512) GENERATED ALWAYS AS (clip_embed_text(body, 'mini')) STORED);
INSERT INTO document (body) VALUES ('a cat'), (NULL);
SELECT body, embedding <=> clip_embed_text(body) < 1e-5 AS same FROM document ORDER BY body;
-- Its name since PostgreSQL 16 is another.
SELECT CASE WHEN current_setting('server_version_num')::int < 160000 THEN 'force_parallel_mode' ELSE 'debug_parallel_query' END AS mode \gset
SET :mode = on;
SELECT sum(vector_dims(clip_embed_text('thing ' || n))) AS by_a_worker FROM generate_series(1, 3) n;
SELECT vector_dims(clip_embed_text(body)) FROM document WHERE body IS NOT NULL;
RESET :mode;
-- Two threads of ONNX Runtime.
SET clip_search.threads = 2;
SELECT vector_dims(clip_embed_image(data)) FROM image WHERE name = 'cat.png';
RESET clip_search.threads;

-- Files.
SELECT name, format, width, height, orientation, channels FROM image, clip_image_info(data) ORDER BY name COLLATE "C";
SELECT name, substr(encode(clip_thumbnail(data, 64, 'jpeg'), 'hex'), 1, 6) AS jpeg, substr(encode(clip_thumbnail(data, 16, 'png'), 'hex'), 1, 6) AS png
FROM image ORDER BY name COLLATE "C";
-- Not clip_benchmark, whose photo of 12 megapixels takes two minutes here.
SELECT count(*) > 5 AS checked FROM clip_check_model('mini');

-- Queries, classes, diversity.
SELECT vector_dims(clip_query('{a cat,a dog}', '{1,-0.5}', ARRAY[data], '{0.5}', ARRAY[clip_embed_text('a tree')], '{-0.25}')) FROM image WHERE name = 'cat.png';
SELECT clip_query(vectors => ARRAY['[3,0]', '[0,0.1]', '[0,-9]']::vector[], vector_weights => ARRAY[2, 1, 0.5]) AS sum;
SELECT count(*), round(sum(probability)::numeric, 5) AS sum FROM image, clip_classify(data, '{cat,dog,house}') WHERE name = 'cat.png';
SELECT count(*) FROM clip_classify(clip_embed_text('a cat'), '{cat,dog}', ARRAY['{}', 'a {}']);
SELECT count(*) FROM clip_classify(NULL::bytea, '{cat}');
SELECT * FROM clip_diversify('[1,0]', '{7,8,9}'::smallint[], ARRAY['[1,0]', '[1,0.1]', '[0,1]']::vector[], 3, 0.3);
SELECT id, rank FROM clip_diversify('[1,0]', ARRAY['a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', NULL, 'c0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11']::uuid[], ARRAY['[1,0]', '[1,0.1]', '[0,1]']::vector[], k => 2);
SELECT (d).rank, length((d).id) FROM (SELECT clip_diversify('[1,0]', ARRAY['one', 'two', repeat('long', 2000)], ARRAY['[0,1]', '[1,0.1]', '[1,0]']::vector[], 5, 1) AS d) AS rows;
SELECT model, calls > 0 AS calls, errors, shared FROM clip_stats() ORDER BY model;

-- What is refused: each in a subtransaction of one statement.
SELECT outcome(s), s FROM unnest(ARRAY[
    $$SELECT clip_embed_image('hello')$$,
    $$SELECT clip_embed_image('')$$,
    $$SELECT clip_embed_image(substr(data, 1, length(data) / 2)) FROM image WHERE name = 'cat.png'$$,
    $$SELECT clip_embed_image(substr(data, 1, length(data) / 2)) FROM image WHERE name = 'coffee_progressive.jpg'$$,
    $$SELECT clip_embed_image(overlay(data PLACING '\x00000000' FROM 20)) FROM image WHERE name = 'cat.png'$$,
    $$SELECT clip_embed_image(overlay(data PLACING '\xffffffff' FROM 300)) FROM image WHERE name = 'cat_palette.png'$$,
    $$SELECT clip_embed_image('\x89504e470d0a1a0a0000000d494844520000ea600000ea6008020000000fb0e2150000000c4944415478da6360000002000001e527defc0000000049454e44ae426082')$$,
    $$SELECT clip_embed_image('%PDF-1.7')$$,
    $$SELECT clip_embed_images(ARRAY[NULL, data, 'oops']) FROM image WHERE name = 'one_1x1.png'$$,
    $$SELECT clip_embed_texts(ARRAY['a cat', NULL, '', 'a dog'])$$,
    $$SELECT clip_embed_text(' ')$$,
    $$SELECT clip_embed_text('a cat', 'none')$$,
    $$SELECT clip_embed_text('a cat', '../mini')$$,
    $$SELECT clip_image_info(substr(data, 1, 20)) FROM image WHERE name = 'cat.png'$$,
    $$SELECT clip_thumbnail(data, 0) FROM image WHERE name = 'cat.png'$$,
    $$SELECT clip_query('{}')$$,
    $$SELECT clip_query('{a cat,NULL}')$$,
    $$SELECT clip_query(vectors => ARRAY['[1,2]', '[1,2,3]']::vector[])$$,
    $$SELECT clip_classify('[1,2]'::vector, '{cat}')$$,
    $$SELECT clip_classify(data, '{cat,NULL}') FROM image WHERE name = 'one_1x1.png'$$,
    $$SELECT clip_diversify('[1,0]', '{1,2}'::int[], ARRAY['[1,0]', NULL]::vector[])$$,
    $$SELECT clip_diversify('[1,0]', '{1}'::int[], ARRAY['[1,0]'::vector], lambda => 'NaN')$$
]) WITH ORDINALITY AS u (s, n) ORDER BY n;
SET clip_search.cluster_threshold = 1.5;
BEGIN;
SAVEPOINT before;
\set VERBOSITY terse
SELECT clip_embed_image('oops');
\set VERBOSITY default
ROLLBACK TO before;
SELECT vector_dims(clip_embed_text('after the savepoint'));
COMMIT;
-- Cancelled halfway; the connection stays usable.
SET statement_timeout = '2s';
SELECT clip_embed_texts(array_agg('cat number ' || n)) FROM generate_series(1, 100000) n;
SELECT count(clip_embed_image(data || int4send(n))) FROM image, generate_series(1, 1000000) n;
RESET statement_timeout;
SELECT vector_dims(clip_embed_text('after the cancel'));
-- A library that is none, in a connection that has loaded nothing yet.
\c -
SET clip_search.onnxruntime = '/nowhere/libonnxruntime.so';
SELECT outcome($$SELECT clip_embed_text('a cat')$$);
SET clip_search.onnxruntime = '$libdir/vector.so';
SELECT outcome($$SELECT clip_embed_text('a cat')$$);

-- Every error says what was wrong with which value and the way out; the next call works.
\x on
-- not an image
SELECT * FROM outcome($$ SELECT clip_embed_image('hello, world') $$);
-- empty
SELECT * FROM outcome($$ SELECT clip_embed_image('') $$);
-- cut short
SELECT * FROM outcome($$ SELECT clip_embed_image(substr(data, 1, length(data) / 2)) FROM image WHERE name = 'cat.jpg' $$);
SELECT * FROM outcome($$ SELECT clip_embed_image(substr(data, 1, length(data) / 2)) FROM image WHERE name = 'cat.png' $$);
-- broken inside
SELECT * FROM outcome($$ SELECT clip_embed_image(overlay(data PLACING '\x00000000' FROM 20)) FROM image WHERE name = 'cat.png' $$);
-- a decompression bomb: 60000 x 60000 pixels in 70 bytes
SELECT * FROM outcome($$ SELECT clip_embed_image('\x89504e470d0a1a0a0000000d494844520000ea600000ea6008020000000fb0e2150000000c4944415478da6360000002000001e527defc0000000049454e44ae426082') $$);
-- the limits are settings
SET clip_search.max_image_pixels = 1000;
SELECT * FROM outcome($$ SELECT clip_embed_image(data) FROM image WHERE name = 'cat.png' $$);
RESET clip_search.max_image_pixels;
SET clip_search.max_image_bytes = '1kB';
SELECT * FROM outcome($$ SELECT clip_embed_image(data) FROM image WHERE name = 'cat.png' $$);
RESET clip_search.max_image_bytes;
-- known formats that are not decoded, by name
SELECT * FROM outcome($$ SELECT clip_embed_image('\x0000000c6a5020200d0a870a') $$);
SELECT * FROM outcome($$ SELECT clip_embed_image('\x384250530001') $$);
SELECT * FROM outcome($$ SELECT clip_embed_image('%PDF-1.7') $$);
-- which element of an array
SELECT * FROM outcome($$ SELECT clip_embed_images(ARRAY[NULL, data, 'oops']) FROM image WHERE name = 'cat.png' $$);
SELECT * FROM outcome($$ SELECT clip_embed_texts(ARRAY['a cat', NULL, '', 'a dog']) $$);
-- texts
SELECT * FROM outcome($$ SELECT clip_embed_text('') $$);
SELECT * FROM outcome($$ SELECT clip_embed_text(E' \n\t') $$);
-- models
SELECT * FROM outcome($$ SELECT clip_embed_text('a cat', 'clip-vit-base-patch32') $$);
SELECT * FROM outcome($$ SELECT clip_embed_text('a cat', '../photo-mini') $$);
SELECT * FROM outcome($$ SELECT clip_embed_text('a cat', 'photo-mini:int4') $$);
SET clip_search.model = 'nope';
SELECT * FROM outcome($$ SELECT clip_embed_text('a cat') $$);
RESET clip_search.model;
SET clip_search.model_path = '/nowhere';
SELECT * FROM outcome($$ SELECT clip_embed_text('a cat') $$);
RESET clip_search.model_path;
-- clusters
SELECT * FROM outcome($$ SELECT clip_assign_cluster('[0,0,0]') $$);
SELECT * FROM outcome($$ SELECT clip_assign_cluster('[1,0,0]', '') $$);
SELECT clip_assign_cluster('[1,0,0]', 'three') IS NOT NULL AS founded;
SELECT * FROM outcome($$ SELECT clip_assign_cluster('[1,0]', 'three') $$);
SELECT * FROM outcome($$ SELECT clip_assign_cluster(clip_embed_text('a cat'), 'three') $$);
\x off

-- After all of that this backend still serves, within a transaction too.
SELECT vector_dims(clip_embed_text('a cat')) AS text, vector_dims(clip_embed_image(data)) AS image FROM image WHERE name = 'cat.png';
BEGIN;
SAVEPOINT before;
SELECT clip_embed_image('oops');
ROLLBACK TO before;
SELECT vector_dims(clip_embed_image(data)) FROM image WHERE name = 'cat.png';
COMMIT;

-- A new connection, and the library is missing or is something else: an error each, and then the right one.
\c -
SET clip_search.onnxruntime = '/nowhere/libonnxruntime.so';
SELECT code, message, hint FROM outcome($$ SELECT clip_embed_text('a cat') $$);
SET clip_search.onnxruntime = '/etc/passwd';
SELECT code, message, hint FROM outcome($$ SELECT clip_embed_text('a cat') $$);
SET clip_search.onnxruntime = '$libdir/vector.so';
SELECT code, message, hint FROM outcome($$ SELECT clip_embed_text('a cat') $$);
RESET clip_search.onnxruntime;
SELECT vector_dims(clip_embed_text('a cat'));
SELECT clip_drop_collection('three');

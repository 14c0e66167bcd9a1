-- What a connection has done, and what it remembers. The server of these tests does not preload, so the figures are its own.
\c -
SELECT count(*) FROM clip_stats();
SELECT vector_dims(clip_embed_text('a cat')), vector_dims(clip_embed_text('a cat')), vector_dims(clip_embed_text('a dog'));
SELECT array_length(clip_embed_texts(ARRAY['a cat', NULL, 'a bird', 'a fish']), 1);
SELECT vector_dims(clip_embed_image(data)) FROM image WHERE name = 'cat.png';
\set ON_ERROR_STOP off
SELECT clip_embed_image('not a photo');
SELECT * FROM outcome($$SELECT clip_embed_text('a cat', 'no-such-model')$$);
SELECT model, calls, images, texts, errors, memo_hits, loads, runs, shared FROM clip_stats();
SELECT load_ms > 0 AND decode_ms > 0 AND inference_ms > 0 AND total_ms > load_ms + inference_ms AS timed, since < clock_timestamp() AS began FROM clip_stats();
-- A longer memory, a shorter one, none.
SELECT clip_reset_stats();
SELECT count(*) FROM clip_stats();
SET clip_search.memo_texts = 2;
SELECT count(clip_embed_text(word)) FROM unnest(ARRAY['one', 'two', 'one', 'three', 'one', 'two']) AS word;
SET clip_search.memo_texts = 0;
SELECT count(clip_embed_text(word)) FROM unnest(ARRAY['one', 'one']) AS word;
RESET clip_search.memo_texts;
SELECT calls, texts, memo_hits FROM clip_stats();
CREATE ROLE clip_test_plain; SET ROLE clip_test_plain;
SELECT clip_reset_stats();
SELECT count(*) FROM clip_stats();
RESET ROLE; DROP ROLE clip_test_plain;
SELECT step, items, ms_each > 0 AS timed FROM clip_benchmark();
SELECT * FROM outcome($$SELECT * FROM clip_benchmark('no-such-model')$$);

-- ORDER BY embedding <=> clip_embed_text('…') LIMIT k is served by an HNSW index, and embeds the text once.
CREATE TABLE photo (id int PRIMARY KEY, embedding vector(512));
INSERT INTO photo SELECT i, clip_embed_text('thing number ' || i) FROM generate_series(1, 300) AS i;
CREATE INDEX ON photo USING hnsw (embedding vector_cosine_ops);
ANALYZE photo;
EXPLAIN (COSTS off) SELECT id FROM photo ORDER BY embedding <=> clip_embed_text('thing number 42') LIMIT 3;

SELECT texts FROM clip_models() WHERE selected \gset before_
SELECT id, 1 - (embedding <=> clip_embed_text('thing number 42')) > 0.9999 AS exact
FROM photo ORDER BY embedding <=> clip_embed_text('thing number 42') LIMIT 1;
SELECT texts - :before_texts AS embedded FROM clip_models() WHERE selected;

-- A new text, in the order and in the result: still once.
SELECT texts FROM clip_models() WHERE selected \gset before_
SELECT count(similarity) FROM (SELECT 1 - (embedding <=> clip_embed_text('something new')) AS similarity
                    FROM photo ORDER BY embedding <=> clip_embed_text('something new') LIMIT 5) AS found;
SELECT texts - :before_texts AS embedded FROM clip_models() WHERE selected;

-- Without an index every row asks for the vector, and the text is still embedded once.
SELECT texts FROM clip_models() WHERE selected \gset before_
SET enable_indexscan = off;
EXPLAIN (COSTS off) SELECT id FROM photo ORDER BY embedding <=> clip_embed_text('another text') LIMIT 3;
SELECT count(*) FROM (SELECT id FROM photo ORDER BY embedding <=> clip_embed_text('another text') LIMIT 3) AS found;
RESET enable_indexscan;
SELECT texts - :before_texts AS embedded FROM clip_models() WHERE selected;

-- The planner may use parallel workers for embedding a table, which give the same vectors.
SET min_parallel_table_scan_size = 0;
SET parallel_setup_cost = 0;
EXPLAIN (COSTS off) SELECT id, clip_embed_text('thing number ' || id) FROM photo;
CREATE TABLE copy AS SELECT id, clip_embed_text('thing number ' || id) AS embedding FROM photo;
SELECT count(*), bool_and(copy.embedding <=> photo.embedding < 1e-6) AS same FROM copy JOIN photo USING (id);
DROP TABLE photo, copy;

-- Parallel workers embed a table, by the planner's own choice, where the table asks for them: what photos weigh is stored
-- out of line, so by its size alone it would not get any.
CREATE TABLE album (id int, data bytea) WITH (parallel_workers = 2);
INSERT INTO album SELECT n, data FROM generate_series(1, 40) AS n, (SELECT data FROM image WHERE name = 'cat.jpg') AS i;
ANALYZE album;
EXPLAIN (COSTS off) SELECT id, clip_embed_image(data) FROM album;
EXPLAIN (COSTS off) CREATE TABLE vectors AS SELECT id, clip_embed_image(data) AS embedding FROM album;
CREATE TABLE vectors AS SELECT id, clip_embed_image(data) AS embedding FROM album;
SELECT count(*), max(embedding <=> (SELECT embedding FROM vectors WHERE id = 1)) < 1e-6 AS alike FROM vectors;
EXPLAIN (COSTS off) SELECT id FROM album WHERE clip_embed_image(data) <=> clip_embed_text('a cat') < 0.8;
DROP TABLE album, vectors;

-- Queries of several parts, and results that don't repeat themselves. The photos are three of a cat, coffee and a rocket.
CREATE TABLE shown (name text PRIMARY KEY, embedding vector(512));
INSERT INTO shown SELECT name, clip_embed_image(data) FROM image;
ANALYZE shown;

-- One text is itself; terms add up by their weights; NULL arrays are none.
SELECT clip_query('{a cat}') <=> clip_embed_text('a cat') < 1e-6 AS text,
       clip_query('{a cat}', '{3}') <=> clip_embed_text('a cat') < 1e-6 AS weight,
       clip_query(vectors => ARRAY['[3,0]'::vector]) AS vector,
       clip_query(vectors => ARRAY['[3,0]', '[0,0.1]', '[0,-9]']::vector[], vector_weights => ARRAY[2, 1, 0.5]) AS sum,
       clip_query(NULL, NULL, vectors => ARRAY['[1,0]', '[0,1]']::vector[], vector_weights => '{1,-1}') AS difference;
SELECT clip_query(images => ARRAY[data]) <=> embedding < 1e-6 AS image FROM image JOIN shown USING (name) WHERE name = 'cat.png';
SELECT name, clip_query('{rocket,a cat}', '{2,-1}', ARRAY[data], '{0.5}', ARRAY[embedding], '{-0.25}')
       <=> l2_normalize(clip_embed_text('rocket') + clip_embed_text('rocket') - clip_embed_text('a cat')
                        + (SELECT l2_normalize(embedding) FROM shown s WHERE s.name = i.name) * array_fill(0.25, ARRAY[512])::vector) < 1e-6 AS same
FROM image i JOIN shown USING (name) WHERE name = 'coffee.png';
SELECT name FROM shown WHERE name LIKE '%.png' OR name = 'rocket.jpg' ORDER BY embedding <=> clip_query('{coffee, cat}', '{1, -0.5}') LIMIT 1;

CREATE FUNCTION plan(query text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE line text; lines text := '';
BEGIN
    FOR line IN EXECUTE 'EXPLAIN ' || query LOOP lines := lines || line; END LOOP;
    RETURN lines;
END $$;

-- An index serves it, with a photo from a row, too.
CREATE INDEX ON shown USING hnsw (embedding vector_cosine_ops);
SET enable_seqscan = off;
EXPLAIN (COSTS off) SELECT name FROM shown ORDER BY embedding <=> clip_query('{coffee,cat}', '{1,-0.5}') LIMIT 1;
SELECT plan(query) LIKE '%Index Scan using shown_embedding_idx%' AS by_index
FROM (VALUES ($$ SELECT name FROM shown
    ORDER BY embedding <=> clip_query('{sleeping}', vectors => ARRAY[(SELECT embedding FROM shown WHERE name = 'cat.png')]) LIMIT 1 $$)) AS q (query);
SELECT name FROM shown
ORDER BY embedding <=> clip_query('{sleeping}', '{0.1}', vectors => ARRAY[(SELECT embedding FROM shown WHERE name = 'cat.png')]) LIMIT 1;
RESET enable_seqscan;

-- What can't be used.
SELECT o.* FROM unnest(ARRAY[
    $$ SELECT clip_query() $$,
    $$ SELECT clip_query('{}', '{}') $$,
    $$ SELECT clip_query('{a cat,NULL}') $$,
    $$ SELECT clip_query(vectors => ARRAY[(SELECT embedding FROM shown WHERE name = 'none')]) $$,
    $$ SELECT clip_query('{a cat,a dog}', '{1}') $$,
    $$ SELECT clip_query('{a cat}', '{NULL}') $$,
    $$ SELECT clip_query('{a cat}', '{infinity}') $$,
    $$ SELECT clip_query('{a cat}', '{0}') $$,
    $$ SELECT clip_query('{a cat}', image_weights => '{1}') $$,
    $$ SELECT clip_query('{a cat,a cat}', '{1,-1}') $$,
    $$ SELECT clip_query(ARRAY['a cat', ' ']) $$,
    $$ SELECT clip_query(images => ARRAY['hello'::bytea]) $$,
    $$ SELECT clip_query('{a cat}', vectors => ARRAY['[1,2]'::vector]) $$,
    $$ SELECT clip_query(vectors => ARRAY['[1,2]', '[1,2,3]']::vector[]) $$,
    $$ SELECT clip_query(vectors => ARRAY['[1,2]', '[0,0]']::vector[]) $$,
    $$ SELECT clip_query('{a cat}', model => 'none') $$
]) WITH ORDINALITY AS s (statement, n), outcome(statement) AS o ORDER BY n;

-- Diversity: of three photos of one cat, one comes before the others. Ids are of any type.
SELECT d.rank, d.id, round(d.score::numeric, 2) AS score
FROM (SELECT array_agg(name ORDER BY name) AS ids, array_agg(embedding ORDER BY name) AS embeddings FROM shown) AS candidate,
     clip_diversify(clip_embed_text('a cat'), ids, embeddings, 3) AS d ORDER BY d.rank;
SELECT pg_typeof(id), count(*), bool_and(id IS NOT NULL) AS kept FROM clip_diversify('[1,0]', '{7,8,9}'::smallint[], ARRAY['[1,0]', '[1,0.1]', '[0,1]']::vector[]) GROUP BY 1;
SELECT id, rank, round(score::numeric, 4) AS score
FROM clip_diversify('[1,0]', ARRAY['a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', NULL, 'c0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11']::uuid[], ARRAY['[1,0]', '[1,0.1]', '[0,1]']::vector[], k => 2, lambda => 0.3);
SELECT (d).id, (d).rank FROM (SELECT clip_diversify('[1,0]', ARRAY['one', 'two', repeat('long', 2000)], ARRAY['[0,1]', '[1,0.1]', '[1,0]']::vector[], 5, 1) AS d) AS rows WHERE (d).rank > 1;
SELECT (SELECT count(*) FROM clip_diversify('[1,0]', '{}'::int[], '{}')) AS none, (SELECT count(*) FROM clip_diversify('[1,0]', NULL::int[], NULL)) AS null;
SELECT o.* FROM unnest(ARRAY[
    $$ SELECT clip_diversify('[1,0]', '{1}'::int[], ARRAY['[1,0]', '[0,1]']::vector[]) $$,
    $$ SELECT clip_diversify('[1,0]', '{1,2}'::int[], ARRAY['[1,0]', NULL]::vector[]) $$,
    $$ SELECT clip_diversify('[1,0]', '{1,2}'::int[], ARRAY['[1,0]', '[1,2,3]']::vector[]) $$,
    $$ SELECT clip_diversify('[1,0]', '{1}'::int[], ARRAY['[1,0]'::vector], 0) $$,
    $$ SELECT clip_diversify('[1,0]', '{1}'::int[], ARRAY['[1,0]'::vector], lambda => 1.5) $$,
    $$ SELECT clip_diversify('[1,0]', '{1}'::int[], ARRAY['[1,0]'::vector], lambda => 'NaN') $$
]) WITH ORDINALITY AS s (statement, n), outcome(statement) AS o ORDER BY n;
DROP TABLE shown;
DROP FUNCTION plan(text);

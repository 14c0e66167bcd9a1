-- Embeddings have 512 dimensions and length 1, and mean something.
SELECT name, vector_dims(v) AS dimensions, round(vector_norm(v)::numeric, 6) AS norm
FROM image, LATERAL (SELECT clip_embed_image(data)) AS e (v) ORDER BY name;
SELECT vector_dims(v) AS dimensions, round(vector_norm(v)::numeric, 6) AS norm FROM (SELECT clip_embed_text('a cat')) AS e (v);

SELECT query, (SELECT name FROM image WHERE name LIKE '%.png' OR name = 'rocket.jpg' ORDER BY clip_embed_image(data) <=> clip_embed_text(query) LIMIT 1) AS best
FROM unnest(ARRAY['a cat', 'a cup of coffee', 'rocket launch']) AS query;

-- A photo and its copy that is stored lying on its side, to be turned by EXIF, are the same picture.
SELECT clip_embed_image(a.data) <=> clip_embed_image(b.data) < 0.001 AS same FROM image a, image b WHERE a.name = 'cat.jpg' AND b.name = 'cat_exif6.jpg';

-- NULL gives NULL.
SELECT clip_embed_image(NULL) IS NULL AS image, clip_embed_text(NULL) IS NULL AS text, clip_embed_text('x', NULL) IS NULL AS model,
       clip_embed_images(NULL) IS NULL AS images, clip_embed_texts(NULL) IS NULL AS texts, clip_assign_cluster(NULL) IS NULL AS cluster;

-- The model named, or the setting: the same vector.
SELECT clip_embed_text('a cat') = clip_embed_text('a cat', 'photo-mini') AS text,
       (SELECT clip_embed_image(data) = clip_embed_image(data, 'photo-mini') FROM image WHERE name = 'cat.png') AS image;

-- Arrays: the same vectors as one by one; NULL elements stay NULL, and the empty array stays empty.
SELECT i, v IS NULL AS null, v <=> clip_embed_text(t) < 1e-6 AS same
FROM unnest(ARRAY['a cat', NULL, 'a much longer text about a dog in the garden', 'a cat'],
            clip_embed_texts(ARRAY['a cat', NULL, 'a much longer text about a dog in the garden', 'a cat'])) WITH ORDINALITY AS u (t, v, i) ORDER BY i;
WITH files AS (SELECT array_agg(data ORDER BY name) || NULL::bytea AS list FROM image)
SELECT i, v IS NULL AS null, v <=> clip_embed_image(d) < 1e-6 AS same
FROM files, unnest(list, clip_embed_images(list)) WITH ORDINALITY AS u (d, v, i) ORDER BY i;
SELECT clip_embed_texts('{}') AS texts, clip_embed_images('{}') AS images, clip_embed_texts(ARRAY[NULL, NULL]::text[]) AS nulls;
SELECT clip_embed_texts(ARRAY['a cat'], 'photo-mini') = clip_embed_texts(ARRAY['a cat']) AS same;

-- A text over the context is cut, with a warning; or an error.
SELECT vector_dims(clip_embed_text(repeat('word ', 200)));
SET clip_search.truncate_text = off;
SELECT * FROM outcome($$ SELECT clip_embed_text(repeat('word ', 200)) $$) \gx
RESET clip_search.truncate_text;

-- An image that ends too soon is an error, or is used as far as it goes, with a warning.
SELECT * FROM outcome($$ SELECT clip_embed_image(substr(data, 1, length(data) * 9 / 10)) FROM image WHERE name = 'cat.jpg' $$) \gx
SET clip_search.allow_truncated_images = on;
SELECT clip_embed_image(data) <=> clip_embed_image(substr(data, 1, length(data) * 9 / 10)) < 0.2 AS similar FROM image WHERE name = 'cat.jpg';
SELECT array_length(clip_embed_images(ARRAY[data, NULL, substr(data, 1, length(data) / 2)]), 1) FROM image WHERE name = 'cat.png';
RESET clip_search.allow_truncated_images;

-- A model looked over.
SELECT item, plain(value) AS value FROM clip_check_model('photo-mini') WHERE item NOT LIKE '%texts by images' AND item <> 'speed here';

-- With the model named the functions are IMMUTABLE: generated columns and expression indexes work.
CREATE TABLE document (body text, embedding vector(512) GENERATED ALWAYS AS (clip_embed_text(body, 'photo-mini')) STORED);
INSERT INTO document (body) VALUES ('a cat'), (NULL);
UPDATE document SET body = 'a dog' WHERE body IS NULL;
SELECT body, embedding = clip_embed_text(body) AS kept FROM document ORDER BY body;
CREATE TABLE generated (body text, embedding vector(512) GENERATED ALWAYS AS (clip_embed_text(body)) STORED);
DROP TABLE document;

-- Two threads give the same vectors but for rounding.
CREATE TEMP TABLE one AS SELECT name, clip_embed_image(data) AS v FROM image;
SET clip_search.threads = 2;
SELECT bool_and(clip_embed_image(data) <=> v < 1e-6) AS same FROM image JOIN one USING (name);

-- Zero-shot classification: the most probable label first.
SELECT name, c.label, round(c.probability::numeric, 2) AS probability
FROM image, LATERAL (SELECT * FROM clip_classify(data, ARRAY['cat', 'cup of coffee', 'rocket', 'house']) LIMIT 1) AS c
WHERE name IN ('cat.png', 'coffee.png', 'rocket.jpg') ORDER BY name;
SELECT count(*), round(sum(probability)::numeric, 6) AS sum, bool_and(probability <= before) AS falling
FROM (SELECT probability, coalesce(lag(probability) OVER (), 1) AS before
      FROM image, clip_classify(data, ARRAY['cat', 'cup of coffee', 'rocket', 'house']) WHERE name = 'cat.png') AS c;

-- An image or its embedding; one template, or several; the model by the setting, or named: the same.
CREATE TEMP TABLE class AS SELECT c.* FROM image, clip_classify(data, '{cat,dog,house}', 'a {}') AS c WHERE name = 'cat.png';
SELECT way, bool_and(abs(c.probability - class.probability) < 1e-6) AS same, count(*)
FROM (SELECT 'embedding' AS way, c.* FROM image, clip_classify(clip_embed_image(data), '{cat,dog,house}', 'a {}') AS c WHERE name = 'cat.png'
      UNION ALL SELECT 'one of several', c.* FROM image, clip_classify(data, '{cat,dog,house}', ARRAY['a {}']) AS c WHERE name = 'cat.png'
      UNION ALL SELECT 'twice the same', c.* FROM image, clip_classify(clip_embed_image(data), '{cat,dog,house}', ARRAY['a {}', 'a {}']) AS c WHERE name = 'cat.png'
      UNION ALL SELECT 'any length', c.* FROM image, clip_classify(l2_normalize(clip_embed_image(data)) + l2_normalize(clip_embed_image(data)), '{cat,dog,house}', 'a {}') AS c WHERE name = 'cat.png'
      UNION ALL SELECT 'model', c.* FROM image, clip_classify(data, '{cat,dog,house}', 'a {}', model => 'photo-mini') AS c WHERE name = 'cat.png') AS c
JOIN class USING (label) GROUP BY way ORDER BY way;
SELECT label FROM image, clip_classify(data, '{cat,cat}') WHERE name = 'cat.png';
SELECT label, probability FROM image, clip_classify(data, '{cat}') WHERE name = 'cat.png';

-- NULL gives no rows.
SELECT (SELECT count(*) FROM clip_classify(NULL::bytea, '{cat}')) AS image, (SELECT count(*) FROM clip_classify(NULL::vector, '{cat}')) AS embedding,
       (SELECT count(*) FROM image, clip_classify(data, NULL)) AS labels, (SELECT count(*) FROM image, clip_classify(data, '{cat}', NULL::text)) AS template;

-- What can't be used.
CREATE VIEW cat AS SELECT data, clip_embed_image(data) AS embedding FROM image WHERE name = 'cat.png';
SELECT o.* FROM unnest(ARRAY[
    $$ SELECT 1 FROM cat, clip_classify(data, '{}') $$,
    $$ SELECT 1 FROM cat, clip_classify(data, '{cat,NULL}') $$,
    $$ SELECT 1 FROM cat, clip_classify(data, ARRAY['cat', ' ']) $$,
    $$ SELECT 1 FROM cat, clip_classify(data, '{cat}', 'a photo') $$,
    $$ SELECT 1 FROM cat, clip_classify(data, '{cat}', '{}'::text[]) $$,
    $$ SELECT 1 FROM cat, clip_classify(data, '{cat}', ARRAY['{}', NULL]) $$,
    $$ SELECT 1 FROM cat, clip_classify(data, '{cat}', ARRAY['{}', 'a photo']) $$,
    $$ SELECT 1 FROM cat, clip_classify('[1,2]'::vector, '{cat}') $$,
    $$ SELECT 1 FROM cat, clip_classify(array_fill(0, ARRAY[512])::vector, '{cat}') $$,
    $$ SELECT 1 FROM cat, clip_classify(data, '{cat}', model => 'none') $$,
    $$ SELECT 1 FROM cat, clip_classify('hello'::bytea, '{cat}') $$,
    $$ SET clip_search.truncate_text = off; SELECT 1 FROM cat, clip_classify(data, ARRAY['cat', repeat('word ', 200)], ARRAY['{}', 'a {}']) $$
]) WITH ORDINALITY AS s (statement, n), outcome(statement) AS o ORDER BY n;
DROP VIEW cat;
RESET clip_search.truncate_text;

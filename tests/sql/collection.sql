-- Collections with settings, and what applications read of them.
CREATE TABLE pets (name text PRIMARY KEY, embedding vector(3), cluster_id bigint, tags text[], picture bytea);
SELECT clip_create_collection('pets', threshold => 0.9, dimensions => 3, members => 'pets', labels => 'tags', image => 'picture');
SELECT name, dimensions, threshold, model, members, embedding, cluster, key, labels, image FROM clip_search.collection WHERE name = 'pets';

INSERT INTO pets (name, embedding, tags) VALUES
    ('tom', '[1,0,0]', '{cat,pet,grey}'), ('kitty', '[1,0.1,0]', '{cat,pet,white}'), ('puss', '[1,0,0.1]', '{cat,pet,white}'),
    ('rex', '[0,1,0]', '{dog,pet,brown}'), ('wolf', '[0.1,1,0]', '{dog,grey}'), ('laika', '[0.04,1,0]', '{dog,space}'), ('goldie', '[0,0,1]', '{fish,pet}'), ('nameless', NULL, NULL);
UPDATE pets SET cluster_id = clip_assign_cluster(embedding, 'pets');
UPDATE pets SET picture = (SELECT data FROM image WHERE image.name = 'cat.png') WHERE pets.name IN ('tom', 'puss');
SELECT count(DISTINCT cluster_id) AS clusters FROM pets;

-- A group of one is not a group. The representative is nearest the centroid; keywords by frequency, then by how rare they are elsewhere.
SELECT size, representative, round(cohesion::numeric, 4) AS cohesion, round(lowest::numeric, 4) AS lowest, labels FROM clip_clusters('pets');
SELECT size, representative, labels FROM clip_clusters('pets', 1) WHERE size = 1;
SELECT round(max(abs(c.cohesion - m.mean))::numeric, 6) AS off
FROM clip_clusters('pets') c JOIN (SELECT cluster_id, avg(1 - (embedding <=> (SELECT centroid FROM clip_search.cluster WHERE id = cluster_id))) AS mean FROM pets GROUP BY 1) m ON m.cluster_id = c.id;
-- As JSON, the thumbnail apart.
SELECT jsonb_pretty(g - 'cluster_id' - 'cohesion' - 'lowest' - 'representative_thumbnail' - 'assets') AS group,
       (SELECT string_agg(a ->> 'id', ' ') FROM jsonb_array_elements(g -> 'assets') a) AS assets,
       substr(encode(decode(g ->> 'representative_thumbnail', 'base64'), 'hex'), 1, 6) AS thumbnail
FROM jsonb_array_elements(clip_cluster_groups('pets')) g;

-- Members leave: by clip_leave_cluster, the last one with the cluster.
SELECT clip_leave_cluster(cluster_id, embedding) FROM pets WHERE name IN ('kitty', 'goldie');
DELETE FROM pets WHERE name IN ('kitty', 'goldie');
SELECT representative, size FROM clip_clusters('pets', 1);
DO $$ BEGIN
    PERFORM clip_leave_cluster(cluster_id, '[0,0,1]') FROM pets WHERE name = 'tom';
EXCEPTION WHEN invalid_parameter_value THEN RAISE NOTICE '%', regexp_replace(SQLERRM, '\d+', 'N');
END $$;
SELECT clip_leave_cluster(-1, '[0,0,1]') AS left;

-- Grouped again: wolf has been put in the wrong group by hand, and a cat has come that nobody assigned.
UPDATE pets SET cluster_id = (SELECT cluster_id FROM pets WHERE name = 'tom') WHERE name = 'wolf';
INSERT INTO pets (name, embedding) VALUES ('felix', '[1,0.05,0.05]');
CREATE TABLE before AS SELECT * FROM pets;
SET client_min_messages = warning;
SELECT change, cardinality(sources) AS sources, size, moved FROM clip_recluster('pets');
RESET client_min_messages;
SELECT p.name, p.cluster_id = b.cluster_id AS kept, p.cluster_id = t.cluster_id AS with_tom
FROM pets p JOIN before b USING (name), pets t WHERE t.name = 'tom' ORDER BY 1;
SELECT representative, size, labels FROM clip_clusters('pets');
-- Nothing is left to change, and assignment continues where it was.
SELECT count(*) FROM clip_recluster('pets');
SELECT clip_assign_cluster('[1,0.06,0]', 'pets') = cluster_id AS with_tom FROM pets WHERE name = 'tom';
SELECT clip_recluster('pets', 'ward');

-- Duplicates are another question: no chain from one to the next, each with its original and the cosine.
CREATE TABLE shot (id int PRIMARY KEY, embedding vector(2), cluster_id bigint);
INSERT INTO shot SELECT n, ARRAY[cos(radians(5 * n)), sin(radians(5 * n))]::vector FROM generate_series(0, 5) n;
INSERT INTO shot VALUES (10, '[1,0]');
SELECT clip_create_collection('shots', members => 'shot');
SELECT original, duplicate, round(cosine::numeric, 4) AS cosine FROM clip_duplicates('shots');
SELECT original, duplicate, round(cosine::numeric, 4) AS cosine FROM clip_duplicates('shots', 0.999);
SELECT clip_duplicates('shots', 1.5);

-- What can't be.
SELECT clip_create_collection('pets');
SELECT clip_create_collection('bad', threshold => 1.1);
SELECT clip_create_collection('bad', threshold => -1);
SELECT clip_create_collection('bad', dimensions => 0);
SELECT clip_create_collection('');
SELECT clip_create_collection(repeat('x', 64));
SELECT clip_create_collection('bad', members => 'pets', embedding => 'vector');
SELECT clip_create_collection('bad', members => 'pets', cluster => 'tags');
SELECT clip_create_collection('bad', members => 'before');
SELECT clip_assign_cluster('[1,0]', 'pets');
SELECT clip_assign_cluster('[1,0,0]', repeat('x', 64));
SELECT clip_drop_collection('none');
SELECT clip_recluster('none');
SELECT clip_assign_cluster('[1,0]', 'loose') IS NOT NULL AS assigned;
SELECT clip_recluster('loose');
SELECT size, representative FROM clip_clusters('loose', 1);

-- Vectors of one model only, where the session knows which model made them.
SELECT clip_create_collection('of a model', model => 'another-model');
SELECT clip_assign_cluster(clip_embed_text('a cat'), 'of a model');

-- A threshold of 1 joins equal vectors only.
SELECT clip_create_collection('same', threshold => 1);
SELECT clip_assign_cluster('[0.3,0.5,0.7]', 'same') AS c \gset
SELECT clip_assign_cluster('[0.3,0.5,0.7]', 'same') = :c AS equal, clip_assign_cluster('[0.3,0.5,0.7001]', 'same') = :c AS nearly;

SELECT clip_drop_collection(name) FROM clip_search.collection;
SELECT (SELECT count(*) FROM clip_search.cluster_sum) + (SELECT count(*) FROM clip_search.cluster_change) + (SELECT count(*) FROM clip_search.cluster_code) AS rows_left;
DROP TABLE pets, before, shot;

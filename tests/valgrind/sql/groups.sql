-- Clusters, the tables below them, and rows of others that are not decided yet: the dirty snapshots of src/cluster/tables.rs.
SET clip_search.cluster_threshold = 0.9;
SELECT count(DISTINCT clip_assign_cluster(v, 'demo')) AS clusters FROM unnest(ARRAY['[1,0,0]', '[0,1,0]', '[1,0.1,0]', '[0.1,1,0]', '[0,0,1]']::vector[]) AS v;
SELECT size, centroid, round(resultant::numeric, 5) AS resultant FROM clip_search.cluster WHERE collection = 'demo' ORDER BY id;
-- Founded, joined and left by transactions that are prepared; then decided either way.
BEGIN;
SELECT clip_assign_cluster('[-1,0,0]', 'demo') AS theirs \gset
SELECT clip_leave_cluster(:theirs - 1, '[0,0,1]');
PREPARE TRANSACTION 'one';
SELECT clip_assign_cluster('[-1,0.1,0]', 'demo') = :theirs AS joined, clip_assign_cluster('[0,0.1,1]', 'demo') IS NOT NULL AS there;
BEGIN;
SELECT clip_assign_cluster('[-1,-0.1,0]', 'demo') = :theirs AS joined;
PREPARE TRANSACTION 'two';
COMMIT PREPARED 'two';
ROLLBACK PREPARED 'one';
SELECT size FROM clip_search.cluster WHERE id = :theirs;
BEGIN;
SAVEPOINT s;
SELECT clip_assign_cluster('[0,-1,0]', 'demo') IS NOT NULL AS assigned, clip_assign_cluster('[0,-1,0]', 'fresh') IS NOT NULL AS in_a_new_one;
ROLLBACK TO s;
SELECT clip_assign_cluster('[0,-1,0]', 'demo') IS NOT NULL AS assigned;
COMMIT;
-- From a snapshot that is older than the rows.
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT count(*) > 0 AS snapshot FROM clip_search.cluster;
SELECT clip_assign_cluster('[1,0.05,0]', 'demo') IS NOT NULL AS assigned;
COMMIT;
-- Many, so that codes and changes are folded together: 512 dimensions as of a model.
SELECT count(DISTINCT clip_assign_cluster(v, 'many')) > 1 AS clusters
FROM (SELECT (SELECT array_agg(sin(i * (n % 60 + 1)) + 0.01 * cos(n + i)) FROM generate_series(1, 512) i)::vector AS v FROM generate_series(1, 300) n) AS rows;
SELECT sum(size) FROM clip_search.cluster WHERE collection = 'many';

-- A collection with members, and what is read of it.
CREATE TABLE pets (name text PRIMARY KEY, embedding vector(3), cluster_id bigint, tags text[], picture bytea);
SELECT clip_create_collection('pets', threshold => 0.9, dimensions => 3, members => 'pets', labels => 'tags', image => 'picture');
INSERT INTO pets (name, embedding, tags) VALUES
    ('tom', '[1,0,0]', '{cat,pet,grey}'), ('kitty', '[1,0.1,0]', '{cat,pet,white}'), ('puss', '[1,0,0.1]', '{cat,pet,NULL}'),
    ('rex', '[0,1,0]', '{dog,pet,brown}'), ('wolf', '[0.1,1,0]', '{dog,grey}'), ('nameless', NULL, NULL);
UPDATE pets SET cluster_id = clip_assign_cluster(embedding, 'pets');
UPDATE pets SET picture = data FROM image WHERE image.name = 'cat.png' AND pets.name IN ('tom', 'puss');
SELECT size, representative, labels FROM clip_clusters('pets') ORDER BY representative;
SELECT jsonb_array_length(clip_cluster_groups('pets')) AS groups;
SELECT original, duplicate FROM clip_duplicates('pets', 0.99) ORDER BY 1, 2;
UPDATE pets SET cluster_id = (SELECT cluster_id FROM pets WHERE name = 'tom') WHERE name = 'wolf';
SET client_min_messages = warning;
SELECT change, size, moved FROM clip_recluster('pets') ORDER BY 1, 2;
SELECT count(*) FROM clip_recluster('pets', 'average');
RESET client_min_messages;
SELECT clip_leave_cluster(cluster_id, embedding) FROM pets WHERE name = 'kitty';
-- Compared by blocks, more than one of them.
CREATE TABLE member (id int PRIMARY KEY, embedding vector(64), cluster_id bigint);
SELECT clip_create_collection('c', 0.7, members => 'member');
INSERT INTO member SELECT n, (SELECT array_agg(sin(i * (n % 20 + 1)) + 0.1 * cos(n * i)) FROM generate_series(1, 64) i)::vector FROM generate_series(1, 400) n;
SET client_min_messages = warning;
SELECT count(*) > 0 AS grouped FROM clip_recluster('c');
RESET client_min_messages;
SELECT count(*), count(cluster_id) FROM member;
SELECT outcome(s), s FROM unnest(ARRAY[
    $$SELECT clip_assign_cluster('[0,0,0]', 'pets')$$,
    $$SELECT clip_assign_cluster('[1,0]', 'pets')$$,
    $$SELECT clip_assign_cluster('[1,0,0]', '')$$,
    $$SELECT clip_leave_cluster(cluster_id, '[0,0,-1]') FROM pets WHERE name = 'tom'$$,
    $$SELECT clip_create_collection('pets')$$,
    $$SELECT clip_create_collection('bad', members => 'pets', cluster => 'tags')$$,
    $$SELECT clip_recluster('none')$$,
    $$SELECT clip_recluster('pets', 'nonsense')$$,
    $$SELECT clip_clusters('none')$$
]) WITH ORDINALITY AS u (s, n) ORDER BY n;
BEGIN READ ONLY;
SELECT clip_assign_cluster('[1,0,0]', 'pets');
ROLLBACK;
SELECT clip_drop_collection(name) FROM clip_search.collection;

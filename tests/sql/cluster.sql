-- Joins the nearest cluster at cosine >= threshold, else founds one.
SET clip_search.cluster_threshold = 0.9;
SELECT clip_assign_cluster('[1,0,0]', 'demo') AS a \gset
SELECT clip_assign_cluster('[0,1,0]', 'demo') AS b \gset
SELECT :a <> :b AS apart;
SELECT clip_assign_cluster('[2,0.2,0]', 'demo') = :a AS near_a, clip_assign_cluster('[0,3,0]', 'demo') = :b AS is_b;
-- The cosine of 45 degrees is 0.707: a third one.
SELECT clip_assign_cluster('[1,1,0]', 'demo') NOT IN (:a, :b) AS founded;
-- The centroid is the normalised mean, and its length before that the resultant.
SELECT size, round(resultant::numeric, 6) AS resultant, round((centroid <=> (l2_normalize('[1,0,0]'::vector) + l2_normalize('[2,0.2,0]'::vector)))::numeric, 6) AS off,
       round(vector_norm(centroid)::numeric, 6) AS norm
FROM clip_search.cluster WHERE id = :a;
SELECT name, dimensions, threshold FROM clip_search.collection WHERE name = 'demo';

-- The threshold is a setting: at 0.7 the vector joins the nearest, at 1 only equal ones do.
SET clip_search.cluster_threshold = 0.7;
SELECT clip_assign_cluster('[1,0.4,0]', 'demo') = :a AS joined;
SET clip_search.cluster_threshold = 1;
SELECT clip_assign_cluster('[0.3,0.5,0.7]', 'exact') AS c \gset
SELECT clip_assign_cluster('[0.3,0.5,0.7]', 'exact') = :c AS equal, clip_assign_cluster('[0.3,0.5,0.7001]', 'exact') = :c AS nearly,
       clip_assign_cluster('[0.6,1,1.4]', 'exact') = :c AS longer;
RESET clip_search.cluster_threshold;

-- Collections are apart, and the one-argument form has its own.
SELECT clip_assign_cluster('[1,0,0]', 'other') <> :a AS apart;
SELECT collection, count(*), sum(size) FROM clip_search.cluster GROUP BY 1 ORDER BY 1;

-- A rolled back assignment leaves nothing; neither does a savepoint's.
BEGIN;
SELECT clip_assign_cluster('[0,0,1]', 'demo') IS NOT NULL AS assigned;
ROLLBACK;
BEGIN;
SAVEPOINT s;
SELECT clip_assign_cluster('[0,0,1]', 'fresh') IS NOT NULL AS assigned;
ROLLBACK TO s;
COMMIT;
SELECT collection, count(*), sum(size) FROM clip_search.cluster GROUP BY 1 ORDER BY 1;

-- Several in one statement see each other.
SELECT count(DISTINCT clip_assign_cluster(v, 'many')) AS clusters FROM unnest(ARRAY['[1,0]', '[0,1]', '[1,0.1]', '[0.1,1]', '[1,0]']::vector[]) AS v;

-- The trigger of the README: photos of one subject end in one group.
CREATE TABLE photo (name text PRIMARY KEY, data bytea, embedding vector(512), cluster_id bigint);
CREATE FUNCTION photo_embed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP <> 'INSERT' THEN
        PERFORM clip_leave_cluster(OLD.cluster_id, OLD.embedding);
    END IF;
    IF TG_OP = 'DELETE' THEN
        RETURN OLD;
    END IF;
    NEW.embedding := clip_embed_image(NEW.data);
    NEW.cluster_id := clip_assign_cluster(NEW.embedding, 'photo');
    RETURN NEW;
END $$;
CREATE TRIGGER photo_embed BEFORE INSERT OR DELETE OR UPDATE OF data ON photo FOR EACH ROW EXECUTE FUNCTION photo_embed();
INSERT INTO photo (name, data) SELECT name, data FROM image ORDER BY name;
SELECT array_agg(name ORDER BY name) AS members, c.size FROM photo JOIN clip_search.cluster c ON c.id = cluster_id GROUP BY c.id, c.size ORDER BY 1;
-- A photo that is replaced changes its group, one that is deleted leaves it; a change of anything else does nothing.
UPDATE photo SET data = (SELECT data FROM image WHERE name = 'rocket.jpg') WHERE name = 'cat.png';
DELETE FROM photo WHERE name IN ('coffee.png', 'cat_exif6.jpg');
UPDATE photo SET name = upper(name);
SELECT array_agg(name ORDER BY name) AS members, c.size FROM photo JOIN clip_search.cluster c ON c.id = cluster_id GROUP BY c.id, c.size ORDER BY 1;
SELECT count(*), sum(size) FROM clip_search.cluster WHERE collection = 'photo';
SELECT clip_drop_collection('photo');
DELETE FROM photo;
DROP TABLE photo;
DROP FUNCTION photo_embed;

-- A plain user: may group through the function, and read; may not write the tables or choose where models come from.
CREATE ROLE clip_plain_user;
SET ROLE clip_plain_user;
SELECT clip_assign_cluster('[1,0,0]', 'demo') = :a AS joined;
SELECT count(*) > 0 AS readable FROM clip_search.cluster;
DELETE FROM clip_search.cluster_sum;
UPDATE clip_search.collection_setting SET dimensions = 4;
SELECT clip_create_collection('mine');
SELECT clip_drop_collection('demo');
SET clip_search.model_path = '/tmp';
SET clip_search.onnxruntime = '/tmp/x.so';
RESET ROLE;
DROP ROLE clip_plain_user;

SELECT clip_drop_collection(name) FROM clip_search.collection;
SELECT count(*) FROM clip_search.cluster;

-- The gallery on Citus: the photos of gallery.sql in a distributed table, with the statements of docs/citus.md. Run it on the
-- coordinator, from this folder: psql -X -v ON_ERROR_STOP=1 -f citus.sql. What differs from gallery.sql: clip_group groups
-- the photos on the coordinator after they are embedded; and functions that read the table are in PL/pgSQL, since Citus
-- doesn't plan those in SQL that have parameters.

\set QUIET on
\set SHOW_CONTEXT never
\pset pager off
\pset format unaligned
\pset tuples_only on
SET client_min_messages = warning;

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_namespace WHERE nspname = 'gallery'
               AND obj_description(oid, 'pg_namespace') IS DISTINCT FROM 'clip_search gallery demo') THEN
        RAISE EXCEPTION 'database "%" has a schema "gallery" that is not this demo''s', current_database()
            USING HINT = 'Rename that schema, or run the demo in another database.';
    END IF;
END $$;
DROP SCHEMA IF EXISTS gallery CASCADE;
CREATE EXTENSION IF NOT EXISTS clip_search CASCADE;
SELECT clip_drop_collection(name) FROM clip_search.collection WHERE name = 'gallery' \g /dev/null
CREATE SCHEMA gallery;
COMMENT ON SCHEMA gallery IS 'clip_search gallery demo';
SET search_path = gallery, public;

-- 1. Photos

CREATE TABLE photo (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    title      text NOT NULL,
    keywords   text[] NOT NULL,
    data       bytea NOT NULL,
    credit     text,
    embedding  vector(512) STORAGE PLAIN,
    cluster_id bigint
);
SELECT create_distributed_table('photo', 'id', shard_count => 4) \g /dev/null
CREATE INDEX photo_embedding_idx ON photo USING hnsw (embedding vector_cosine_ops);

SELECT clip_watch('photo', 'data', cluster => 'cluster_id', collection => 'gallery', model => 'photo-mini', labels => 'keywords') \g /dev/null

\ir photos.sql
SELECT clip_group('photo') \g /dev/null
SELECT format('ON CITUS: %s photos in %s shards on %s workers, embedded there',
              (SELECT count(*) FROM photo), count(*), count(DISTINCT (nodename, nodeport)))
FROM citus_shards WHERE table_name = 'photo'::regclass;
\echo

-- 2. Searches

-- The photos nearest to a vector, the best one of each group.
CREATE FUNCTION nearest(asked vector, wanted int DEFAULT 3)
RETURNS TABLE (rank bigint, id bigint, title text, cosine float8) LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN QUERY
    WITH near AS MATERIALIZED (
        SELECT p.id, p.title, p.cluster_id, p.embedding <=> asked AS distance
        FROM gallery.photo p ORDER BY p.embedding <=> asked LIMIT 40
    ), best AS (
        SELECT DISTINCT ON (n.cluster_id) n.id, n.title, 1 - n.distance AS cosine FROM near n ORDER BY n.cluster_id, n.distance
    )
    SELECT row_number() OVER (ORDER BY b.cosine DESC), b.id, b.title, b.cosine FROM best b ORDER BY b.cosine DESC LIMIT wanted;
END $$;
CREATE FUNCTION search(words text, wanted int DEFAULT 3)
RETURNS TABLE (rank bigint, id bigint, title text, cosine float8) LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN QUERY SELECT * FROM gallery.nearest(clip_embed_text(words, 'photo-mini'), wanted);
END $$;

CREATE TABLE query (id int GENERATED ALWAYS AS IDENTITY, words text, subject text);
INSERT INTO query (words, subject) VALUES
    ('sleepy striped house cat', 'Tabby Cat'),
    ('a cup of coffee', 'Espresso'),
    ('rocket launch', 'Rocket'),
    ('photographer with a tripod', 'Photographer'),
    ('ancient pagoda by a lake', 'Pagoda'),
    ('orange flower', 'Dahlia'),
    ('wild animal in the forest', 'Raccoon'),
    ('steel staircase', 'Staircase'),
    ('wall clock', 'Wall Clock'),
    ('outer space', 'Deep Space');
CREATE TABLE answer AS
SELECT q.id, q.words, q.subject, s.rank, s.title, s.cosine, split_part(s.title, ' (', 1) = q.subject AS is_right
FROM query q CROSS JOIN LATERAL search(q.words) s;

\echo 'SEARCH BY WORDS: the nearest subjects and their cosine'
\echo
SELECT format('   %s %-27s %s', CASE WHEN bool_and(is_right) FILTER (WHERE rank = 1) THEN '✓' ELSE '✗' END, words,
              string_agg(format('%s %s', title, to_char(cosine, 'FM0.000')), ', ' ORDER BY rank))
FROM answer GROUP BY id, words ORDER BY id;
\echo

\echo 'BY EXAMPLE: the photos nearest to one'
\echo
CREATE TABLE example (subject text, rank bigint, title text, cosine float8);
DO $$
DECLARE
    asked vector;
    subject text;
BEGIN
    FOR subject IN SELECT q.subject FROM query AS q LOOP
        asked := (SELECT p.embedding FROM photo AS p WHERE p.title = subject);
        INSERT INTO example
        SELECT subject, row_number() OVER (ORDER BY n.distance), n.title, 1 - n.distance FROM (
            SELECT p.title, p.embedding <=> asked AS distance FROM photo AS p ORDER BY p.embedding <=> asked LIMIT 4) AS n;
    END LOOP;
END $$;
SELECT format('   %-13s %s', subject, string_agg(format('%s %s', title, to_char(cosine, 'FM0.000')), ', ' ORDER BY rank))
FROM example WHERE rank > 1 AND subject IN ('Tabby Cat', 'Rocket', 'Raccoon') GROUP BY subject ORDER BY subject;
\echo

-- 3. Groups

CREATE TABLE photo_groups AS
WITH member AS MATERIALIZED (SELECT id, title, cluster_id FROM photo)
SELECT c.id AS cluster_id, c.size, string_agg(m.title, ', ' ORDER BY m.id) AS members, count(*) AS photos,
       count(DISTINCT split_part(m.title, ' (', 1)) AS subjects
FROM clip_clusters('gallery', 1) AS c LEFT JOIN member AS m ON m.cluster_id = c.id
GROUP BY c.id, c.size;

\echo 'GROUPS of look-alikes, over all shards'
\echo
SELECT format('   %s  %s', lpad(cluster_id::text, 3), members) FROM photo_groups ORDER BY cluster_id;
\echo

-- 4. Was all of it right?

CREATE TEMP TABLE wrong AS
SELECT format('"%s" found %s first, not %s', words, title, subject) AS what FROM answer WHERE rank = 1 AND NOT is_right
UNION ALL
SELECT format('"%s" found nothing', words) FROM query WHERE id NOT IN (SELECT id FROM answer)
UNION ALL
SELECT format('near to %s is %s', subject, title) FROM example WHERE rank <= 3 AND split_part(title, ' (', 1) <> subject
UNION ALL
SELECT format('cluster %s of %s is not one subject (%s)', cluster_id, size, members) FROM photo_groups WHERE subjects > 1 OR size <> 3 OR photos <> size
UNION ALL
SELECT format('%s groups of %s subjects', count(*), (SELECT count(*) FROM query)) FROM photo_groups
HAVING count(*) <> (SELECT count(*) FROM query);

DO $$
BEGIN
    IF EXISTS (SELECT FROM wrong) THEN
        RAISE EXCEPTION 'the gallery is not right: % of its checks failed', (SELECT count(*) FROM wrong)
            USING DETAIL = (SELECT string_agg(what, E'\n') FROM wrong),
                  HINT = 'The queries and the threshold 0.82 are chosen for the model photo-mini.';
    END IF;
END $$;
SELECT format('RIGHT: %s of %s queries found their photo first; %s photos form %s groups, one a subject.',
              (SELECT count(*) FROM answer WHERE rank = 1 AND is_right), (SELECT count(*) FROM query),
              (SELECT count(*) FROM photo), (SELECT count(*) FROM photo_groups));

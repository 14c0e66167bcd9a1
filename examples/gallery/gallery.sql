-- A photo gallery in PostgreSQL: embed and group on insert, then search by words. See README.md.
-- Run it with run.sh in this directory, which stops at the first error.

\set QUIET on
\set SHOW_CONTEXT never
\pset pager off
\pset format unaligned
\pset tuples_only on
SET client_min_messages = warning;

-- A second run starts clean, but a schema `gallery` that this file did not make is left alone.
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

SELECT format('%s, model %s%s', split_part(clip_version(), ' (', 1), current_setting('clip_search.model'),
              CASE WHEN current_setting('clip_search.model') = 'photo-mini'
                   THEN ': a stand-in that works at once and offline. It is not CLIP.' END);
\echo

-- 1. Photos

CREATE TABLE photo (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    title      text NOT NULL,
    keywords   text[] NOT NULL,
    data       bytea NOT NULL,
    credit     text,
    embedding  vector(512) NOT NULL,
    cluster_id bigint NOT NULL
);

-- The table of the groups' members, for clip_clusters() and clip_cluster_groups().
SELECT clip_create_collection('gallery', members => 'photo', labels => 'keywords', image => 'data') \g /dev/null

-- Photos are only inserted here, without ON CONFLICT; clip_watch, or docs/how-to/own-trigger.md, handles all statements.
CREATE FUNCTION embed_photo() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.embedding := clip_embed_image(NEW.data);
    NEW.cluster_id := clip_assign_cluster(NEW.embedding, 'gallery');
    RETURN NEW;
END $$;

CREATE TRIGGER embed_photo BEFORE INSERT ON photo FOR EACH ROW EXECUTE FUNCTION embed_photo();

\echo 'PHOTOS IN: a trigger embeds and groups each photo as it is inserted'
\echo
\echo '   NEW.embedding  := clip_embed_image(NEW.data);'
\echo '   NEW.cluster_id := clip_assign_cluster(NEW.embedding, ''gallery'');'
\echo

SELECT clock_timestamp() AS started \gset
\ir photos.sql
\ir more.sql
SELECT format('   %s photos in %s s, model load included: %s subjects; ten of them as one photo, also mirrored and cropped,'
              || E'\n   the others as several photos',
              count(*), round(extract(epoch FROM clock_timestamp() - :'started')::numeric, 2),
              count(DISTINCT split_part(title, ' (', 1)))
FROM photo;
\echo

CREATE INDEX photo_embedding_idx ON photo USING hnsw (embedding vector_cosine_ops);
ANALYZE photo;

-- 2. Search by words

-- The photos nearest to some words, the best one of each group: three copies of one cat would hide what comes
-- second. 40 candidates is what an HNSW index gives at the default of hnsw.ef_search.
CREATE FUNCTION search(words text, wanted int DEFAULT 3)
RETURNS TABLE (rank bigint, id bigint, title text, cosine float8) LANGUAGE sql STABLE AS $$
    WITH asked AS MATERIALIZED (
        SELECT clip_embed_text(words) AS embedding
    ), near AS (
        SELECT p.id, p.title, p.cluster_id, p.embedding <=> (SELECT a.embedding FROM asked a) AS distance
        FROM gallery.photo p
        ORDER BY distance
        LIMIT 40
    ), best AS (
        SELECT DISTINCT ON (n.cluster_id) n.id, n.title, 1 - n.distance AS cosine
        FROM near n
        ORDER BY n.cluster_id, n.distance
    )
    SELECT row_number() OVER (ORDER BY b.cosine DESC), b.id, b.title, b.cosine
    FROM best b
    ORDER BY b.cosine DESC
    LIMIT wanted
$$;

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
    ('outer space', 'Deep Space'),
    ('claw hammer', 'Hammer'),
    ('solar panels on a roof', 'Solar Panels');

CREATE TABLE answer AS
SELECT q.id, q.words, q.subject, s.rank, s.title, s.cosine, split_part(s.title, ' (', 1) = q.subject AS is_right
FROM query q CROSS JOIN LATERAL search(q.words) s;

\echo 'SEARCH BY WORDS: the three nearest subjects (best copy of each) and their cosine'
\echo
SELECT rtrim(format('   %s %-27s %s  %-24s %s  %s',
                    CASE WHEN rank > 1 THEN ' ' WHEN is_right THEN '✓' ELSE '✗' END,
                    CASE WHEN rank = 1 THEN words ELSE '' END,
                    rank, title, lpad(to_char(cosine, 'FM0.000'), 6),
                    repeat('█', greatest(0, round(cosine * 40))::int)))
       || CASE WHEN rank = max(rank) OVER (PARTITION BY id) THEN E'\n' ELSE '' END
FROM answer
ORDER BY id, rank;

-- Some photo is always nearest; a version of clip_search that has relevance also finds nothing.
SELECT EXISTS (SELECT FROM pg_proc WHERE proname = 'clip_relevance' AND pg_function_is_visible(oid)) AS has_relevance \gset
CREATE TABLE nothing (words text, found bigint);
\if :has_relevance
INSERT INTO nothing
SELECT 'tax return form', count(*) FROM photo WHERE clip_relevance(embedding, 'tax return form') >= 0.5;
\echo 'RELEVANCE: photos above the cut of 0.5'
\echo
SELECT format('   %s %-27s %s', CASE found WHEN 0 THEN '✓' ELSE '✗' END, words, CASE found WHEN 0 THEN 'none, rightly' ELSE found || ' photos' END)
FROM nothing;
\echo
\endif

-- 3. Groups

\echo 'GROUPS: look-alikes found each other on insert; labels are their most telling keywords'
\echo

CREATE VIEW photo_group AS
WITH of_subject AS (
    SELECT cluster_id, min(id) AS first_id,
           split_part(title, ' (', 1) || ': '
           || string_agg(coalesce(substring(title FROM '\((.*)\)'), 'original'), ', ' ORDER BY id) AS variants
    FROM gallery.photo GROUP BY cluster_id, split_part(title, ' (', 1)
), membership AS (
    SELECT cluster_id, string_agg(variants, '; ' ORDER BY first_id) AS members, count(*) AS subjects
    FROM of_subject GROUP BY cluster_id
)
SELECT c.id AS cluster_id, array_to_string(c.labels[:2], ', ') AS labels, p.title AS representative, m.members,
       m.subjects, c.lowest AS lowest_cosine
FROM clip_clusters('gallery', 1) c
JOIN gallery.photo p ON p.id = c.representative
JOIN membership m ON m.cluster_id = c.id;

SELECT format('   %7s  %-20s  %-24s  %s', 'cluster', 'labels', 'representative', 'members');
SELECT format('   %7s  %-20s  %-24s  %s', cluster_id, labels, representative, members)
FROM photo_group
ORDER BY cluster_id;

SELECT format(E'\n   Cosine to the own centroid at least %s, between two centroids at most %s; threshold %s.',
              (SELECT to_char(min(lowest_cosine), 'FM0.000') FROM photo_group),
              (SELECT to_char(max(1 - (a.centroid <=> b.centroid)), 'FM0.000')
               FROM clip_search.cluster a JOIN clip_search.cluster b USING (collection)
               WHERE collection = 'gallery' AND a.id < b.id),
              current_setting('clip_search.cluster_threshold'));
\echo

-- 4. Latency

-- A new connection, so that loading the model is measured as an application would meet it.
\connect
SET client_min_messages = warning;
SET search_path = gallery, public;

CREATE TABLE latency (id int GENERATED ALWAYS AS IDENTITY, what text, ms float8, items int);

DO $$
DECLARE
    photos bytea[] := (SELECT array_agg(data ORDER BY id) FROM photo WHERE title NOT LIKE '%(%');
    queries text[] := (SELECT array_agg(words ORDER BY id) FROM query);
    photo bytea;
    words text;
    started timestamptz;
    first_image float8;
    one_image float8;
    first_text float8;
    one_text float8;
BEGIN
    PERFORM clip_version();     -- loads the extension's library, not yet a model

    started := clock_timestamp();
    PERFORM clip_embed_image(photos[1]);
    first_image := 1000 * extract(epoch FROM clock_timestamp() - started);

    started := clock_timestamp();
    FOREACH photo IN ARRAY photos LOOP
        PERFORM clip_embed_image(photo);
    END LOOP;
    one_image := 1000 * extract(epoch FROM clock_timestamp() - started) / cardinality(photos);

    started := clock_timestamp();
    PERFORM clip_embed_text('something else first');
    first_text := 1000 * extract(epoch FROM clock_timestamp() - started);

    started := clock_timestamp();
    FOREACH words IN ARRAY queries LOOP
        PERFORM clip_embed_text(words);
    END LOOP;
    one_text := 1000 * extract(epoch FROM clock_timestamp() - started) / cardinality(queries);

    INSERT INTO latency (what, ms, items) VALUES
        ('model load, image side', greatest(0, first_image - one_image), 1),
        ('model load, text side', greatest(0, first_text - one_text), 1),
        ('photo, one by one', one_image * cardinality(photos), cardinality(photos));

    -- The first batch takes its memory, and finds out whether photos are faster together or singly. They would be remembered.
    SET LOCAL clip_search.memo_images = 0;
    PERFORM clip_embed_images(photos);
    started := clock_timestamp();
    PERFORM clip_embed_images(photos);
    INSERT INTO latency (what, ms, items) VALUES
        ('photo, in one batch', 1000 * extract(epoch FROM clock_timestamp() - started), cardinality(photos)),
        ('query, words to embedding', one_text * cardinality(queries), cardinality(queries));

    started := clock_timestamp();
    PERFORM * FROM search('words not asked for yet');
    INSERT INTO latency (what, ms, items) VALUES
        ('search, words to photos', 1000 * extract(epoch FROM clock_timestamp() - started), 1);
END $$;

SELECT format('LATENCY: measured just now in a new connection, on the CPU, threads %s, %s',
              current_setting('clip_search.threads'), substring(clip_version() FROM '\((.*)\)'));
\echo
SELECT format('   %-26s %s ms%s', what, lpad(to_char(ms / items, 'FM99990.0'), 8),
              CASE WHEN items > 1 THEN format(' each   (%s in %s ms)', items, to_char(ms, 'FM999990.0')) END)
FROM latency
ORDER BY id;
\echo

-- 5. The plan

CREATE FUNCTION plan(statement text) RETURNS SETOF text LANGUAGE plpgsql AS $$
BEGIN
    RETURN QUERY EXECUTE 'EXPLAIN (COSTS OFF) ' || statement;
END $$;

\set search_statement 'SELECT title FROM photo ORDER BY embedding <=> clip_embed_text(''wall clock'') LIMIT 3'
SELECT 'THE PLAN: ' || CASE WHEN bool_or(line LIKE '%Index Scan using photo_embedding_idx%')
                           THEN 'the words are embedded once, then the HNSW index is walked'
                           ELSE 'for this few photos the planner prefers to read them all' END
FROM plan(:'search_statement') line;
\echo
\echo '  ' :search_statement
\echo
SELECT '   ' || line FROM plan(:'search_statement') line;
\echo

-- 6. Was all of it right?

CREATE VIEW wrong AS
SELECT format('"%s" found %s first, not %s', words, title, subject) AS what
FROM answer WHERE rank = 1 AND NOT is_right
UNION ALL
SELECT format('"%s" found nothing', words) FROM query WHERE id NOT IN (SELECT id FROM answer)
UNION ALL
SELECT format('"%s" found %s photos, and should find none', words, found) FROM nothing WHERE found > 0
UNION ALL
SELECT format('cluster %s mixes subjects (%s)', cluster_id, members) FROM photo_group WHERE subjects > 1
UNION ALL
SELECT format('%s is split over clusters %s',
              split_part(title, ' (', 1), string_agg(DISTINCT cluster_id::text, ', '))
FROM photo GROUP BY split_part(title, ' (', 1) HAVING count(DISTINCT cluster_id) > 1
UNION ALL
SELECT format('%s clusters of %s subjects', clusters, subjects)
FROM (SELECT count(DISTINCT cluster_id) AS clusters, count(DISTINCT split_part(title, ' (', 1)) AS subjects FROM photo) n
WHERE clusters <> subjects OR subjects <> 12
UNION ALL
SELECT format('photo "%s" is in cluster %s, which is not in collection gallery', title, cluster_id)
FROM photo WHERE cluster_id NOT IN (SELECT id FROM clip_search.cluster WHERE collection = 'gallery')
UNION ALL
SELECT format('%s groups are listed, not 12', count(*)) FROM photo_group HAVING count(*) <> 12;

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
              (SELECT count(*) FROM photo), (SELECT count(*) FROM photo_group));
\echo

\echo 'NEXT'
\echo
\echo '   eval "$(make -s env)"; psql      # the gallery stays in this cluster'
\echo
\echo '   SELECT * FROM gallery.search(''something hot to drink'');'
\echo '   SELECT title FROM gallery.photo'
\echo '   ORDER BY embedding <=> (SELECT embedding FROM gallery.photo WHERE title = ''Raccoon'') LIMIT 4;'
\echo
\echo '   Your own photos: examples/gallery/README.md.'
\echo '   Real CLIP: photo-mini knows things, animals, food, vehicles and buildings, but not people, styles'
\echo '   or ideas. Put Xenova/clip-vit-base-patch32 into the model directory (README.md, "Use a real model"),'
\echo '   SET clip_search.model = ''clip-vit-base-patch32'' and insert the photos again: the vectors of two'
\echo '   models can''t be compared.'

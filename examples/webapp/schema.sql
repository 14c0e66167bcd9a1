-- The web application's table. You can run this script again at any time: it keeps what exists, creates what is missing, and
-- embeds photos without an embedding. After a change of model:
--     ALTER TABLE webapp.photo DROP COLUMN embedding; SELECT clip_drop_collection('webapp');
--     \i schema.sql

\set ON_ERROR_STOP on
\set QUIET on
SET client_min_messages = warning;

CREATE EXTENSION IF NOT EXISTS clip_search CASCADE;
-- The column has as many dimensions as the model in use.
SELECT vector_dims(clip_embed_text('a photo')) AS dimensions \gset

BEGIN;
CREATE SCHEMA IF NOT EXISTS webapp;
CREATE TABLE IF NOT EXISTS webapp.photo (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    title    text NOT NULL CHECK (char_length(title) BETWEEN 1 AND 200),
    data     bytea NOT NULL,
    digest   bytea NOT NULL GENERATED ALWAYS AS (sha256(data)) STORED UNIQUE,
    added_at timestamptz NOT NULL DEFAULT now()
);
ALTER TABLE webapp.photo
    ADD COLUMN IF NOT EXISTS thumbnail bytea,
    ADD COLUMN IF NOT EXISTS embedding vector(:dimensions),
    ADD COLUMN IF NOT EXISTS cluster_id bigint,
    -- Image files are already compressed.
    ALTER COLUMN data SET STORAGE EXTERNAL,
    ALTER COLUMN thumbnail SET STORAGE EXTERNAL;
CREATE INDEX IF NOT EXISTS photo_embedding_idx ON webapp.photo USING hnsw (embedding vector_cosine_ops);
CREATE INDEX IF NOT EXISTS photo_cluster_idx ON webapp.photo (cluster_id);

SELECT clip_create_collection('webapp', members => 'webapp.photo', key => 'id')
WHERE NOT EXISTS (SELECT FROM clip_search.collection WHERE name = 'webapp') \g /dev/null

-- What happens to a photo is here, so every client gets the same. The embedding and the thumbnail are made before the row is written,
-- the group is assigned after: ON CONFLICT fires BEFORE triggers for rows that it then doesn't insert (docs/how-to/own-trigger.md).
CREATE OR REPLACE FUNCTION webapp.keep_photo() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.embedding := clip_embed_image(NEW.data);
    NEW.thumbnail := clip_thumbnail(NEW.data, 480, 'jpeg');
    RETURN NEW;
END $$;
CREATE OR REPLACE TRIGGER keep_photo BEFORE INSERT OR UPDATE OF data ON webapp.photo
    FOR EACH ROW EXECUTE FUNCTION webapp.keep_photo();

CREATE OR REPLACE FUNCTION webapp.group_photo() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP <> 'INSERT' THEN
        PERFORM clip_leave_cluster(OLD.cluster_id, OLD.embedding);
    END IF;
    IF TG_OP <> 'DELETE' THEN
        UPDATE webapp.photo SET cluster_id = clip_assign_cluster(NEW.embedding, 'webapp') WHERE id = NEW.id;
    END IF;
    RETURN NULL;
END $$;
CREATE OR REPLACE TRIGGER group_photo AFTER INSERT OR DELETE OR UPDATE OF data ON webapp.photo
    FOR EACH ROW EXECUTE FUNCTION webapp.group_photo();

UPDATE webapp.photo SET data = data WHERE embedding IS NULL;
COMMIT;

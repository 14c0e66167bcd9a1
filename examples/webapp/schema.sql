-- The web application's tables. You can run this script again at any time: it keeps what exists, creates what is missing, and
-- embeds photos without an embedding. To change the model of a table that has photos, use clip_reembed.

\set ON_ERROR_STOP on
\set QUIET on
SET client_min_messages = warning;

CREATE EXTENSION IF NOT EXISTS clip_search CASCADE;

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
    ADD COLUMN IF NOT EXISTS cluster_id bigint,
    -- The camera's clock, which has no time zone; otherwise the file's date or the time of the upload.
    ADD COLUMN IF NOT EXISTS taken_at timestamp,
    ADD COLUMN IF NOT EXISTS dated_by text CHECK (dated_by IN ('camera', 'file', 'upload')),
    ADD COLUMN IF NOT EXISTS format text,
    ADD COLUMN IF NOT EXISTS width int,     -- upright, as it is shown
    ADD COLUMN IF NOT EXISTS height int,
    -- Set by a deletion, which can be undone until the server removes the row. No index has it, so that setting it
    -- writes no new entry into the HNSW index.
    ADD COLUMN IF NOT EXISTS deleted_at timestamptz,
    -- Image files are already compressed.
    ALTER COLUMN data SET STORAGE EXTERNAL,
    ALTER COLUMN thumbnail SET STORAGE EXTERNAL;
CREATE INDEX IF NOT EXISTS photo_cluster_idx ON webapp.photo (cluster_id);
CREATE INDEX IF NOT EXISTS photo_taken_idx ON webapp.photo (taken_at DESC, id DESC);

CREATE TABLE IF NOT EXISTS webapp.album (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name       text NOT NULL CHECK (char_length(name) BETWEEN 1 AND 100),
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX IF NOT EXISTS album_name_idx ON webapp.album (lower(name));
CREATE TABLE IF NOT EXISTS webapp.album_photo (
    album_id bigint NOT NULL REFERENCES webapp.album ON DELETE CASCADE,
    photo_id bigint NOT NULL REFERENCES webapp.photo ON DELETE CASCADE,
    added_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (album_id, photo_id)
);
CREATE INDEX IF NOT EXISTS album_photo_photo_idx ON webapp.album_photo (photo_id);

-- Cameras write dates as text (2026:05:31 18:04:59) near the start of the file, whatever its format: when the photo was taken
-- and, if it was edited, when. The earliest is the former.
CREATE OR REPLACE FUNCTION webapp.camera_date(data bytea) RETURNS timestamp LANGUAGE plpgsql STABLE AS $$
DECLARE
    found text;
    earliest timestamp;
BEGIN
    FOR found IN
        SELECT match[1] FROM regexp_matches(encode(substring(data FOR 131072), 'escape'),
            '((?:19[89]|20\d)\d:[01]\d:[0-3]\d [0-2]\d:[0-5]\d:[0-5]\d)\\000', 'g') AS match
    LOOP
        BEGIN
            earliest := least(earliest, overlay(overlay(found PLACING '-' FROM 5 FOR 1) PLACING '-' FROM 8 FOR 1)::timestamp);
        EXCEPTION WHEN datetime_field_overflow OR invalid_datetime_format THEN
            NULL;   -- 2026:13:41: no date
        END;
    END LOOP;
    RETURN CASE WHEN earliest < localtimestamp + interval '1 day' THEN earliest END;
END $$;

-- What is known of a photo without a model. Whoever inserts it may give the file's date as taken_at.
CREATE OR REPLACE FUNCTION webapp.describe_photo() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    info record;
    taken timestamp;
BEGIN
    SELECT * INTO info FROM clip_image_info(NEW.data);
    -- Versions of clip_search that read the date give it as taken.
    taken := coalesce((to_jsonb(info) ->> 'taken')::timestamp, webapp.camera_date(NEW.data));
    NEW.format := info.format;
    NEW.width := CASE WHEN info.orientation > 4 THEN info.height ELSE info.width END;
    NEW.height := CASE WHEN info.orientation > 4 THEN info.width ELSE info.height END;
    NEW.dated_by := CASE WHEN taken IS NOT NULL THEN 'camera' WHEN NEW.taken_at IS NOT NULL THEN 'file' ELSE 'upload' END;
    NEW.taken_at := coalesce(taken, NEW.taken_at, localtimestamp);
    NEW.thumbnail := clip_thumbnail(NEW.data, 480, 'jpeg');
    RETURN NEW;
END $$;

-- In version 0.2, triggers of the application's own embedded and grouped.
DROP TRIGGER IF EXISTS keep_photo ON webapp.photo;
DROP TRIGGER IF EXISTS group_photo ON webapp.photo;
DROP FUNCTION IF EXISTS webapp.keep_photo(), webapp.group_photo();
UPDATE webapp.photo p SET
    taken_at = coalesce(webapp.camera_date(o.data), o.added_at::timestamp),
    dated_by = CASE WHEN webapp.camera_date(o.data) IS NULL THEN 'upload' ELSE 'camera' END,
    format = i.format,
    width = CASE WHEN i.orientation > 4 THEN i.height ELSE i.width END,
    height = CASE WHEN i.orientation > 4 THEN i.width ELSE i.height END
FROM webapp.photo o CROSS JOIN LATERAL clip_image_info(o.data) i
WHERE o.id = p.id AND p.taken_at IS NULL;
ALTER TABLE webapp.photo ALTER COLUMN taken_at SET NOT NULL;

-- Everything else that happens to a photo, for every client: the embedding, the group and the index.
SELECT clip_watch('webapp.photo', 'data', cluster => 'cluster_id', collection => 'webapp', index => true,
                  existing => 'keep') \g /dev/null

CREATE OR REPLACE TRIGGER describe_photo BEFORE INSERT OR UPDATE OF data ON webapp.photo
    FOR EACH ROW EXECUTE FUNCTION webapp.describe_photo();

-- Versions of clip_search that have tags keep them in a column.
SELECT EXISTS (SELECT FROM pg_proc WHERE proname = 'clip_watch' AND 'tags' = ANY (proargnames)) AS has_tags \gset
\if :has_tags
    SELECT clip_watch('webapp.photo', tags => 'tags') \g /dev/null
\endif
COMMIT;

CALL clip_backfill('webapp.photo');

-- Relevance compares with everyday words. A model embeds them once, in 10 s to a minute, and better here than in the first search.
SELECT EXISTS (SELECT FROM pg_proc WHERE proname = 'clip_prepare_words' AND pg_function_is_visible(oid)) AS has_words \gset
\if :has_words
    SELECT clip_prepare_words() \g /dev/null
\endif

-- What the other tests rely on. psql is started by pg_regress in an empty database.
SET client_min_messages = warning;
CREATE EXTENSION clip_search CASCADE;
RESET client_min_messages;

-- Runs a statement and says how it ended; directories are cut off, since they differ between machines.
CREATE FUNCTION outcome(statement text) RETURNS TABLE (code text, message text, detail text, hint text)
LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE statement;
    RETURN QUERY VALUES ('00000', 'no error', NULL::text, NULL::text);
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS code = RETURNED_SQLSTATE, message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
    message := plain(message);
    detail := plain(detail);
    hint := plain(hint);
    RETURN NEXT;
END $$;

CREATE FUNCTION plain(value text) RETURNS text
LANGUAGE sql IMMUTABLE AS $$ SELECT nullif(regexp_replace(value, '(^|[" ])/[^":]*/', '\1…/', 'g'), '') $$;

-- Images from tests/fixtures, which the tests name by file.
CREATE TABLE image (name text PRIMARY KEY, data bytea NOT NULL);
\getenv source PG_ABS_SRCDIR
\set data `base64 -w0 "$PG_ABS_SRCDIR/fixtures/images/cat.png"`
INSERT INTO image VALUES ('cat.png', decode(:'data', 'base64'));
\set data `base64 -w0 "$PG_ABS_SRCDIR/fixtures/images/cat.jpg"`
INSERT INTO image VALUES ('cat.jpg', decode(:'data', 'base64'));
\set data `base64 -w0 "$PG_ABS_SRCDIR/fixtures/images/cat_exif6.jpg"`
INSERT INTO image VALUES ('cat_exif6.jpg', decode(:'data', 'base64'));
\set data `base64 -w0 "$PG_ABS_SRCDIR/fixtures/images/coffee.png"`
INSERT INTO image VALUES ('coffee.png', decode(:'data', 'base64'));
\set data `base64 -w0 "$PG_ABS_SRCDIR/fixtures/images/rocket.jpg"`
INSERT INTO image VALUES ('rocket.jpg', decode(:'data', 'base64'));
SELECT name FROM image ORDER BY name;

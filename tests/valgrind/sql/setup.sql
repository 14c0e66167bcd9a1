-- What the other files rely on; scripts/valgrind.sh sets clip_search.model to a miniature of random weights, and has a copy of it.
SET client_min_messages = warning;
CREATE EXTENSION clip_search CASCADE;
RESET client_min_messages;

-- Runs a statement, in a subtransaction, and says how it ended.
CREATE FUNCTION outcome(statement text) RETURNS text
LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE statement;
    RETURN 'no error';
EXCEPTION WHEN OTHERS THEN
    RETURN SQLSTATE;
END $$;

-- Waits until a condition holds, as other sessions see it.
CREATE PROCEDURE until(condition text)
LANGUAGE plpgsql AS $$
DECLARE holds boolean;
BEGIN
    FOR n IN 1..1200 LOOP
        EXECUTE 'SELECT ' || condition INTO holds;
        COMMIT;
        IF holds THEN RETURN; END IF;
        PERFORM pg_sleep(0.25);
    END LOOP;
    RAISE 'not within 300 s: %', condition;
END $$;

-- One of each format and kind of pixels that has code of its own.
CREATE TABLE image (name text PRIMARY KEY, data bytea NOT NULL);
\getenv source PG_ABS_SRCDIR
\set data `base64 -w0 "$PG_ABS_SRCDIR/../fixtures/images/cat.png"`
INSERT INTO image VALUES ('cat.png', decode(:'data', 'base64'));
\set data `base64 -w0 "$PG_ABS_SRCDIR/../fixtures/images/cat_exif6.jpg"`
INSERT INTO image VALUES ('cat_exif6.jpg', decode(:'data', 'base64'));
\set data `base64 -w0 "$PG_ABS_SRCDIR/../fixtures/images/cat_palette.png"`
INSERT INTO image VALUES ('cat_palette.png', decode(:'data', 'base64'));
\set data `base64 -w0 "$PG_ABS_SRCDIR/../fixtures/images/cat_rgba.png"`
INSERT INTO image VALUES ('cat_rgba.png', decode(:'data', 'base64'));
\set data `base64 -w0 "$PG_ABS_SRCDIR/../fixtures/images/camera_grey.jpg"`
INSERT INTO image VALUES ('camera_grey.jpg', decode(:'data', 'base64'));
\set data `base64 -w0 "$PG_ABS_SRCDIR/../fixtures/images/coffee_cmyk.jpg"`
INSERT INTO image VALUES ('coffee_cmyk.jpg', decode(:'data', 'base64'));
\set data `base64 -w0 "$PG_ABS_SRCDIR/../fixtures/images/coffee_progressive.jpg"`
INSERT INTO image VALUES ('coffee_progressive.jpg', decode(:'data', 'base64'));
\set data `base64 -w0 "$PG_ABS_SRCDIR/../fixtures/images/one_1x1.png"`
INSERT INTO image VALUES ('one_1x1.png', decode(:'data', 'base64'));
SELECT name FROM image ORDER BY name COLLATE "C";

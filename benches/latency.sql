-- Latency in one connection, on the photos that `make demo` has loaded:
--   make demo && eval "$(make -s env)" && psql -Xq -f benches/latency.sql
-- Another model: psql -v model=NAME. Threads: PGOPTIONS='-c clip_search.threads=2'.
\if :{?model}
\else
\set model photo-mini
\endif
\pset footer off
CREATE TEMP TABLE timing (n serial, step text, items int, ms double precision);
SELECT set_config('bench.model', :'model', false) AS model;

DO $$
DECLARE
    model text := current_setting('bench.model');
    photos bytea[] := (SELECT array_agg(data) FROM (SELECT data FROM gallery.photo ORDER BY id LIMIT 24) AS p);
    start timestamptz;
    passed double precision;
BEGIN
    start := clock_timestamp();
    PERFORM clip_embed_image(photos[1], model);
    INSERT INTO timing (step, items, ms) VALUES ('first image, with the load of its tower', 1, extract(epoch FROM clock_timestamp() - start) * 1000);
    start := clock_timestamp();
    PERFORM clip_embed_text('first text', model);
    INSERT INTO timing (step, items, ms) VALUES ('first text, with the load of its tower', 1, extract(epoch FROM clock_timestamp() - start) * 1000);
    start := clock_timestamp();
    PERFORM clip_embed_image(photo, model) FROM unnest(photos) AS photo;
    INSERT INTO timing (step, items, ms) VALUES ('image, one by one', 24, extract(epoch FROM clock_timestamp() - start) * 1000);
    start := clock_timestamp();
    PERFORM clip_embed_images(photos, model);
    INSERT INTO timing (step, items, ms) VALUES ('image, in one array', 24, extract(epoch FROM clock_timestamp() - start) * 1000);
    start := clock_timestamp();
    PERFORM clip_embed_text('photo number ' || i, model) FROM generate_series(1, 50) AS i;
    INSERT INTO timing (step, items, ms) VALUES ('text of a few words', 50, extract(epoch FROM clock_timestamp() - start) * 1000);
    start := clock_timestamp();
    PERFORM clip_embed_text('photo number ' || i, model) FROM generate_series(1, 50) AS i;
    INSERT INTO timing (step, items, ms) VALUES ('the same texts again', 50, extract(epoch FROM clock_timestamp() - start) * 1000);
    start := clock_timestamp();
    PERFORM clip_assign_cluster(embedding, 'latency') FROM gallery.photo;
    passed := extract(epoch FROM clock_timestamp() - start) * 1000;
    INSERT INTO timing (step, items, ms) SELECT 'cluster assignment, in a collection of ten', count(*), passed FROM gallery.photo;
    PERFORM clip_drop_collection('latency');
END $$;
SELECT step, items, round((ms / items)::numeric, 2) AS "ms each" FROM timing ORDER BY n;

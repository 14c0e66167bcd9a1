-- Makes 10,000 photos from about ten years in seconds: the triggers are off, each picture is a different gradient, and the
-- embeddings are random directions.
SET session_replication_role = replica;
DROP INDEX webapp.photo_embedding_idx;
SELECT setseed(0.5) \g /dev/null
INSERT INTO webapp.photo (title, data, thumbnail, taken_at, dated_by, format, width, height, embedding)
SELECT 'Photo ' || n, picture || int4send(n), clip_thumbnail(picture, 480, 'jpeg'),
       timestamp '2026-11-01 12:00' - n * interval '9 hours', 'camera', 'BMP', 8, 8, embedding
FROM (
    SELECT n,
           -- A bitmap of 8 by 8 pixels with 24 bits each: file header, image header, pixels.
           '\x424df600000000000000360000002800000008000000080000000100180000000000c0000000130b0000130b00000000000000000000'::bytea
           || (SELECT string_agg(decode(lpad(to_hex((n * 13 + 9 * x) % 200 + 20), 2, '0') || lpad(to_hex((n * 7 + 8 * y) % 200 + 20), 2, '0')
                                        || lpad(to_hex((n * 5 + 4 * (x + y)) % 200 + 20), 2, '0'), 'hex'), ''::bytea ORDER BY y, x)
               FROM generate_series(0, 7) x, generate_series(0, 7) y) AS picture,
           (SELECT array_agg(random() - 0.5 + 0 * (n + g)) FROM generate_series(1, 512) g)::vector AS embedding
    FROM generate_series(1, 10000) n
) made;
-- A coarse index, built in one go: random directions are the hardest case, and no test here measures recall.
SET maintenance_work_mem = '256MB';
CREATE INDEX photo_embedding_idx ON webapp.photo USING hnsw (embedding vector_cosine_ops) WITH (m = 4, ef_construction = 16);
ANALYZE webapp.photo;

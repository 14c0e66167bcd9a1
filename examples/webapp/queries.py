"""The SQL statements of the server. Values are always parameters; only FEATURES changes a statement's text."""

from __future__ import annotations

# Whether this version of clip_search and this table support relevance and its reasons, and tags kept by clip_watch.
FEATURES = """
    SELECT EXISTS (SELECT FROM pg_proc WHERE proname = 'clip_relevance' AND pg_function_is_visible(oid)) AS relevance,
           EXISTS (SELECT FROM pg_proc WHERE proname = 'clip_explain' AND pg_function_is_visible(oid)) AS explain,
           EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'webapp.photo'::regclass AND attname = 'tags'
                   AND NOT attisdropped) AS tags"""

# ---------------------------------------------------------------- lists

SHOWN = "p.id, p.title, p.taken_at AS date, p.width, p.height"
# The photos of an album, of a group, or all.
WANTED = """p.deleted_at IS NULL
    AND (%(album)s::bigint IS NULL OR EXISTS (
        SELECT FROM webapp.album_photo a WHERE a.album_id = %(album)s AND a.photo_id = p.id))
    AND (%(group)s::bigint IS NULL OR p.cluster_id = %(group)s)"""

COUNT = f"SELECT count(*) AS total FROM webapp.photo p WHERE {WANTED}"
MONTHS = f"""
    SELECT to_char(date_trunc('month', p.taken_at), 'YYYY-MM') AS month, count(*) AS total
    FROM webapp.photo p WHERE {WANTED} GROUP BY 1 ORDER BY 1 DESC"""
# Keyset paging: a page continues after the last photo of the page before, whatever has been added or deleted since.
BY_DATE = f"""
    SELECT {SHOWN} FROM webapp.photo p
    WHERE {WANTED}
      AND (%(month)s::date IS NULL OR p.taken_at >= %(month)s::date AND p.taken_at < %(month)s::date + interval '1 month')
      AND (%(date)s::timestamp IS NULL OR (p.taken_at, p.id) < (%(date)s, %(id)s))
    ORDER BY p.taken_at DESC, p.id DESC LIMIT %(limit)s"""
BY_ARRIVAL = f"""
    SELECT {SHOWN} FROM webapp.photo p
    WHERE {WANTED} AND (%(id)s::bigint IS NULL OR p.id < %(id)s)
    ORDER BY p.id DESC LIMIT %(limit)s"""

# The search vector: of words, or of a stored photo.
ASKED = """asked AS MATERIALIZED (
        SELECT CASE WHEN %(words)s::text IS NOT NULL THEN clip_embed_text(%(words)s)
                    ELSE (SELECT embedding FROM webapp.photo WHERE id = %(like)s) END AS embedding)"""
NOT_ITSELF = "(%(like)s::bigint IS NULL OR p.id <> %(like)s)"
# The nearest photos, through the HNSW index.
NEAREST = f"""
    WITH {ASKED}
    SELECT {SHOWN}, 1 - (p.embedding <=> (SELECT embedding FROM asked)) AS cosine
    FROM webapp.photo p WHERE {WANTED} AND {NOT_ITSELF}
    ORDER BY p.embedding <=> (SELECT embedding FROM asked) LIMIT %(limit)s"""
# The relevant ones of the nearest photos. `place` tells whether more candidates would have given more.
RELEVANT = f"""
    WITH {ASKED}, near AS MATERIALIZED (
        SELECT {SHOWN}, p.embedding, p.embedding <=> (SELECT embedding FROM asked) AS distance
        FROM webapp.photo p WHERE {WANTED}
        ORDER BY distance LIMIT %(limit)s
    ), judged AS MATERIALIZED (
        SELECT *, clip_relevance(embedding, %(words)s) AS relevance, row_number() OVER (ORDER BY distance) AS place
        FROM near
    )
    SELECT id, title, date, width, height, 1 - distance AS cosine, relevance, place
    FROM judged WHERE relevance >= %(cut)s ORDER BY relevance DESC, id"""
# All photos by distance, a page at a time. Each page compares all photos, since an index scan may leave out a few,
# which would then never be shown. 10,000 photos take about 40 ms.
RANKED = f"""
    WITH {ASKED}, ranked AS MATERIALIZED (
        SELECT p.id, p.embedding <=> (SELECT embedding FROM asked) AS distance
        FROM webapp.photo p WHERE {WANTED} AND {NOT_ITSELF}
    ), page AS MATERIALIZED (
        SELECT id, distance FROM ranked
        WHERE %(id)s::bigint IS NULL OR (distance, id) > (%(distance)s, %(id)s)
        ORDER BY distance, id LIMIT %(limit)s
    )
    SELECT {SHOWN}, 1 - distance AS cosine, distance FROM page JOIN webapp.photo p USING (id) ORDER BY distance, id"""

# A group counts only the photos shown: a photo that is about to be removed is still its member.
GROUPS = """
    SELECT c.id, shown.total, c.cohesion, shown.title, shown.photos
    FROM clip_clusters('webapp') c CROSS JOIN LATERAL (
        SELECT count(*) AS total, (array_agg(near.title))[1] AS title, (array_agg(near.id))[:4] AS photos
        FROM (SELECT p.id, p.title FROM webapp.photo p
              WHERE p.cluster_id = c.id AND p.deleted_at IS NULL ORDER BY p.embedding <=> c.centroid, p.id) near) shown
    WHERE shown.total > 1
    ORDER BY shown.total DESC, c.id LIMIT 500"""

# ---------------------------------------------------------------- one photo

PHOTO = """
    SELECT p.id, p.title, p.taken_at AS date, p.dated_by, p.format, p.width, p.height, octet_length(p.data) AS bytes,
           {tags} AS tags,
           (SELECT coalesce(jsonb_agg(jsonb_build_object('id', a.id, 'name', a.name) ORDER BY lower(a.name)), '[]')
            FROM webapp.album a JOIN webapp.album_photo m ON m.album_id = a.id WHERE m.photo_id = p.id) AS albums,
           p.cluster_id AS group,
           (SELECT count(*) FROM webapp.photo o WHERE o.cluster_id = p.cluster_id AND o.deleted_at IS NULL) AS group_total
    FROM webapp.photo p WHERE p.id = %(id)s AND p.deleted_at IS NULL"""
# Why a photo was found: by the whole query, and by each of its words.
WHY = """
    SELECT word, 1 - (p.embedding <=> clip_embed_text(word)) AS cosine
    FROM webapp.photo p CROSS JOIN (
        SELECT 0 AS place, %(words)s::text AS word
        UNION ALL
        (SELECT min(place), word FROM regexp_split_to_table(lower(%(words)s), '[^[:alnum:]]+') WITH ORDINALITY AS w (word, place)
         WHERE char_length(word) > 2 GROUP BY word ORDER BY 1 LIMIT 8)) asked
    WHERE p.id = %(id)s ORDER BY place"""
RELEVANCE = "SELECT clip_relevance(embedding, %(words)s) AS relevance FROM webapp.photo WHERE id = %(id)s"
# Everyday words that match both the photo and the search.
SUITS = """
    SELECT coalesce(array_agg(word ORDER BY place), '{}') AS suits
    FROM webapp.photo p CROSS JOIN LATERAL clip_explain(p.embedding, %(words)s, 5) WITH ORDINALITY AS e (word, photo, query, place)
    WHERE p.id = %(id)s"""
WHY_LIKE = """
    SELECT o.title AS word, 1 - (p.embedding <=> o.embedding) AS cosine
    FROM webapp.photo p CROSS JOIN webapp.photo o WHERE p.id = %(id)s AND o.id = %(like)s"""

THUMBNAIL = "SELECT digest, thumbnail AS image FROM webapp.photo WHERE id = %(id)s"
# Made from the upload on request: browsers never display bytes that a stranger has uploaded.
LARGE = "SELECT digest, clip_thumbnail(data, 1600, 'jpeg') AS image FROM webapp.photo WHERE id = %(id)s"
DIGEST = "SELECT digest FROM webapp.photo WHERE id = %(id)s"
FILE = "SELECT title, format, data FROM webapp.photo WHERE id = %(id)s AND deleted_at IS NULL"

# ---------------------------------------------------------------- changes

# The same file is stored only once. Uploading a recently deleted file restores it.
SAME = """
    UPDATE webapp.photo p SET deleted_at = NULL FROM webapp.photo o
    WHERE o.id = p.id AND p.digest = %(digest)s
    RETURNING p.id, p.title, o.deleted_at IS NOT NULL AS added"""
INSERT = """
    INSERT INTO webapp.photo (title, data, taken_at) VALUES (%(title)s, %(data)s, %(date)s) RETURNING id, title, true AS added"""
DELETE = "UPDATE webapp.photo SET deleted_at = now() WHERE id = ANY (%(ids)s) AND deleted_at IS NULL RETURNING id"
RESTORE = "UPDATE webapp.photo SET deleted_at = NULL WHERE id = ANY (%(ids)s) AND deleted_at IS NOT NULL RETURNING id"
PURGE = "DELETE FROM webapp.photo WHERE deleted_at < now() - make_interval(secs => %(seconds)s)"
DELETED = "SELECT EXISTS (SELECT FROM webapp.photo WHERE deleted_at IS NOT NULL) AS any"

ALBUMS = """
    SELECT a.id, a.name, shown.total, shown.photos
    FROM webapp.album a CROSS JOIN LATERAL (
        SELECT count(*) AS total, (array_agg(p.id ORDER BY p.taken_at DESC, p.id DESC))[:4] AS photos
        FROM webapp.album_photo m JOIN webapp.photo p ON p.id = m.photo_id AND p.deleted_at IS NULL
        WHERE m.album_id = a.id) shown
    ORDER BY lower(a.name)"""
ALBUM = "SELECT id, name FROM webapp.album WHERE id = %(id)s"
CREATE_ALBUM = "INSERT INTO webapp.album (name) VALUES (%(name)s) RETURNING id, name"
RENAME_ALBUM = "UPDATE webapp.album SET name = %(name)s WHERE id = %(id)s RETURNING id, name"
REMOVE_ALBUM = "DELETE FROM webapp.album WHERE id = %(id)s RETURNING id"
# Without photos deleted in the meantime.
FILL_ALBUM = """
    INSERT INTO webapp.album_photo (album_id, photo_id)
    SELECT a.id, p.id FROM webapp.album a CROSS JOIN webapp.photo p
    WHERE a.id = %(id)s AND p.id = ANY (%(ids)s) AND p.deleted_at IS NULL
    ON CONFLICT DO NOTHING RETURNING photo_id AS id"""
EMPTY_ALBUM = (
    "DELETE FROM webapp.album_photo WHERE album_id = %(id)s AND photo_id = ANY (%(ids)s) RETURNING photo_id AS id"
)

-- The gallery as one page that needs nothing else: no script, no network, its pictures and style within.
-- Every figure and picture on it comes out of the queries below. Run by run.sh after gallery.sql; its output is the page:
--     psql -X -f page.sql -o gallery.html

\set QUIET on
\set ON_ERROR_STOP on
\set SHOW_CONTEXT never
\pset pager off
\pset format unaligned
\pset tuples_only on
SET client_min_messages = warning;
SET search_path = gallery, public;

-- 1. Pieces of HTML

-- Text as it may stand between tags and in an attribute in double quotes.
CREATE OR REPLACE FUNCTION html(words text) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT replace(replace(replace(replace(words, '&', '&amp;'), '<', '&lt;'), '>', '&gt;'), '"', '&quot;')
$$;

-- What the demo's copies of a photo have in common, and its photos of one subject.
CREATE OR REPLACE FUNCTION subject(title text) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT regexp_replace(title, ' \([^()]*\)$', '')
$$;

-- A photo as an <img>; a data: URL is the picture itself. encode() breaks lines, which only lengthens it.
CREATE OR REPLACE FUNCTION img(photo photo, edge int, alt text) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT format('<img src="data:image/jpeg;base64,%s" alt="%s">',
                  replace(encode(clip_thumbnail(photo.data, edge, 'jpeg'), 'base64'), E'\n', ''), html(alt))
$$;

-- A bar as long as its share of 1. What it shows stands beside it as a number, so screen readers skip it.
CREATE OR REPLACE FUNCTION bar(share float8) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT format('<span class="bar" aria-hidden="true"><i style="width:%s%%"></i></span>',
                  round(100 * least(1, greatest(0, share))::numeric, 1))
$$;

-- Code, which wraps on a phone.
CREATE OR REPLACE FUNCTION code(code text) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT format('<pre><code>%s</code></pre>', html(code))
$$;

-- 2. A map: the two directions in which the embeddings differ most (principal components)

-- By power iteration: multiplying with the covariance turns any vector towards the direction of largest variance.
-- For the second, what lies along the first is taken out before. It stops where another round no longer turns the
-- vector by what single precision shows, or after 300 rounds.
CREATE OR REPLACE FUNCTION map() RETURNS TABLE (id bigint, x float8, y float8, explained float8) LANGUAGE plpgsql AS $$
DECLARE
    dimensions int := (SELECT vector_dims(embedding) FROM photo LIMIT 1);
    total float8;
    axis vector;
    turned vector;
BEGIN
    DROP TABLE IF EXISTS pg_temp.rest;
    CREATE TEMP TABLE rest AS
    SELECT p.id, embedding - mean AS v, 0::float8 AS x, 0::float8 AS y
    FROM photo p, (SELECT avg(embedding) AS mean FROM photo) AS average;
    total := (SELECT sum(vector_norm(v) ^ 2) FROM rest);
    FOR component IN 1..2 LOOP
        -- Begins with the longest, which can't lie across all others; so the same photos give the same map.
        axis := (SELECT l2_normalize(v) FROM rest ORDER BY vector_norm(v) DESC, rest.id LIMIT 1);
        FOR round IN 1..300 LOOP
            turned := (SELECT l2_normalize(sum(v * array_fill(inner_product(v, axis)::real, ARRAY[dimensions])::vector))
                       FROM rest);
            EXIT WHEN inner_product(turned, axis) > 1 - 1e-7;
            axis := turned;
        END LOOP;
        UPDATE rest SET
            x = CASE component WHEN 1 THEN inner_product(v, axis) ELSE rest.x END,
            y = CASE component WHEN 2 THEN inner_product(v, axis) ELSE rest.y END,
            v = v - axis * array_fill(inner_product(v, axis)::real, ARRAY[dimensions])::vector;
    END LOOP;
    RETURN QUERY SELECT r.id, r.x, r.y, sum(r.x ^ 2 + r.y ^ 2) OVER () / nullif(total, 0) FROM rest r;
END $$;

-- Moves what is in the table `place` (around left_, top_ in percent of the frame) until no two are nearer than WIDE across and
-- HIGH down, or for 400 rounds.
CREATE OR REPLACE FUNCTION apart(wide float8, high float8) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    moved int;
BEGIN
    FOR round IN 1..400 LOOP
        -- Each goes half of every overlap away from the other, along the side where it is smaller.
        UPDATE place p SET left_ = least(100 - wide / 2, greatest(wide / 2, p.left_ + push.l)),
                           top_ = least(100 - high / 2, greatest(high / 2, p.top_ + push.t))
        FROM (SELECT a.cluster_id,
                     sum(CASE WHEN across <= down THEN (across + 0.2) / 2 * sideways ELSE 0 END) AS l,
                     sum(CASE WHEN across > down THEN (down + 0.2) / 2 * updown ELSE 0 END) AS t
              FROM place a JOIN place b ON a.cluster_id <> b.cluster_id,
                   LATERAL (SELECT wide - abs(a.left_ - b.left_) AS across, high - abs(a.top_ - b.top_) AS down,
                                   CASE WHEN (a.left_, a.cluster_id) > (b.left_, b.cluster_id) THEN 1 ELSE -1 END AS sideways,
                                   CASE WHEN (a.top_, a.cluster_id) > (b.top_, b.cluster_id) THEN 1 ELSE -1 END AS updown) AS overlap
              WHERE across > 0 AND down > 0
              GROUP BY a.cluster_id) AS push
        WHERE p.cluster_id = push.cluster_id;
        GET DIAGNOSTICS moved = ROW_COUNT;
        EXIT WHEN moved = 0;
    END LOOP;
END $$;

-- 3. The largest groups, and what each shows out of labels that were never trained

CREATE TEMP TABLE large AS
SELECT row_number() OVER (ORDER BY c.size DESC, c.id) AS nth, c.id AS cluster_id, c.representative::bigint AS id
FROM clip_clusters('gallery', 1) c
ORDER BY nth
LIMIT 24;

-- The map in percent of its frame: room for a picture above the topmost, a margin elsewhere. Components leave most of a frame
-- empty, as a few photos are far from all others; so half of a place is its group's rank along the component, and then the
-- groups move apart.
CREATE TEMP TABLE spot AS
WITH placed AS (
    SELECT m.*, p.cluster_id, avg(x) OVER grouped AS group_x, avg(y) OVER grouped AS group_y,
           nullif(max(x) OVER () - min(x) OVER (), 0) AS wide, nullif(max(y) OVER () - min(y) OVER (), 0) AS high,
           min(x) OVER () AS leftmost, max(y) OVER () AS topmost
    FROM map() m JOIN photo p USING (id)
    WINDOW grouped AS (PARTITION BY p.cluster_id)
), ranked AS (
    SELECT *, dense_rank() OVER (ORDER BY group_x, cluster_id) - 1 AS nth_x,
           dense_rank() OVER (ORDER BY group_y DESC, cluster_id) - 1 AS nth_y
    FROM placed
), share AS (
    SELECT *, coalesce(0.5 * nth_x / nullif(max(nth_x) OVER (), 0) + (x - leftmost - 0.5 * (group_x - leftmost)) / wide, 0.5) AS share_x,
           coalesce(0.5 * nth_y / nullif(max(nth_y) OVER (), 0) + (topmost - y - 0.5 * (topmost - group_y)) / high, 0.5) AS share_y
    FROM ranked
)
SELECT id, cluster_id, explained, 7 + 86 * least(1, greatest(0, share_x)) AS x, 22 + 71 * least(1, greatest(0, share_y)) AS y
FROM share;

CREATE TEMP TABLE place AS
SELECT cluster_id, avg(x) AS x, avg(y) AS y, avg(x) AS left_, avg(y) AS top_ FROM spot JOIN large USING (cluster_id) GROUP BY 1;
SELECT apart(78 / sqrt(count(*)), 86 / sqrt(count(*))) FROM place \g /dev/null
UPDATE spot SET x = least(97, greatest(3, spot.x + left_ - place.x)), y = least(96, greatest(16, spot.y + top_ - place.y))
FROM place WHERE place.cluster_id = spot.cluster_id;

-- Where a group's picture is: above the mean of its members, moved as far as no picture covers another (a picture is at most
-- 13 by 19 percent of the frame).
TRUNCATE place;
INSERT INTO place SELECT cluster_id, avg(x), avg(y), avg(x), avg(y) - 12 FROM spot JOIN large USING (cluster_id) GROUP BY 1;
SELECT apart(13, 19) \g /dev/null

CREATE TEMP TABLE label (word) AS VALUES
    ('cat'), ('dog'), ('cup of coffee'), ('pizza'), ('rocket'), ('airplane'), ('photographer'), ('pagoda'), ('bridge'),
    ('flower'), ('raccoon'), ('staircase'), ('clock'), ('outer space'), ('hammer'), ('solar panel');

CREATE TEMP TABLE guess AS
SELECT p.id, c.label, c.probability, row_number() OVER (PARTITION BY p.id ORDER BY c.probability DESC) AS rank
FROM large l JOIN photo p USING (id)
CROSS JOIN LATERAL clip_classify(p.embedding, (SELECT array_agg(word) FROM label)) c
WHERE l.nth <= 12;

-- Whether this version of clip_search tells what is relevant, and has words for a photo.
SELECT EXISTS (SELECT FROM pg_proc WHERE proname = 'clip_relevance' AND pg_function_is_visible(oid)) AS has_relevance,
       EXISTS (SELECT FROM pg_proc WHERE proname = 'clip_tags' AND pg_function_is_visible(oid) AND proretset
               AND (proargtypes::oid[])[1] <> 'text[]'::regtype) AS has_tags \gset

CREATE TEMP TABLE tag (id bigint, word text, place bigint);
\if :has_tags
INSERT INTO tag SELECT p.id, t.word, t.place
FROM large l JOIN photo p USING (id) CROSS JOIN LATERAL clip_tags(p.embedding, 5) WITH ORDINALITY AS t (word, relevance, place)
WHERE l.nth <= 12;
\endif

-- 4. The page

\set style `cat page.css`
\set search_statement 'SELECT title FROM photo ORDER BY embedding <=> clip_embed_text(''wall clock'') LIMIT 3'

SELECT '<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src ''none''; img-src data:; style-src ''unsafe-inline''">
<title>clip_search: a photo gallery in PostgreSQL</title>
<style>';
\qecho :style
SELECT '</style>
</head>
<body>
<a class="skip" href="#main">Skip to the photos</a>
<header>
<div class="wrap top">
<p class="mark">clip_search</p>
<nav aria-label="Sections"><ul>
<li><a href="#search">Search</a></li><li><a href="#groups">Groups</a></li><li><a href="#labels">Labels</a></li>
<li><a href="#map">Map</a></li><li><a href="#timings">Timings</a></li>
</ul></nav>
</div>
<div class="wrap hero"><div>
<h1>Photos in PostgreSQL, found by words</h1>';
SELECT format('<p class="lead">%s photos went into a table. A trigger embedded each one and found its group; the rest of '
              'this page is what SQL then answered. No second service, no queue, no network.</p>', count(*))
FROM photo;
SELECT format('<ul class="facts" aria-label="Made by"><li>PostgreSQL %s</li><li>%s</li><li>%s</li><li>model %s</li></ul>',
              html(split_part(current_setting('server_version'), ' ', 1)), html(split_part(clip_version(), ' (', 1)),
              html(substring(clip_version() FROM '\((.*)\)')), html(current_setting('clip_search.model')));
SELECT '<p class="note"><strong>photo-mini is a stand-in, not CLIP.</strong> It works at once and offline, and knows '
       'things, animals, food, vehicles and buildings. Take a CLIP model for real use.</p>'
WHERE current_setting('clip_search.model') = 'photo-mini';
-- One picture of each of the largest groups. They come again below with their titles, so here they are silent.
SELECT '</div><div class="collage">'
       || string_agg(img(p, 240, ''), '' ORDER BY p.id)
       || '</div></div>
</header>'
FROM photo p WHERE id IN (SELECT id FROM large ORDER BY id LIMIT 9);
SELECT '
<main id="main" tabindex="-1">';

-- Search
SELECT '<section id="search" aria-labelledby="search-title"><div class="wrap">
<h2 id="search-title">Search by words</h2>
<p class="about">The three nearest subjects for each query, with the cosine of words and photo. Nobody tagged the photos for
this: the words are embedded, and the nearest photos are next to them.</p>'
       || code('SELECT title FROM photo ORDER BY embedding <=> '
                                    'clip_embed_text(''sleepy striped house cat'') LIMIT 3;')
       || '
<div class="queries">';
SELECT format('<article class="query"><h3>%s</h3><ol>', html(q.words))
       || string_agg(format('<li>%s<div class="caption"><span class="title">%s</span>'
                            '<span class="number">%s</span>%s</div></li>',
                            img(p, CASE a.rank WHEN 1 THEN 480 ELSE 240 END, p.title), html(subject(p.title)),
                            to_char(a.cosine, 'FM0.000'), bar(a.cosine)), E'\n' ORDER BY a.rank)
       || '</ol></article>'
FROM query q CROSS JOIN LATERAL search(q.words) a JOIN photo p ON p.id = a.id
GROUP BY q.id, q.words
ORDER BY q.id;
SELECT '</div>
<p class="about small">Cosines of words and photos are low with every CLIP; read them as a ranking. Right pairs are the
highest of their row, not high as such.</p>
</div></section>';

-- Nothing, rightly
\if :has_relevance
\set nothing 'tax return form'
SELECT format('<section id="nothing" aria-labelledby="nothing-title"><div class="wrap">
<h2 id="nothing-title">A query that finds nothing, rightly</h2>
<p class="about">Some photo is always nearest. Whether it is relevant is another question, with an answer between 0 and 1 that means
the same for every query: 0.5 is the cut.</p>%s
<article class="query found-none"><h3>%s</h3><p>%s</p><ol aria-label="The nearest, none of them relevant">%s</ol></article>
</div></section>',
              code(format('SELECT title FROM photo WHERE clip_relevance(embedding, %L) >= 0.5;', :'nothing')), html(:'nothing'),
              (SELECT CASE count(*) WHEN 0 THEN 'No photo is relevant. The nearest would have been:'
                                    ELSE format('%s photos are taken for relevant. The nearest are:', count(*)) END
               FROM photo WHERE clip_relevance(embedding, :'nothing') >= 0.5),
              string_agg(format('<li>%s<div class="caption"><span class="title">%s</span><span class="number">%s</span>%s</div></li>',
                                img(p, 240, p.title), html(subject(p.title)),
                                to_char(clip_relevance(p.embedding, :'nothing'), 'FM0.00'),
                                bar(clip_relevance(p.embedding, :'nothing'))), E'\n' ORDER BY a.rank))
FROM search(:'nothing', 4) a JOIN photo p ON p.id = a.id;
\endif

-- Groups
SELECT format('<section id="groups" aria-labelledby="groups-title"><div class="wrap">
<h2 id="groups-title">Groups of look-alikes</h2>
<p class="about">As a photo goes in, it joins the group whose centroid is within a cosine of %s, or founds one. Here %s
that came of it: the most typical photo large, the others beside it, and their most telling keywords.</p>%s
<div class="groups">',
              (SELECT round(threshold::numeric, 2) FROM clip_search.collection WHERE name = 'gallery'),
              (SELECT CASE WHEN count(*) > 24 THEN format('are the 24 largest of %s groups', count(*))
                           WHEN count(*) = 1 THEN 'is the one group' ELSE format('are the %s groups', count(*)) END
               FROM clip_clusters('gallery', 1)),
              code('SELECT size, representative, cohesion, lowest, labels FROM clip_clusters(''gallery'');'));
-- The members nearest the centroid come first. Four are shown, which fills a card; the count tells of the others.
WITH shown AS (
    SELECT c.*, o.place, o.asset
    FROM jsonb_array_elements(clip_cluster_groups('gallery', 1)) WITH ORDINALITY AS g (item, place),
         LATERAL (SELECT (item->>'cluster_id')::bigint AS id, (item->>'size')::bigint AS size,
                         (item->>'cohesion')::float8 AS cohesion, (item->>'lowest')::float8 AS lowest,
                         item->>'representative_thumbnail' AS thumbnail, item->'labels' AS labels, g.place AS nth) AS c,
         LATERAL jsonb_array_elements(item->'assets') WITH ORDINALITY AS o (asset, place)
    WHERE o.place <= 4
)
SELECT format('<article class="group" id="group-%s"><h3>%s</h3><ul class="members">%s</ul>'
              '<ul class="tags" aria-label="Keywords">%s</ul>'
              '<p class="figures">%s photos<br>mean cosine <span class="number">%s</span><br>'
              'lowest <span class="number">%s</span></p></article>',
              s.id, html(min(subject(p.title)) FILTER (WHERE s.place = 1)),
              string_agg('<li>' || CASE s.place
                  WHEN 1 THEN format('<img src="data:image/jpeg;base64,%s" alt="%s">',
                                     replace(s.thumbnail, E'\n', ''), html(p.title))
                  ELSE img(p, 160, p.title) END || '</li>', '' ORDER BY s.place),
              (SELECT string_agg(format('<li>%s</li>', html(word)), '' ORDER BY n)
               FROM jsonb_array_elements_text(s.labels) WITH ORDINALITY AS l (word, n) WHERE n <= 3),
              s.size, to_char(s.cohesion, 'FM0.000'), to_char(s.lowest, 'FM0.000'))
FROM shown s JOIN large l ON l.cluster_id = s.id JOIN photo p ON p.id = (s.asset->>'id')::bigint
GROUP BY s.id, s.size, s.cohesion, s.lowest, s.labels, s.nth
ORDER BY s.nth;
SELECT '</div>
</div></section>';

-- Labels
SELECT '<section id="labels" aria-labelledby="labels-title"><div class="wrap">
<h2 id="labels-title">Zero-shot labels</h2>'
       || format('<p class="about">Which of %s labels fits a photo best? Nothing was trained for them; they are words, '
                 'thought of just now: %s.</p>',
                 (SELECT count(*) FROM label), (SELECT html(string_agg(word, ', ')) FROM label))
       || CASE WHEN EXISTS (SELECT FROM tag) THEN '
<p class="about">Below them are its tags: the nearest of thousands of everyday words.</p>' ELSE '' END
       || code('SELECT label, probability FROM clip_classify(embedding, ARRAY[''cat'', ''dog'', …]);'
               || CASE WHEN EXISTS (SELECT FROM tag) THEN E'\nSELECT * FROM clip_tags(embedding, 5);' ELSE '' END)
       || '
<div class="guesses">';
SELECT format('<article class="guess">%s<div><h3>%s</h3><dl>%s</dl>%s</div></article>',
              img(p, 240, p.title), html(subject(p.title)),
              (SELECT string_agg(format('<div%s><dt>%s</dt><dd><span class="number">%s %%</span>%s</dd></div>',
                                        CASE WHEN g.rank = 1 THEN ' class="first"' END, html(g.label),
                                        to_char(100 * g.probability, 'FM990'), bar(g.probability)), '' ORDER BY g.rank)
               FROM guess g WHERE g.id = p.id AND g.rank <= 3),
              (SELECT '<ul class="tags" aria-label="Tags">' || string_agg(format('<li>%s</li>', html(word)), '' ORDER BY place) || '</ul>'
               FROM tag t WHERE t.id = p.id))
FROM large l JOIN photo p USING (id)
WHERE l.nth <= 12
ORDER BY l.nth;
SELECT '</div>
</div></section>';

-- Map
SELECT format('<section id="map" aria-labelledby="map-title"><div class="wrap">
<h2 id="map-title">The collection as a map</h2>
<p class="about">%s numbers a photo, flattened to the two directions in which the photos differ most (principal components;
they show %s %% of the variance); distances are evened out, so that the map fills its frame. Each dot is a photo. A picture stands
above its group, moved aside where it would cover another; it leads to the group.</p>
<div class="map"><svg viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true" focusable="false">',
              (SELECT vector_dims(embedding) FROM photo LIMIT 1), (SELECT round(100 * max(explained)::numeric) FROM spot));
SELECT string_agg(format('<line x1="%s" y1="%s" x2="%s" y2="%s"/>', round(s.x::numeric, 2), round(s.y::numeric, 2),
                         round(p.left_::numeric, 2), round(p.top_::numeric, 2)), '')
FROM place p JOIN spot s ON s.cluster_id = p.cluster_id;
SELECT '</svg>';
SELECT '<ul>';
SELECT format('<li style="left:%s%%;top:%s%%"><a href="#group-%s">%s</a></li>',
              round(m.left_::numeric, 2), round(m.top_::numeric, 2),
              m.cluster_id, img(p, 160, 'Group: ' || p.title))
FROM place m JOIN large l USING (cluster_id) JOIN photo p ON p.id = l.id
ORDER BY m.top_, m.left_;
SELECT '</ul>';
SELECT string_agg(format('<i style="left:%s%%;top:%s%%"></i>', round(x::numeric, 2), round(y::numeric, 2)), '') FROM spot;
SELECT '</div>
</div></section>';

-- Timings
SELECT format('<section id="timings" aria-labelledby="timings-title"><div class="wrap">
<h2 id="timings-title">Timings</h2>
<p class="about">Measured just now in a new connection, on the CPU of this machine with %s.</p>
<div class="timings"><table><caption>What took how long</caption>
<thead><tr><th scope="col">What</th><th scope="col" class="number">Milliseconds</th></tr></thead><tbody>',
              CASE current_setting('clip_search.threads') WHEN '1' THEN 'one thread'
                   ELSE current_setting('clip_search.threads') || ' threads' END);
SELECT format('<tr><th scope="row">%s</th><td class="number">%s%s</td></tr>', html(what), to_char(ms / items, 'FM99990.0'),
              bar(ms / items / max(ms / items) OVER ()))
FROM latency
ORDER BY id;
SELECT '</tbody></table><div><h3>The plan of a search</h3>'
       || code(replace(:'search_statement', ' ORDER', E'\nORDER') || E';\n\n'
               || (SELECT string_agg(line, E'\n') FROM plan(:'search_statement') line))
       || '<p class="small">The words are embedded once. '
       || CASE WHEN (SELECT bool_or(line LIKE '%Index Scan using photo_embedding_idx%') FROM plan(:'search_statement') line)
               THEN 'Then the HNSW index leads to the nearest photos without reading the others.'
               ELSE 'For this few photos the planner prefers to read them all.' END
       || '</p></div></div>
</div></section>
</main>';

-- Whose photos these are: two of the licences ask for it.
SELECT '<footer><div class="wrap">
<h2>Photos</h2>
<ul>'
       || string_agg(format('<li>%s: %s</li>', html(title), html(credit)), '' ORDER BY id)
       || '</ul>
<p>Each was made smaller; the first ten are there also mirrored and cropped.</p>'
FROM photo WHERE credit IS NOT NULL AND title !~ ' \((mirrored|cropped)\)$';
SELECT format('<p>Made by SQL on %s.</p>
</div></footer>
</body>
</html>', to_char(now(), 'FMDD FMMonth YYYY'));

-- Subjects of which there are several photos, rather than copies of one. Included by gallery.sql. Credits: photos/LICENSES.md.

\set blue `base64 < photos/more/hammer-1.jpg`
\set ball `base64 < photos/more/hammer-2.jpg`
\set claw `base64 < photos/more/hammer-3.jpg`
\set handle `base64 < photos/more/hammer-4.jpg`
INSERT INTO photo (title, keywords, data, credit) VALUES
    ('Hammer (on blue)',        '{hammer,tool}', decode(:'blue', 'base64'), 'Marina Shemesh, CC0'),
    ('Hammer (ball-peen)',      '{hammer,tool}', decode(:'ball', 'base64'), 'Junior Libby, CC0'),
    ('Hammer (claw)',           '{hammer,tool}', decode(:'claw', 'base64'), 'George Hodan, CC0'),
    ('Hammer (from the grip)',  '{hammer,tool}', decode(:'handle', 'base64'), 'George Hodan, CC0');

\set field `base64 < photos/more/solar-panels-1.jpg`
\set roof `base64 < photos/more/solar-panels-2.jpg`
\set post `base64 < photos/more/solar-panels-3.jpg`
INSERT INTO photo (title, keywords, data, credit) VALUES
    ('Solar Panels (in rows)',    '{solar,energy}', decode(:'field', 'base64'), 'Raysonho, CC0'),
    ('Solar Panels (on a roof)',  '{solar,energy}', decode(:'roof', 'base64'), 'Pujanak, public domain'),
    ('Solar Panels (on a post)',  '{solar,energy}', decode(:'post', 'base64'), 'MarkBuckawicki, CC0');

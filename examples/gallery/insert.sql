-- One subject, three rows. psql reads the files on the client and sends them as base64,
-- so the server needs no access to them (decode() skips the line breaks that base64 writes).
\set original `base64 < photos/:'file'.jpg`
\set mirrored `base64 < photos/:'file'-mirrored.jpg`
\set cropped `base64 < photos/:'file'-cropped.jpg`
INSERT INTO photo (title, keywords, data, credit) VALUES
    (:'title',                :'keywords', decode(:'original', 'base64'), :'credit'),
    (:'title' || ' (mirrored)', :'keywords', decode(:'mirrored', 'base64'), :'credit'),
    (:'title' || ' (cropped)',  :'keywords', decode(:'cropped', 'base64'), :'credit');

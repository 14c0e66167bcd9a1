INSERT INTO clip_search.collection_grant (collection, grantee, privilege)
SELECT $1, $2, p.name FROM pg_catalog.unnest($3) AS p (name)
WHERE NOT EXISTS (SELECT FROM clip_search.collection_grant g
                  WHERE g.collection = $1 AND g.grantee::pg_catalog.oid = $2 AND g.privilege = p.name)

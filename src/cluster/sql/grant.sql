INSERT INTO clip_search.collection_grant (collection, grantee, privilege)
SELECT $1, $2::pg_catalog.oid, p.name FROM pg_catalog.unnest($3) AS p (name)
WHERE NOT EXISTS (SELECT FROM clip_search.collection_grant g
                  WHERE g.collection = $1 AND g.grantee::pg_catalog.oid = $2::pg_catalog.oid AND g.privilege = p.name)

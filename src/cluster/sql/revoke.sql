DELETE FROM clip_search.collection_grant
WHERE collection = $1 AND grantee::pg_catalog.oid = $2::pg_catalog.oid AND privilege = ANY ($3)

SELECT s.name FROM clip_search.collection_setting s
    WHERE s.members IS NOT NULL AND NOT EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid = s.members::oid)
    FOR UPDATE OF s SKIP LOCKED

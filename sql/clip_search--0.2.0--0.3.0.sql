-- From 0.2.0 to 0.3.0.

-- Owners of collections, and with whose rights tables are read.
SELECT pg_catalog.set_config('search_path', pg_catalog.quote_ident(n.nspname) OPERATOR(pg_catalog.||) ', pg_temp', true)
FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) e.extnamespace
WHERE e.extname OPERATOR(pg_catalog.=) 'vector';

ALTER TABLE clip_search.collection_setting ADD COLUMN owner regrole;

-- What roles may do with collections; grantee 0 (-) is PUBLIC. Owners are here for collections without settings, which
-- came to be by their first assignment: there may be several rows for one, since a unique one would make transactions
-- wait for each other.
CREATE TABLE clip_search.collection_grant (
    collection text COLLATE "C" NOT NULL,
    grantee    regrole NOT NULL,
    privilege  text COLLATE "C" NOT NULL
        CHECK (privilege OPERATOR(pg_catalog.=) ANY (ARRAY['owner', 'select', 'assign', 'recluster']))
);
CREATE INDEX collection_grant_collection_idx ON clip_search.collection_grant (collection);
ALTER TABLE clip_search.collection_grant REPLICA IDENTITY FULL;
GRANT SELECT ON clip_search.collection_grant TO pg_database_owner;
-- But grants to roles that have been dropped: they would come back as numbers, which another role might have there.
SELECT pg_catalog.pg_extension_config_dump('clip_search.collection_grant',
    'WHERE grantee::pg_catalog.oid OPERATOR(pg_catalog.=) 0::pg_catalog.oid
        OR EXISTS (SELECT FROM pg_catalog.pg_roles r WHERE r.oid OPERATOR(pg_catalog.=) grantee::pg_catalog.oid)');

CREATE SEQUENCE clip_search.cluster_change_id_seq;
ALTER TABLE clip_search.cluster_change
    ADD COLUMN mark bigint NOT NULL DEFAULT pg_catalog.nextval('clip_search.cluster_change_id_seq');
DROP INDEX clip_search.cluster_change_cluster_idx;
CREATE INDEX cluster_change_cluster_idx ON clip_search.cluster_change (cluster, mark);
GRANT SELECT ON SEQUENCE clip_search.cluster_change_id_seq TO pg_database_owner;
SELECT pg_catalog.pg_extension_config_dump('clip_search.cluster_change_id_seq', '');
COMMENT ON COLUMN clip_search.cluster_change.mark IS 'Grows with each row: the order of writing';
COMMENT ON SEQUENCE clip_search.cluster_change_id_seq IS 'Marks of changes';
COMMENT ON INDEX clip_search.cluster_change_cluster_idx IS 'The changes of a cluster';

-- A collection goes to the owner of its members' table, others to the owner of the database, and stays open as it was.
UPDATE clip_search.collection_setting s
SET owner = coalesce((SELECT c.relowner FROM pg_catalog.pg_class c WHERE c.oid OPERATOR(pg_catalog.=) s.members::pg_catalog.oid),
                     (SELECT d.datdba FROM pg_catalog.pg_database d WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()));
DO $$
DECLARE
    opened text[];
BEGIN
    SELECT pg_catalog.array_agg(c.name ORDER BY c.name) INTO opened FROM clip_search.collection c
    WHERE c.name OPERATOR(pg_catalog.<>) 'default' OR EXISTS (SELECT FROM clip_search.collection_setting s WHERE s.name OPERATOR(pg_catalog.=) c.name);
    IF opened IS NULL THEN
        RETURN;
    END IF;
    INSERT INTO clip_search.collection_grant (collection, grantee, privilege)
    SELECT o.name, d.datdba, 'owner'
    FROM pg_catalog.unnest(opened) AS o (name)
    JOIN pg_catalog.pg_database d ON d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()
    WHERE NOT EXISTS (SELECT FROM clip_search.collection_setting s WHERE s.name OPERATOR(pg_catalog.=) o.name);
    INSERT INTO clip_search.collection_grant (collection, grantee, privilege)
    SELECT o.name, 0, p.name
    FROM pg_catalog.unnest(opened) AS o (name), (VALUES ('select'), ('assign'), ('recluster')) AS p (name);
    RAISE NOTICE 'every role can still see and change the clusters of % collections: %',
        pg_catalog.cardinality(opened), pg_catalog.array_to_string(opened, ', ')
        USING HINT = 'Close one with SELECT clip_revoke_collection(name, ''PUBLIC''), and clip_grant_collection to the roles that use it.';
END $$;

-- The owners of collections; a role that has been dropped is replaced by the owner of the database.
CREATE VIEW clip_search.collection_owner AS
SELECT o.name, coalesce(r.oid, d.datdba)::pg_catalog.regrole AS owner
FROM (SELECT s.name, s.owner::pg_catalog.oid AS role FROM clip_search.collection_setting s
      UNION ALL
      SELECT g.collection, g.grantee::pg_catalog.oid FROM clip_search.collection_grant g
      WHERE g.privilege OPERATOR(pg_catalog.=) 'owner'
        AND NOT EXISTS (SELECT FROM clip_search.collection_setting s WHERE s.name OPERATOR(pg_catalog.=) g.collection)) AS o
JOIN pg_catalog.pg_database d ON d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()
LEFT JOIN pg_catalog.pg_roles r ON r.oid OPERATOR(pg_catalog.=) o.role;

-- The collections whose clusters the reader may see: its own, those that it or PUBLIC was granted, and default as long as
-- nothing is set about it.
CREATE VIEW clip_search.collection_visible AS
SELECT o.name FROM clip_search.collection_owner o WHERE pg_catalog.pg_has_role(o.owner::pg_catalog.oid, 'USAGE')
UNION ALL
SELECT g.collection FROM clip_search.collection_grant g
WHERE g.privilege OPERATOR(pg_catalog.=) 'select'
  AND (g.grantee::pg_catalog.oid OPERATOR(pg_catalog.=) 0::pg_catalog.oid OR pg_catalog.pg_has_role(g.grantee::pg_catalog.oid, 'USAGE'))
UNION ALL
SELECT 'default' COLLATE "C"
WHERE NOT EXISTS (SELECT FROM clip_search.collection_setting s WHERE s.name OPERATOR(pg_catalog.=) 'default')
  AND NOT EXISTS (SELECT FROM clip_search.collection_grant g WHERE g.collection OPERATOR(pg_catalog.=) 'default');

-- What people read. The owner of the database dumps every collection, and so sees them all.
CREATE OR REPLACE VIEW clip_search.cluster WITH (security_barrier = true) AS
SELECT cluster AS id, collection, l2_normalize(sum(sum)) AS centroid,
       least(vector_norm(sum(sum)) OPERATOR(pg_catalog./) pg_catalog.sum(size)::double precision, 1) AS resultant,
       pg_catalog.sum(size)::bigint AS size, pg_catalog.min(made_at) AS created_at, pg_catalog.max(updated_at) AS updated_at
FROM (SELECT cluster, collection, size, sum, made_at, updated_at FROM clip_search.cluster_sum
      UNION ALL
      SELECT cluster, collection, size, sum, made_at, made_at FROM clip_search.cluster_change) AS part
WHERE (SELECT pg_catalog.pg_has_role(d.datdba, 'USAGE') FROM pg_catalog.pg_database d
       WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database())
   OR collection IN (SELECT v.name FROM clip_search.collection_visible v)
GROUP BY cluster, collection HAVING pg_catalog.sum(size) OPERATOR(pg_catalog.>) 0;

-- Collections come to be by the first assignment; those with settings are stored. The names of the others are found by
-- stepping through the index.
CREATE OR REPLACE VIEW clip_search.collection WITH (security_barrier = true) AS
WITH RECURSIVE used AS (
    (SELECT collection FROM clip_search.cluster_sum ORDER BY collection LIMIT 1)
    UNION ALL
    SELECT (SELECT s.collection FROM clip_search.cluster_sum s WHERE s.collection OPERATOR(pg_catalog.>) used.collection
            ORDER BY s.collection LIMIT 1)
    FROM used WHERE used.collection IS NOT NULL
)
SELECT coalesce(setting.name, used.collection) AS name,
       coalesce(setting.dimensions, (SELECT vector_dims(s.sum) FROM clip_search.cluster_sum s
                                     WHERE s.collection OPERATOR(pg_catalog.=) used.collection ORDER BY s.cluster LIMIT 1)) AS dimensions,
       -- A session that has not called the extension yet does not know the setting, and goes by its default.
       coalesce(setting.threshold,
                CASE WHEN pg_catalog.current_setting('clip_search.cluster_threshold', true) OPERATOR(pg_catalog.<>) ''
                     THEN pg_catalog.current_setting('clip_search.cluster_threshold', true)::double precision END,
                0.82) AS threshold,
       coalesce(setting.model, (SELECT s.model FROM clip_search.cluster_sum s
                                WHERE s.collection OPERATOR(pg_catalog.=) used.collection ORDER BY s.cluster LIMIT 1)) AS model,
       setting.members, setting.embedding, setting.cluster, setting.key, setting.labels, setting.image, setting.created_at,
       coalesce((SELECT o.owner FROM clip_search.collection_owner o
                 WHERE o.name OPERATOR(pg_catalog.=) coalesce(setting.name, used.collection) LIMIT 1),
                d.datdba::pg_catalog.regrole) AS owner
FROM clip_search.collection_setting AS setting
FULL JOIN (SELECT collection FROM used WHERE collection IS NOT NULL) AS used ON used.collection OPERATOR(pg_catalog.=) setting.name
JOIN pg_catalog.pg_database d ON d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()
WHERE pg_catalog.pg_has_role(d.datdba, 'USAGE')
   OR coalesce(setting.name, used.collection) IN (SELECT v.name FROM clip_search.collection_visible v);

COMMENT ON COLUMN clip_search.collection.owner IS 'The role that it belongs to';
COMMENT ON TABLE clip_search.collection_grant IS 'What roles may do with collections, written by clip_grant_collection and clip_revoke_collection';
COMMENT ON COLUMN clip_search.collection_grant.grantee IS 'The role; 0 (-) for PUBLIC';
COMMENT ON COLUMN clip_search.collection_grant.privilege IS 'select, assign or recluster; owner for collections without settings';
COMMENT ON COLUMN clip_search.collection_setting.owner IS 'The role that it belongs to; the owner of the database if there is no such role';
COMMENT ON VIEW clip_search.collection_owner IS 'Owners of collections';
COMMENT ON VIEW clip_search.collection_visible IS 'Collections whose clusters the current role may see';
COMMENT ON INDEX clip_search.collection_grant_collection_idx IS 'The grants of a collection';

-- These look whose rights the caller has before they take those of the extension.
ALTER FUNCTION @extschema@.clip_assign_cluster(vector) SECURITY INVOKER RESET ALL;
ALTER FUNCTION @extschema@.clip_assign_cluster(vector, text) SECURITY INVOKER RESET ALL;
ALTER FUNCTION @extschema@.clip_leave_cluster(bigint, vector) SECURITY INVOKER RESET ALL;

-- Made again, so that they have no trace of having been for some roles only.
DROP FUNCTION @extschema@.clip_create_collection(text, double precision, integer, text, regclass, text, text, text, text, text);
CREATE FUNCTION @extschema@.clip_create_collection(collection text, threshold double precision DEFAULT NULL, dimensions integer DEFAULT NULL,
    model text DEFAULT NULL, members regclass DEFAULT NULL, embedding text DEFAULT 'embedding', cluster text DEFAULT 'cluster_id',
    key text DEFAULT NULL, labels text DEFAULT NULL, image text DEFAULT NULL) RETURNS void
VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'clip_create_collection_wrapper';
DROP FUNCTION @extschema@.clip_drop_collection(text);
CREATE FUNCTION @extschema@.clip_drop_collection(collection text) RETURNS void
STRICT VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'clip_drop_collection_wrapper';
COMMENT ON FUNCTION @extschema@.clip_create_collection(text, double precision, integer, text, regclass, text, text, text, text, text) IS 'Gives a collection its settings, and says in which table and columns its members are
threshold: cosine from which on a vector joins a cluster; else clip_search.cluster_threshold
dimensions: of its vectors; else those of the first
model: whose vectors it takes; else that of the first, if known
members: the table of the members
embedding, cluster: its columns of the embedding (vector or halfvec) and of the cluster''s id (bigint)
key: its column that names a member; else its primary key
labels: its column of keywords (text[])
image: its column of image files (bytea), for thumbnails';
COMMENT ON FUNCTION @extschema@.clip_drop_collection(text) IS 'Drops a collection with its clusters; the members'' table stays as it is';

DROP FUNCTION @extschema@.clip_clusters(text, bigint);
CREATE FUNCTION @extschema@.clip_clusters(collection text, min_size bigint DEFAULT 2, members regclass DEFAULT NULL)
RETURNS TABLE (id bigint, size bigint, centroid vector, representative text, cohesion double precision, lowest double precision, labels text[])
STABLE PARALLEL RESTRICTED COST 10000 LANGUAGE c AS 'MODULE_PATHNAME', 'clip_clusters_of_wrapper';
DROP FUNCTION @extschema@.clip_cluster_groups(text, bigint);
CREATE FUNCTION @extschema@.clip_cluster_groups(collection text, min_size bigint DEFAULT 2, members regclass DEFAULT NULL) RETURNS jsonb
STABLE PARALLEL RESTRICTED COST 10000 LANGUAGE c AS 'MODULE_PATHNAME', 'clip_cluster_groups_of_wrapper';
DROP FUNCTION @extschema@.clip_duplicates(text, double precision);
CREATE FUNCTION @extschema@.clip_duplicates(collection text, threshold double precision DEFAULT 0.99, members regclass DEFAULT NULL)
RETURNS TABLE (original text, duplicate text, cosine double precision)
STABLE PARALLEL RESTRICTED COST 100000 LANGUAGE c AS 'MODULE_PATHNAME', 'clip_duplicates_of_wrapper';
CREATE FUNCTION @extschema@.clip_alter_collection(collection text, owner text DEFAULT NULL, threshold double precision DEFAULT NULL,
    model text DEFAULT NULL, key text DEFAULT NULL, labels text DEFAULT NULL, image text DEFAULT NULL) RETURNS void
VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'clip_alter_collection_wrapper';
CREATE FUNCTION @extschema@.clip_grant_collection(collection text, role text, privilege text DEFAULT 'all') RETURNS void
VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'clip_grant_collection_wrapper';
CREATE FUNCTION @extschema@.clip_revoke_collection(collection text, role text, privilege text DEFAULT 'all') RETURNS void
VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'clip_revoke_collection_wrapper';
CREATE FUNCTION @extschema@.clip_has_collection_privilege(collection text, privilege text) RETURNS boolean
STRICT STABLE PARALLEL RESTRICTED LANGUAGE c AS 'MODULE_PATHNAME', 'clip_has_collection_privilege_wrapper';
CREATE FUNCTION clip_search.count_rows(relation regclass, sources text[], embedding text, cluster text)
RETURNS TABLE (rows bigint, embedded bigint, open bigint)
STABLE PARALLEL UNSAFE COST 100000 LANGUAGE c AS 'MODULE_PATHNAME', 'count_rows_wrapper';
CREATE OR REPLACE FUNCTION clip_search.watch_progress(relation regclass, image name, text name, embedding name, cluster name,
                                           OUT rows bigint, OUT embedded bigint, OUT open bigint)
LANGUAGE sql STABLE PARALLEL UNSAFE COST 100000 SET search_path = pg_catalog, pg_temp AS $$
    SELECT c.rows, c.embedded, c.open
    FROM clip_search.count_rows(relation, ARRAY[image::text, text::text], embedding::text, cluster::text) AS c
$$;

COMMENT ON FUNCTION @extschema@.clip_alter_collection(text, text, double precision, text, text, text, text) IS 'Changes the settings of a collection that are given, and nothing else; for its owner
owner: a role that the caller is a member of, and that owns the members'' table
threshold: cosine from which on a vector joins a cluster
model: whose vectors it takes
key: the column that names a member; labels: that of its keywords (text[]); image: that of its image file (bytea)';
COMMENT ON FUNCTION @extschema@.clip_grant_collection(text, text, text) IS 'Gives a role, or PUBLIC, rights to a collection; for its owner
privilege: select, to see its clusters and reports; assign, to join and leave; recluster; or all three';
COMMENT ON FUNCTION @extschema@.clip_revoke_collection(text, text, text) IS 'Takes rights to a collection from a role, or from PUBLIC; for its owner
privilege: select, assign, recluster or all three';
COMMENT ON FUNCTION @extschema@.clip_has_collection_privilege(text, text) IS 'Whether the current role has a right to a collection
privilege: select, assign, recluster, all three, or owner';
COMMENT ON FUNCTION @extschema@.clip_clusters(text, bigint, regclass) IS 'Clusters of a collection with at least min_size members, the largest first
representative: key of the member nearest the centroid
cohesion: mean cosine of the members to the centroid; lowest: the lowest
labels: its five most telling keywords
members: the members'' table, if row-level policies or a view decide what the caller sees of it
Of a collection that was not told its members'' table, representative, lowest and labels are NULL.';
COMMENT ON FUNCTION @extschema@.clip_cluster_groups(text, bigint, regclass) IS 'Clusters of a collection as JSON for a user interface: representative with thumbnail, members, keywords
members: the members'' table, if row-level policies or a view decide what the caller sees of it
Its shape is that of docs/cluster_groups.schema.json.';
COMMENT ON FUNCTION @extschema@.clip_duplicates(text, double precision, regclass) IS 'Members of a collection that nearly equal one before them, each with the nearest such, by their keys
threshold: the cosine from which on they do
members: the members'' table, if row-level policies or a view decide what the caller sees of it';
COMMENT ON FUNCTION clip_search.count_rows(regclass, text[], text, text) IS 'Counts a table''s rows as its owner, for a caller who may read them all; NULL for others';

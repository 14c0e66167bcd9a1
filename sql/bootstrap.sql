-- The extension's tables. They are created before the functions, which refer to them by qualified name.
--
-- A cluster is the sum of its members (unit vectors), stored in several rows: one in cluster_sum, written when the
-- cluster is created, and one in cluster_change for each member that has joined or left since. Joining therefore only
-- inserts a row and never waits for another transaction. A search that reads many change rows merges them.

-- In this file an unqualified name belongs to pg_catalog or to pgvector. (@extschema:vector@ would qualify pgvector's
-- names, but it needs PostgreSQL 16.) The extension's schema may contain other objects with these names. The
-- extension's functions take pgvector's type, so a type in that schema that hides it is refused.
DO $$
DECLARE
    pgvector record;
    found record;
BEGIN
    SELECT t.oid, pg_catalog.quote_ident(n.nspname) AS schema INTO STRICT pgvector
    FROM pg_catalog.pg_extension e
    JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) e.extnamespace
    JOIN pg_catalog.pg_type t ON t.typnamespace OPERATOR(pg_catalog.=) n.oid
    WHERE e.extname OPERATOR(pg_catalog.=) 'vector' AND t.typname OPERATOR(pg_catalog.=) 'vector';
    SELECT t.oid, pg_catalog.quote_ident(n.nspname) AS schema INTO found
    FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) t.typnamespace
    WHERE t.oid OPERATOR(pg_catalog.=) pg_catalog.to_regtype('vector')::pg_catalog.oid;
    IF found.oid OPERATOR(pg_catalog.<>) pgvector.oid THEN
        RAISE EXCEPTION USING ERRCODE = 'duplicate_object',
            MESSAGE = pg_catalog.format('type %s.vector hides pgvector''s type %s.vector', found.schema, pgvector.schema),
            HINT = 'Drop or rename it, or create the extension in another schema (CREATE EXTENSION ... SCHEMA).';
    END IF;
    PERFORM pg_catalog.set_config('search_path', pgvector.schema OPERATOR(pg_catalog.||) ', pg_temp', true);
END $$;

CREATE SCHEMA clip_search;

CREATE TABLE clip_search.collection_setting (
    name       text COLLATE "C" PRIMARY KEY CHECK (name OPERATOR(pg_catalog.<>) '' AND pg_catalog.octet_length(name) OPERATOR(pg_catalog.<=) 63),
    dimensions integer CHECK (dimensions OPERATOR(pg_catalog.>=) 1 AND dimensions OPERATOR(pg_catalog.<=) 16000),
    threshold  double precision CHECK (threshold OPERATOR(pg_catalog.>) -1 AND threshold OPERATOR(pg_catalog.<=) 1),
    model      text,
    members    regclass,
    embedding  name,
    cluster    name,
    key        name,
    labels     name,
    image      name,
    created_at timestamptz NOT NULL DEFAULT pg_catalog.now()
);

-- Privileges on collections; grantee 0 (-) is PUBLIC. A collection whose members are in a table belongs to that table's
-- owner. Any other collection has a row for its owner here. A collection that was created by its first assignment may
-- have several such rows, because a unique row would make transactions wait for each other.
CREATE TABLE clip_search.collection_grant (
    collection text COLLATE "C" NOT NULL,
    grantee    regrole NOT NULL,
    privilege  text COLLATE "C" NOT NULL
        CHECK (privilege OPERATOR(pg_catalog.=) ANY (ARRAY['owner', 'select', 'assign', 'recluster']))
);
CREATE INDEX collection_grant_collection_idx ON clip_search.collection_grant (collection);

CREATE SEQUENCE clip_search.cluster_id_seq;

-- A sum of 512 dimensions takes 2056 bytes, just over the size at which PostgreSQL moves values out of line. Searches
-- read the sums, so toast_tuple_target keeps them in the row up to a full page. The sequence number gives the order in
-- which rows entered the partial index of sums without a code, so that a second search reads only later rows. mark
-- keeps its name from 0.2.0, because this version works with the tables of 0.2.0 until ALTER EXTENSION UPDATE.
CREATE TABLE clip_search.cluster_sum (
    collection      text COLLATE "C" NOT NULL,
    cluster         bigint NOT NULL,
    size            bigint NOT NULL,
    sum             vector NOT NULL,
    rest            vector,
    code            bytea,
    model           text,
    made_at         timestamptz NOT NULL DEFAULT pg_catalog.now(),
    updated_at      timestamptz NOT NULL DEFAULT pg_catalog.now(),
    mark            bigint NOT NULL DEFAULT pg_catalog.nextval('clip_search.cluster_id_seq')
) WITH (toast_tuple_target = 8160);
CREATE INDEX cluster_sum_cluster_idx ON clip_search.cluster_sum (cluster);
CREATE INDEX cluster_sum_collection_idx ON clip_search.cluster_sum (collection, cluster);
CREATE INDEX cluster_sum_recent_idx ON clip_search.cluster_sum (collection, mark) WHERE code IS NULL;

-- Rows that a transaction has added and merged stay in the index until it ends. Their sequence numbers are lower than
-- the numbers of the valid rows, so the transaction's searches start after them.
CREATE SEQUENCE clip_search.cluster_change_id_seq;
CREATE TABLE clip_search.cluster_change (
    collection      text COLLATE "C" NOT NULL,
    cluster         bigint NOT NULL,
    size            bigint NOT NULL,
    sum             vector NOT NULL,
    rest            vector,
    made_at         timestamptz NOT NULL DEFAULT pg_catalog.now(),
    mark            bigint NOT NULL DEFAULT pg_catalog.nextval('clip_search.cluster_change_id_seq')
) WITH (toast_tuple_target = 8160);
CREATE INDEX cluster_change_cluster_idx ON clip_search.cluster_change (cluster, mark);

-- Every search reads this table from end to end, so its pages are packed as full as possible.
CREATE TABLE clip_search.cluster_code (
    collection      text COLLATE "C" NOT NULL,
    first           bigint NOT NULL,
    mark            bigint NOT NULL,
    entries         bytea NOT NULL
) WITH (toast_tuple_target = 8160);
ALTER TABLE clip_search.cluster_code ALTER entries SET STORAGE PLAIN;
CREATE INDEX cluster_code_collection_idx ON clip_search.cluster_code (collection, mark);

-- A publication FOR ALL TABLES rejects updates of a table without a replica identity. Without logical replication this
-- adds nothing to the WAL.
ALTER TABLE clip_search.collection_grant REPLICA IDENTITY FULL;
ALTER TABLE clip_search.cluster_sum REPLICA IDENTITY FULL;
ALTER TABLE clip_search.cluster_change REPLICA IDENTITY FULL;
ALTER TABLE clip_search.cluster_code REPLICA IDENTITY FULL;

-- The owner of a table. Queries on pg_class are unsuitable: Citus hides shards there, and a table of members that Citus
-- takes over becomes a shard.
CREATE FUNCTION clip_search.owner_of(relation regclass) RETURNS oid
STRICT STABLE PARALLEL SAFE LANGUAGE c AS 'MODULE_PATHNAME', 'owner_of_wrapper';

-- The owners of collections; a role that has been dropped is replaced by the owner of the database.
CREATE VIEW clip_search.collection_owner AS
SELECT o.name, coalesce(r.oid, d.datdba)::pg_catalog.regrole AS owner
FROM (SELECT s.name, coalesce(clip_search.owner_of(s.members), g.role) AS role
      FROM clip_search.collection_setting s
      LEFT JOIN LATERAL (SELECT g.grantee::pg_catalog.oid AS role FROM clip_search.collection_grant g
                         WHERE g.collection OPERATOR(pg_catalog.=) s.name AND g.privilege OPERATOR(pg_catalog.=) 'owner'
                         LIMIT 1) AS g ON true
      UNION ALL
      SELECT g.collection, g.grantee::pg_catalog.oid FROM clip_search.collection_grant g
      WHERE g.privilege OPERATOR(pg_catalog.=) 'owner'
        AND NOT EXISTS (SELECT FROM clip_search.collection_setting s WHERE s.name OPERATOR(pg_catalog.=) g.collection)) AS o
JOIN pg_catalog.pg_database d ON d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()
LEFT JOIN pg_catalog.pg_roles r ON r.oid OPERATOR(pg_catalog.=) o.role;

-- The collections whose clusters the reader may see: its own collections, collections granted to it or to PUBLIC, and
-- default until it has settings or grants.
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

-- The views that users read. The owner of the database dumps every collection, and so sees all of them.
CREATE VIEW clip_search.cluster WITH (security_barrier = true) AS
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

-- The first assignment to a name creates a collection without a row here; clip_create_collection stores a row. A skip
-- scan of the index finds the names without a row.
CREATE VIEW clip_search.collection WITH (security_barrier = true) AS
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
       -- The setting is undefined in a session that has not loaded the library yet: use its default.
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

-- Everything below is created in the extension's schema.
SELECT pg_catalog.set_config('search_path', '@extschema@, ' OPERATOR(pg_catalog.||) pg_catalog.current_setting('search_path'), true);

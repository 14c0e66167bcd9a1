-- Tables of the extension. They come before the functions, which read and write them by qualified name.
--
-- A cluster is the sum of its members (unit vectors), kept as several rows: one in cluster_sum from its founding on, and
-- one in cluster_change for each member that has come or gone since. So joining only ever adds a row, and waits for
-- nobody. Rows are merged now and then by whoever happens to read many.

-- In this file a name that isn't qualified is one of pg_catalog or pgvector's. (@extschema:vector@ would say so for
-- pgvector's, but PostgreSQL 16 was the first to know it.) Others may have put objects of the same names into the schema
-- that the extension is created in, whose functions then take pgvector's type, so a type that hides it is refused.
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
            HINT = 'Drop or rename it, or create the extension in another schema (CREATE EXTENSION … SCHEMA).';
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
    created_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    owner      regrole
);

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

CREATE SEQUENCE clip_search.cluster_id_seq;

-- A sum of 512 dimensions has 2056 bytes, just over the size from which PostgreSQL moves values out of line; searches
-- read them, so they stay in the row up to a full page. Marks tell in which order rows came into the index of those
-- without a code: who has searched up to a mark looks for later ones only.
CREATE TABLE clip_search.cluster_sum (
    collection text COLLATE "C" NOT NULL,
    cluster    bigint NOT NULL,
    size       bigint NOT NULL,
    sum        vector NOT NULL,
    rest       vector,
    code       bytea,
    model      text,
    made_at    timestamptz NOT NULL DEFAULT pg_catalog.now(),
    updated_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    mark       bigint NOT NULL DEFAULT pg_catalog.nextval('clip_search.cluster_id_seq')
) WITH (toast_tuple_target = 8160);
CREATE INDEX cluster_sum_cluster_idx ON clip_search.cluster_sum (cluster);
CREATE INDEX cluster_sum_collection_idx ON clip_search.cluster_sum (collection, cluster);
CREATE INDEX cluster_sum_recent_idx ON clip_search.cluster_sum (collection, mark) WHERE code IS NULL;

-- Rows that a transaction has added and merged stay in the index until it ends. Their marks are below those of the rows
-- that count, so its searches start after them.
CREATE SEQUENCE clip_search.cluster_change_id_seq;
CREATE TABLE clip_search.cluster_change (
    collection text COLLATE "C" NOT NULL,
    cluster    bigint NOT NULL,
    size       bigint NOT NULL,
    sum        vector NOT NULL,
    rest       vector,
    made_at    timestamptz NOT NULL DEFAULT pg_catalog.now(),
    mark       bigint NOT NULL DEFAULT pg_catalog.nextval('clip_search.cluster_change_id_seq')
) WITH (toast_tuple_target = 8160);
CREATE INDEX cluster_change_cluster_idx ON clip_search.cluster_change (cluster, mark);

-- Read from end to end by every search, so in pages that are as full as can be.
CREATE TABLE clip_search.cluster_code (
    collection text COLLATE "C" NOT NULL,
    first      bigint NOT NULL,
    mark       bigint NOT NULL,
    entries    bytea NOT NULL
) WITH (toast_tuple_target = 8160);
ALTER TABLE clip_search.cluster_code ALTER entries SET STORAGE PLAIN;
CREATE INDEX cluster_code_collection_idx ON clip_search.cluster_code (collection, mark);

-- In a publication FOR ALL TABLES a table whose rows can't be told apart could not be written any more. Without logical
-- replication nothing is added to the log by it.
ALTER TABLE clip_search.collection_grant REPLICA IDENTITY FULL;
ALTER TABLE clip_search.cluster_sum REPLICA IDENTITY FULL;
ALTER TABLE clip_search.cluster_change REPLICA IDENTITY FULL;
ALTER TABLE clip_search.cluster_code REPLICA IDENTITY FULL;

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

-- Collections come to be by the first assignment; those with settings are stored. The names of the others are found by
-- stepping through the index.
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

-- What follows is created in the extension's schema.
SELECT pg_catalog.set_config('search_path', '@extschema@, ' OPERATOR(pg_catalog.||) pg_catalog.current_setting('search_path'), true);

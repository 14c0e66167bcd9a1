-- Tables of the extension. They come before the functions, which read and write them by qualified name.

CREATE SCHEMA clip_search;

CREATE TABLE clip_search.collection (
    name       text PRIMARY KEY CHECK (name <> ''),
    dimensions integer NOT NULL CHECK (dimensions BETWEEN 1 AND 16000),
    clusters   bigint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE clip_search.cluster (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    collection text NOT NULL REFERENCES clip_search.collection ON UPDATE CASCADE ON DELETE CASCADE,
    centroid   vector NOT NULL,
    resultant  double precision NOT NULL CHECK (resultant > 0 AND resultant <= 1),
    size       bigint NOT NULL CHECK (size > 0),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
-- A centroid of 512 dimensions has 2056 bytes, just over the size from which PostgreSQL moves values out
-- of line; every search reads every centroid, so they stay in the row up to a full page.
) WITH (toast_tuple_target = 8160, fillfactor = 80);

CREATE INDEX cluster_collection_idx ON clip_search.cluster (collection);

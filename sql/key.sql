-- The key of a row of any table, as results return it. A function has one result type and tables have keys of many, so a
-- key is text that compares with each of them: photo.id = representative looks up an index on a bigint or a uuid. It is
-- stored as text, and sorts as text does.
CREATE TYPE @extschema@.clip_key;
CREATE FUNCTION clip_search.key_in(cstring) RETURNS @extschema@.clip_key
IMMUTABLE STRICT PARALLEL SAFE LANGUAGE internal AS 'textin';
CREATE FUNCTION clip_search.key_out(@extschema@.clip_key) RETURNS cstring
IMMUTABLE STRICT PARALLEL SAFE LANGUAGE internal AS 'textout';
CREATE FUNCTION clip_search.key_recv(internal) RETURNS @extschema@.clip_key
STABLE STRICT PARALLEL SAFE LANGUAGE internal AS 'textrecv';
CREATE FUNCTION clip_search.key_send(@extschema@.clip_key) RETURNS bytea
STABLE STRICT PARALLEL SAFE LANGUAGE internal AS 'textsend';
CREATE TYPE @extschema@.clip_key (
    INPUT = clip_search.key_in,
    OUTPUT = clip_search.key_out,
    RECEIVE = clip_search.key_recv,
    SEND = clip_search.key_send,
    LIKE = pg_catalog.text,
    CATEGORY = 'S',
    COLLATABLE = true
);
CREATE CAST (@extschema@.clip_key AS pg_catalog.text) WITHOUT FUNCTION AS IMPLICIT;
CREATE CAST (@extschema@.clip_key AS pg_catalog.int8) WITH INOUT AS IMPLICIT;
CREATE CAST (@extschema@.clip_key AS pg_catalog.numeric) WITH INOUT AS IMPLICIT;
CREATE CAST (@extschema@.clip_key AS pg_catalog.uuid) WITH INOUT AS IMPLICIT;
CREATE CAST (pg_catalog.text AS @extschema@.clip_key) WITHOUT FUNCTION AS ASSIGNMENT;

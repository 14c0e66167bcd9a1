-- The key of a row of any table, as results return it. A function has one result type, but tables have keys of many
-- types. A clip_key is text that can be compared with all of them: photo.id = representative uses an index on a bigint
-- or a uuid. It is stored as text and sorts by its bytes. It has no collation, because PostgreSQL 15 fails at a foreign
-- key between a column with a collation and a bigint (XX000, cache lookup failed for collation 0). The casts are
-- functions, because a foreign key accepts no other casts.
CREATE TYPE @extschema@.clip_key;
CREATE FUNCTION clip_search.key_in(cstring) RETURNS @extschema@.clip_key IMMUTABLE STRICT PARALLEL SAFE LANGUAGE internal AS 'textin';
CREATE FUNCTION clip_search.key_out(@extschema@.clip_key) RETURNS cstring IMMUTABLE STRICT PARALLEL SAFE LANGUAGE internal AS 'textout';
CREATE FUNCTION clip_search.key_recv(internal) RETURNS @extschema@.clip_key STABLE STRICT PARALLEL SAFE LANGUAGE internal AS 'textrecv';
CREATE FUNCTION clip_search.key_send(@extschema@.clip_key) RETURNS bytea STABLE STRICT PARALLEL SAFE LANGUAGE internal AS 'textsend';
CREATE TYPE @extschema@.clip_key (
    INPUT = clip_search.key_in,
    OUTPUT = clip_search.key_out,
    RECEIVE = clip_search.key_recv,
    SEND = clip_search.key_send,
    LIKE = pg_catalog.text,
    CATEGORY = 'S'
);

CREATE FUNCTION clip_search.key_to_bigint(@extschema@.clip_key) RETURNS pg_catalog.int8
IMMUTABLE STRICT PARALLEL SAFE LANGUAGE sql AS 'SELECT $1::pg_catalog.text::pg_catalog.int8';
CREATE FUNCTION clip_search.key_to_numeric(@extschema@.clip_key) RETURNS pg_catalog.numeric
IMMUTABLE STRICT PARALLEL SAFE LANGUAGE sql AS 'SELECT $1::pg_catalog.text::pg_catalog.numeric';
CREATE FUNCTION clip_search.key_to_uuid(@extschema@.clip_key) RETURNS pg_catalog.uuid
IMMUTABLE STRICT PARALLEL SAFE LANGUAGE sql AS 'SELECT $1::pg_catalog.text::pg_catalog.uuid';
CREATE CAST (@extschema@.clip_key AS pg_catalog.text) WITHOUT FUNCTION AS IMPLICIT;
CREATE CAST (@extschema@.clip_key AS pg_catalog.varchar) WITHOUT FUNCTION AS IMPLICIT;
CREATE CAST (@extschema@.clip_key AS pg_catalog.bpchar) WITHOUT FUNCTION AS IMPLICIT;
CREATE CAST (pg_catalog.text AS @extschema@.clip_key) WITHOUT FUNCTION AS ASSIGNMENT;
CREATE CAST (@extschema@.clip_key AS pg_catalog.int8) WITH FUNCTION clip_search.key_to_bigint(@extschema@.clip_key) AS IMPLICIT;
CREATE CAST (@extschema@.clip_key AS pg_catalog.numeric) WITH FUNCTION clip_search.key_to_numeric(@extschema@.clip_key) AS IMPLICIT;
CREATE CAST (@extschema@.clip_key AS pg_catalog.uuid) WITH FUNCTION clip_search.key_to_uuid(@extschema@.clip_key) AS IMPLICIT;
-- int4 and int2 columns are compared with a clip_key as bigint.
CREATE CAST (@extschema@.clip_key AS pg_catalog.int4) WITH INOUT AS ASSIGNMENT;
CREATE CAST (@extschema@.clip_key AS pg_catalog.int2) WITH INOUT AS ASSIGNMENT;

CREATE FUNCTION clip_search.key_eq(@extschema@.clip_key, @extschema@.clip_key) RETURNS boolean IMMUTABLE STRICT LEAKPROOF PARALLEL SAFE LANGUAGE internal AS 'byteaeq';
CREATE FUNCTION clip_search.key_ne(@extschema@.clip_key, @extschema@.clip_key) RETURNS boolean IMMUTABLE STRICT LEAKPROOF PARALLEL SAFE LANGUAGE internal AS 'byteane';
CREATE FUNCTION clip_search.key_lt(@extschema@.clip_key, @extschema@.clip_key) RETURNS boolean IMMUTABLE STRICT LEAKPROOF PARALLEL SAFE LANGUAGE internal AS 'bytealt';
CREATE FUNCTION clip_search.key_le(@extschema@.clip_key, @extschema@.clip_key) RETURNS boolean IMMUTABLE STRICT LEAKPROOF PARALLEL SAFE LANGUAGE internal AS 'byteale';
CREATE FUNCTION clip_search.key_gt(@extschema@.clip_key, @extschema@.clip_key) RETURNS boolean IMMUTABLE STRICT LEAKPROOF PARALLEL SAFE LANGUAGE internal AS 'byteagt';
CREATE FUNCTION clip_search.key_ge(@extschema@.clip_key, @extschema@.clip_key) RETURNS boolean IMMUTABLE STRICT LEAKPROOF PARALLEL SAFE LANGUAGE internal AS 'byteage';
CREATE FUNCTION clip_search.key_cmp(@extschema@.clip_key, @extschema@.clip_key) RETURNS integer IMMUTABLE STRICT LEAKPROOF PARALLEL SAFE LANGUAGE internal AS 'byteacmp';
CREATE FUNCTION clip_search.key_hash(@extschema@.clip_key) RETURNS integer IMMUTABLE STRICT PARALLEL SAFE LANGUAGE internal AS 'hashvarlena';
CREATE FUNCTION clip_search.key_hash_extended(@extschema@.clip_key, bigint) RETURNS bigint IMMUTABLE STRICT PARALLEL SAFE LANGUAGE internal AS 'hashvarlenaextended';
CREATE OPERATOR @extschema@.= (FUNCTION = clip_search.key_eq, LEFTARG = @extschema@.clip_key, RIGHTARG = @extschema@.clip_key,
    COMMUTATOR = OPERATOR(@extschema@.=), NEGATOR = OPERATOR(@extschema@.<>), RESTRICT = eqsel, JOIN = eqjoinsel, HASHES, MERGES);
CREATE OPERATOR @extschema@.<> (FUNCTION = clip_search.key_ne, LEFTARG = @extschema@.clip_key, RIGHTARG = @extschema@.clip_key,
    COMMUTATOR = OPERATOR(@extschema@.<>), NEGATOR = OPERATOR(@extschema@.=), RESTRICT = neqsel, JOIN = neqjoinsel);
CREATE OPERATOR @extschema@.< (FUNCTION = clip_search.key_lt, LEFTARG = @extschema@.clip_key, RIGHTARG = @extschema@.clip_key,
    COMMUTATOR = OPERATOR(@extschema@.>), NEGATOR = OPERATOR(@extschema@.>=), RESTRICT = scalarltsel, JOIN = scalarltjoinsel);
CREATE OPERATOR @extschema@.<= (FUNCTION = clip_search.key_le, LEFTARG = @extschema@.clip_key, RIGHTARG = @extschema@.clip_key,
    COMMUTATOR = OPERATOR(@extschema@.>=), NEGATOR = OPERATOR(@extschema@.>), RESTRICT = scalarlesel, JOIN = scalarlejoinsel);
CREATE OPERATOR @extschema@.> (FUNCTION = clip_search.key_gt, LEFTARG = @extschema@.clip_key, RIGHTARG = @extschema@.clip_key,
    COMMUTATOR = OPERATOR(@extschema@.<), NEGATOR = OPERATOR(@extschema@.<=), RESTRICT = scalargtsel, JOIN = scalargtjoinsel);
CREATE OPERATOR @extschema@.>= (FUNCTION = clip_search.key_ge, LEFTARG = @extschema@.clip_key, RIGHTARG = @extschema@.clip_key,
    COMMUTATOR = OPERATOR(@extschema@.<=), NEGATOR = OPERATOR(@extschema@.<), RESTRICT = scalargesel, JOIN = scalargejoinsel);
CREATE OPERATOR CLASS @extschema@.clip_key_ops DEFAULT FOR TYPE @extschema@.clip_key USING btree AS
    OPERATOR 1 @extschema@.<(@extschema@.clip_key, @extschema@.clip_key), OPERATOR 2 @extschema@.<=(@extschema@.clip_key, @extschema@.clip_key), OPERATOR 3 @extschema@.=(@extschema@.clip_key, @extschema@.clip_key), OPERATOR 4 @extschema@.>=(@extschema@.clip_key, @extschema@.clip_key), OPERATOR 5 @extschema@.>(@extschema@.clip_key, @extschema@.clip_key),
    FUNCTION 1 clip_search.key_cmp(@extschema@.clip_key, @extschema@.clip_key);
CREATE OPERATOR CLASS @extschema@.clip_key_ops DEFAULT FOR TYPE @extschema@.clip_key USING hash AS
    OPERATOR 1 @extschema@.=(@extschema@.clip_key, @extschema@.clip_key), FUNCTION 1 clip_search.key_hash(@extschema@.clip_key), FUNCTION 2 clip_search.key_hash_extended(@extschema@.clip_key, bigint);

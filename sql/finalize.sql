-- The tables that pg_dump includes, privileges, and the documentation that psql shows (\df+, \d+).

-- Omits collections whose members' table has been dropped: a dump writes the table's bare OID, which might belong to
-- another table after the restore.
SELECT pg_catalog.pg_extension_config_dump('clip_search.collection_setting',
    'WHERE members IS NULL OR EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid OPERATOR(pg_catalog.=) members::pg_catalog.oid)');
-- Omits grants to dropped roles: a dump writes the role's bare OID, which might belong to another role after the
-- restore.
SELECT pg_catalog.pg_extension_config_dump('clip_search.collection_grant',
    'WHERE grantee::pg_catalog.oid OPERATOR(pg_catalog.=) 0::pg_catalog.oid
        OR EXISTS (SELECT FROM pg_catalog.pg_roles r WHERE r.oid OPERATOR(pg_catalog.=) grantee::pg_catalog.oid)');
SELECT pg_catalog.pg_extension_config_dump('clip_search.cluster_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('clip_search.cluster_change_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('clip_search.cluster_sum', '');
SELECT pg_catalog.pg_extension_config_dump('clip_search.cluster_change', '');
SELECT pg_catalog.pg_extension_config_dump('clip_search.cluster_code', '');

-- Every role may embed, and may group in its own collections, in open collections, and in collections granted to it.
-- Only the functions change the tables, and they check the caller's privileges first. clip_check_model reads any
-- directory that the server can read.
REVOKE ALL ON FUNCTION clip_check_model(text) FROM PUBLIC;
-- The counters may cover all connections.
REVOKE ALL ON FUNCTION clip_reset_stats() FROM PUBLIC;
GRANT USAGE ON SCHEMA clip_search TO PUBLIC;
GRANT SELECT ON clip_search.collection, clip_search.cluster TO PUBLIC;
-- The database's owner must be able to dump it. Other roles can't read these tables: they contain keys and error
-- messages of rows of any table.
GRANT SELECT ON clip_search.collection_setting, clip_search.collection_grant, clip_search.cluster_sum, clip_search.cluster_change, clip_search.cluster_code,
    clip_search.watch_setting, clip_search.watch_queue, clip_search.watch_failure, clip_search.watch_partition TO pg_database_owner;
GRANT SELECT ON SEQUENCE clip_search.cluster_id_seq, clip_search.cluster_change_id_seq, clip_search.watch_id_seq, clip_search.watch_queue_id_seq TO pg_database_owner;

-- Row estimates for the planner, whose default is 1000.
ALTER FUNCTION clip_classify(bytea, text[], text, text) ROWS 10;
ALTER FUNCTION clip_classify(bytea, text[], text[], text) ROWS 10;
ALTER FUNCTION clip_classify(vector, text[], text, text) ROWS 10;
ALTER FUNCTION clip_classify(vector, text[], text[], text) ROWS 10;
ALTER FUNCTION clip_classify_or_none(vector, text[], text, text, text) ROWS 10;
ALTER FUNCTION clip_tags(vector, integer, text) ROWS 5;
ALTER FUNCTION clip_tags(vector, text[], text) ROWS 10;
ALTER FUNCTION clip_explain(vector, text, integer, text) ROWS 5;
ALTER FUNCTION clip_find(regclass, text, integer, double precision, double precision, text, integer, text, text, text) ROWS 40;
ALTER FUNCTION clip_find(regclass, bytea, integer, double precision, double precision, text, integer, text, text, text) ROWS 40;
ALTER FUNCTION clip_image_info(bytea) ROWS 1;
ALTER FUNCTION clip_diversify(vector, anyarray, vector[], integer, double precision) ROWS 10;

COMMENT ON SCHEMA clip_search IS 'Views of the extension clip_search: collection, cluster, watch, pending and failure. Its tables are internal';

COMMENT ON VIEW clip_search.collection IS 'Separate sets of clusters and their settings; clip_create_collection or the first assignment to a name creates one';
COMMENT ON COLUMN clip_search.collection.name IS 'Name, as passed to clip_assign_cluster; default if none was passed';
COMMENT ON COLUMN clip_search.collection.dimensions IS 'Dimensions of the vectors';
COMMENT ON COLUMN clip_search.collection.threshold IS 'Lowest cosine at which a vector joins a cluster: the collection''s own, else clip_search.cluster_threshold';
COMMENT ON COLUMN clip_search.collection.model IS 'Model that computed the vectors, if known';
COMMENT ON COLUMN clip_search.collection.members IS 'Table that holds the members';
COMMENT ON COLUMN clip_search.collection.embedding IS 'Column of that table with the embedding';
COMMENT ON COLUMN clip_search.collection.cluster IS 'Column of that table with the cluster''s id';
COMMENT ON COLUMN clip_search.collection.key IS 'Column of that table that identifies a member';
COMMENT ON COLUMN clip_search.collection.labels IS 'Column of that table with keywords (text[])';
COMMENT ON COLUMN clip_search.collection.image IS 'Column of that table with the image file';
COMMENT ON COLUMN clip_search.collection.owner IS 'Role that owns it';
COMMENT ON COLUMN clip_search.collection.created_at IS 'When clip_create_collection created it; NULL if the first assignment did';

COMMENT ON VIEW clip_search.cluster IS 'Clusters of similar vectors, maintained by clip_assign_cluster and clip_recluster';
COMMENT ON COLUMN clip_search.cluster.id IS 'Id, as returned by clip_assign_cluster';
COMMENT ON COLUMN clip_search.cluster.collection IS 'Collection of the cluster';
COMMENT ON COLUMN clip_search.cluster.centroid IS 'Mean of the members, scaled to length 1';
COMMENT ON COLUMN clip_search.cluster.resultant IS 'Length of the mean of the members, which equals their mean cosine to the centroid: 1 if all are equal';
COMMENT ON COLUMN clip_search.cluster.size IS 'Number of members';
COMMENT ON COLUMN clip_search.cluster.created_at IS 'When its first member arrived';
COMMENT ON COLUMN clip_search.cluster.updated_at IS 'When a member last joined or left';

COMMENT ON TABLE clip_search.collection_setting IS 'Settings of collections, written by clip_create_collection; the view clip_search.collection shows them';
COMMENT ON TABLE clip_search.collection_grant IS 'Privileges on collections, written by clip_grant_collection and clip_revoke_collection';
COMMENT ON COLUMN clip_search.collection_grant.grantee IS 'Role; 0 (-) for PUBLIC';
COMMENT ON COLUMN clip_search.collection_grant.privilege IS 'select, assign or recluster; owner for collections without a table of members';
COMMENT ON VIEW clip_search.collection_owner IS 'Owners of collections';
COMMENT ON VIEW clip_search.collection_visible IS 'Collections whose clusters the current role may see';
COMMENT ON INDEX clip_search.collection_grant_collection_idx IS 'Grants by collection';
COMMENT ON COLUMN clip_search.cluster_change.mark IS 'Sequence number: the order in which changes were written';
COMMENT ON SEQUENCE clip_search.cluster_change_id_seq IS 'Sequence numbers of changes';
COMMENT ON TABLE clip_search.cluster_sum IS 'Sums of the members of clusters; the view clip_search.cluster shows them';
COMMENT ON COLUMN clip_search.cluster_sum.sum IS 'Sum of unit vectors, rounded to single precision';
COMMENT ON COLUMN clip_search.cluster_sum.rest IS 'Remainder of that rounding';
COMMENT ON COLUMN clip_search.cluster_sum.code IS 'Binary code of the sum, as stored in cluster_code; NULL: not stored there yet, so searches read the sum';
COMMENT ON COLUMN clip_search.cluster_sum.model IS 'Model of the first vector, if known';
COMMENT ON COLUMN clip_search.cluster_sum.mark IS 'Sequence number: the order in which rows became visible to searches';
COMMENT ON TABLE clip_search.cluster_change IS 'Members that joined or left since the sums were written; the view clip_search.cluster includes them';
COMMENT ON TABLE clip_search.cluster_code IS 'Binary codes of clusters, many in a row, for nearest-neighbor search';
COMMENT ON COLUMN clip_search.cluster_code.mark IS 'Highest sequence number of the sums whose codes the row holds';
COMMENT ON SEQUENCE clip_search.cluster_id_seq IS 'Ids of clusters, and sequence numbers of sums';
COMMENT ON INDEX clip_search.collection_setting_pkey IS 'Unique names';
COMMENT ON INDEX clip_search.cluster_sum_cluster_idx IS 'Sums by cluster';
COMMENT ON INDEX clip_search.cluster_sum_collection_idx IS 'Sums by collection';
COMMENT ON INDEX clip_search.cluster_sum_recent_idx IS 'Sums without a binary code';
COMMENT ON INDEX clip_search.cluster_change_cluster_idx IS 'Changes by cluster';
COMMENT ON INDEX clip_search.cluster_code_collection_idx IS 'Binary codes by collection';

-- The first line says what the function does. Arguments and columns follow, one per line; the reference page lists
-- them.
COMMENT ON FUNCTION clip_embed_image(bytea) IS 'Embedding of an image (JPEG, PNG, WebP, GIF, BMP, TIFF, ICO, HEIC, AVIF, JPEG XL, RAW) by clip_search.model, scaled to length 1';
COMMENT ON FUNCTION clip_embed_image(bytea, text) IS 'Embedding of an image file by the named model, scaled to length 1; immutable, so a generated column can use it';
COMMENT ON FUNCTION clip_embed_text(text) IS 'Embedding of a text by the model clip_search.model, scaled to length 1';
COMMENT ON FUNCTION clip_embed_text(text, text) IS 'Embedding of a text by the named model, scaled to length 1; immutable, so a generated column can use it';
COMMENT ON FUNCTION clip_embed_images(bytea[]) IS 'Embeddings of an array of image files, in batches; NULL elements stay NULL, and one bad file fails the call';
COMMENT ON FUNCTION clip_embed_images(bytea[], text) IS 'Embeddings of an array of image files by the named model, in batches; NULL elements stay NULL';
COMMENT ON FUNCTION clip_embed_texts(text[]) IS 'Embeddings of an array of texts, in batches; NULL elements stay NULL, and one bad text fails the call';
COMMENT ON FUNCTION clip_embed_texts(text[], text) IS 'Embeddings of an array of texts by the named model, in batches; NULL elements stay NULL';
COMMENT ON FUNCTION clip_relevance(vector, text, text) IS 'How certainly a photo shows the subject of a text, from 0 to 1; a photo from 0.5 on is an answer
model: model that computed the embedding; defaults to clip_search.model
The text competes with everyday words (clip_search.words), which a model embeds once, in the first call.';
COMMENT ON FUNCTION clip_explain(vector, text, integer, text) IS 'Why a photo matches a query: the words that fit both, best first
k: number of words
in_photo: relevance of the word to the photo; in_query: relevance of the word to the query
model: model that computed the embedding; defaults to clip_search.model';
COMMENT ON FUNCTION clip_prepare_words(text) IS 'Embeds the words that clip_relevance and clip_tags need, ahead of the first search; returns their number
model: model that embeds them; defaults to clip_search.model';
COMMENT ON FUNCTION clip_tags(vector, integer, text) IS 'Words for the subject of a photo, the most relevant first
k: number of words, whether relevant or not
relevance: as returned by clip_relevance, up to rounding; a tag from 0.5 on is good
model: model that computed the embedding; defaults to clip_search.model';
COMMENT ON FUNCTION clip_tags(vector, text[], text) IS 'Your own labels with their relevance to a photo, the most relevant first; several may fit, or none
labels: pass the argument by name (labels => ...) if it is a literal
model: model that computed the embedding; defaults to clip_search.model';
COMMENT ON FUNCTION clip_classify_or_none(vector, text[], text, text, text) IS 'Zero-shot classification of a stored embedding, with a row for photos that show none of the labels
otherwise: name of that row; a photo shows a label to the degree that the label, or a word that fits both, is relevant
template: text with {} in the place of the label
model: model that computed the embedding; defaults to clip_search.model
The labels share the remaining probability in the proportions of clip_classify.';
COMMENT ON FUNCTION clip_find(regclass, text, integer, double precision, double precision, text, integer, text, text, text) IS 'Rows of a table that match a text, the most relevant first, in pages; it reads the table with the caller''s privileges
k: number of rows per page
cut: lowest relevance of a row
after_relevance, after_id: values of the previous page''s last row
candidates: number of nearest rows to rate; an HNSW index finds them regardless of hnsw.ef_search
key: column that identifies a row, by default the primary key; embedding: column of type vector or halfvec, by default the only one
id: key of the row; cosine: cosine of the row to the query; relevance: as returned by clip_relevance
model: model that computed the embeddings; defaults to the model of the watched column, or to clip_search.model';
COMMENT ON FUNCTION clip_find(regclass, bytea, integer, double precision, double precision, text, integer, text, text, text) IS 'Rows of a table that show what a photo shows, the most relevant first, in pages; other arguments as for a text
query: image file, which is embedded once
relevance: how certainly both photos show the word that they share most, from 0 to 1';
COMMENT ON FUNCTION clip_classify(bytea, text[], text, text) IS 'Zero-shot classification of an image file, the most probable label first
labels: the labels to choose from; none may be NULL or empty
template: the text that is embedded for each label; the label replaces {}
model: defaults to clip_search.model
probability: computed with the model''s own logit scale: a softmax over the labels, or for SigLIP the sigmoid of each';
COMMENT ON FUNCTION clip_classify(bytea, text[], text[], text) IS 'Zero-shot classification of an image file by prompt ensembling: each label is the mean of its texts in all templates';
COMMENT ON FUNCTION clip_classify(vector, text[], text, text) IS 'Zero-shot classification of a stored embedding; the labels must be embedded by the model that computed it';
COMMENT ON FUNCTION clip_classify(vector, text[], text[], text) IS 'Zero-shot classification of a stored embedding by prompt ensembling';
COMMENT ON FUNCTION clip_query(text[], double precision[], bytea[], double precision[], vector[], double precision[], text) IS 'Combines texts, image files and vectors into one query: their weighted sum, scaled to length 1
Each term is scaled to length 1 before its weight applies. Weights default to 1; a negative weight moves the query away from a term.
weights: weights of the texts, one for each; image_weights: weights of the images; vector_weights: weights of the vectors
model: defaults to clip_search.model; the vectors must come from the same model';
COMMENT ON FUNCTION clip_diversify(vector, anyarray, vector[], integer, double precision) IS 'Chooses relevant candidates that differ from each other (maximal marginal relevance)
ids: identifiers of the candidates, of any type, in the order of their embeddings
k: the number of candidates to choose, at most
lambda: weight of relevance, from 0 to 1; the rest is the weight of difference from the candidates already chosen
score: lambda * cosine to the query - (1 - lambda) * highest cosine to a candidate already chosen';
COMMENT ON FUNCTION clip_assign_cluster(vector) IS 'Adds a vector to the nearest cluster of the collection default, or to a new one; returns the cluster''s id';
COMMENT ON FUNCTION clip_assign_cluster(vector, text) IS 'Adds a vector to the nearest cluster of a collection, or to a new one; returns the cluster''s id
The vector joins if its cosine to the centroid is at least the collection''s threshold, or clip_search.cluster_threshold if the collection has none.';
COMMENT ON FUNCTION clip_leave_cluster(bigint, vector) IS 'Removes a member from its cluster, and the cluster with its last member; false if the cluster does not exist
embedding: the vector that was assigned';
COMMENT ON FUNCTION clip_create_collection(text, double precision, integer, text, regclass, text, text, text, text, text) IS 'Creates a collection, or sets up one that an assignment created: its settings and the table of its members
threshold: lowest cosine at which a vector joins a cluster; defaults to clip_search.cluster_threshold
dimensions: dimensions of the vectors; defaults to the length of the first vector
model: model that computes the vectors; defaults to the model of the first vector, if known
members: the table of the members
embedding, cluster: its columns with the embedding (vector or halfvec) and the cluster''s id (bigint)
key: its column that identifies a member; defaults to the primary key
labels: its column with keywords (text[])
image: its column with image files (bytea), for thumbnails';
COMMENT ON FUNCTION clip_drop_collection(text) IS 'Drops a collection and its clusters; the members'' table is not changed';
COMMENT ON FUNCTION clip_alter_collection(text, text, double precision, text, text, text, text) IS 'Changes the passed settings of a collection, and no others; only its owner can call it
owner: a role that the caller is a member of, and that owns the members'' table
threshold: lowest cosine at which a vector joins a cluster
model: model that computes the vectors
key: column that identifies a member; labels: column with keywords (text[]); image: column with image files (bytea)';
COMMENT ON FUNCTION clip_grant_collection(text, text, text) IS 'Grants a role, or PUBLIC, privileges on a collection; only its owner can call it
privilege: select (see clusters and reports), assign (join and leave), recluster, or all';
COMMENT ON FUNCTION clip_revoke_collection(text, text, text) IS 'Revokes privileges on a collection from a role, or from PUBLIC; only its owner can call it
privilege: select, assign, recluster or all';
COMMENT ON FUNCTION clip_has_collection_privilege(text, text) IS 'Whether the current role has a privilege on a collection
privilege: select, assign, recluster, all or owner';
COMMENT ON FUNCTION clip_recluster(text, text) IS 'Regroups all members of a collection by agglomerative clustering, updates their table and returns the changes
linkage: average, or single (a chain of similar members forms one cluster)
cluster: the cluster, which keeps the id of the cluster that most of its members come from
change: new, merged (from several whole clusters), split (a part of one) or moved (members joined or left)
sources: the clusters that the members come from
moved: the number of members that were not in this cluster before';
COMMENT ON FUNCTION clip_clusters(text, bigint, regclass) IS 'Clusters of a collection with at least min_size members, largest first
representative: key of the member nearest to the centroid
cohesion: mean cosine of the members to the centroid; lowest: the lowest such cosine
labels: the five most characteristic keywords
members: the members'' table; name it if row-level policies apply to you, or if the members are in a view
If the collection has no members'' table, representative, lowest and labels are NULL.';
COMMENT ON FUNCTION clip_cluster_groups(text, bigint, regclass) IS 'Clusters of a collection as JSON for a user interface: representative with thumbnail, members, keywords
members: the members'' table; name it if row-level policies apply to you, or if the members are in a view
The JSON Schema is docs/cluster_groups.schema.json.';
COMMENT ON FUNCTION clip_duplicates(text, double precision, regclass) IS 'Near-duplicates in a collection: each member that nearly equals an earlier one (by key), with the nearest such member
threshold: lowest cosine of near-duplicates
members: the members'' table; name it if row-level policies apply to you, or if the members are in a view';
COMMENT ON FUNCTION clip_thumbnail(bytea, integer, text) IS 'Thumbnail of an image file, upright and with its aspect ratio; smaller images keep their size
edge: length of the longer side in pixels, from 1 to 4096
format: jpeg (quality 85), png or webp (lossless)';
COMMENT ON FUNCTION clip_image_info(bytea) IS 'Reads the header of an image file; no pixel is decoded, and no size limit applies
format: JPEG, PNG, GIF, WebP, BMP, TIFF, ICO, HEIC, AVIF or JPEG XL; for camera RAW the name of its format (DNG, CR2, NEF and others)
width, height: size in pixels as stored, before orientation is applied; for camera RAW, the size of the largest preview
orientation: EXIF orientation, from 1 (upright) to 8; 5 to 8 swap width and height
channels: samples per pixel: 1 grey or palette, 2 grey with alpha, 3 RGB, 4 RGB with alpha or CMYK
frames: number of frames or pages
bytes: length of the file
bits: bits per sample
taken: when the picture was taken, by the camera''s clock (EXIF DateTimeOriginal); NULL if the file does not state it
taken_offset: offset of that clock from UTC (EXIF OffsetTimeOriginal), so taken - taken_offset is in UTC; NULL if the file does not state it';
COMMENT ON FUNCTION clip_models() IS 'Available models, and their use by this connection
path: directory of the model; dimensions: dimensions of its vectors, NULL while unknown
selected: whether clip_search.model names it
loaded: whether this connection has loaded the image tower (image_loaded) or the text tower (text_loaded)
images, texts: number of items that this connection has embedded';
COMMENT ON FUNCTION clip_check_model(text) IS 'Checks a model: its files, inputs, outputs and preprocessing, and whether it distinguishes red, green and blue
model: a name, or the absolute path of a directory
The last item is the verdict: good, or the faults.';
COMMENT ON FUNCTION clip_stats() IS 'Counters and timings of the embedding functions for each model
images, texts: number of items embedded; memo_hits: number of texts and images whose embedding came from the connection''s cache
errors: number of failed calls
runs: number of inferences, each of one item or a batch; loads: number of graphs loaded
load_ms, decode_ms, inference_ms: milliseconds spent on loading models, on converting image files to input, and on inference
total_ms: milliseconds of all calls
since: when counting began
shared: whether the counters cover all connections (if clip_search is in shared_preload_libraries) or this one only';
COMMENT ON FUNCTION clip_reset_stats() IS 'Resets the counters of clip_stats() to zero';
COMMENT ON FUNCTION clip_benchmark(text) IS 'Measures how long each step takes on this server, with generated photos and texts and a freshly loaded model
model: defaults to clip_search.model
ms_each: milliseconds per item';
COMMENT ON FUNCTION clip_version() IS 'Version of the extension, and of ONNX Runtime once it is loaded';

-- Keys in results.
COMMENT ON TYPE clip_key IS 'Key of a row, as text
It compares without a cast with columns of integers, numeric, uuid and character types, and uses their indexes. It sorts by its bytes; cast it to sort numbers. Columns of other types need a cast: photo.day = representative::date.
Drivers do not know the type: select representative::text, or join.';
COMMENT ON FUNCTION clip_search.key_in(cstring) IS 'Input of clip_key';
COMMENT ON FUNCTION clip_search.key_out(clip_key) IS 'Output of clip_key';
COMMENT ON FUNCTION clip_search.key_recv(internal) IS 'Binary input of clip_key';
COMMENT ON FUNCTION clip_search.key_send(clip_key) IS 'Binary output of clip_key';
COMMENT ON FUNCTION clip_search.key_to_bigint(clip_key) IS 'Cast of clip_key';
COMMENT ON FUNCTION clip_search.key_to_numeric(clip_key) IS 'Cast of clip_key';
COMMENT ON FUNCTION clip_search.key_to_uuid(clip_key) IS 'Cast of clip_key';
COMMENT ON CAST (clip_key AS pg_catalog.text) IS 'A key is its text';
COMMENT ON CAST (clip_key AS pg_catalog.varchar) IS 'A key is its text';
COMMENT ON CAST (clip_key AS pg_catalog.bpchar) IS 'A key is its text';
COMMENT ON CAST (pg_catalog.text AS clip_key) IS 'Text of a key';
COMMENT ON CAST (clip_key AS pg_catalog.int8) IS 'Key of an integer column';
COMMENT ON CAST (clip_key AS pg_catalog.numeric) IS 'Key of a numeric column';
COMMENT ON CAST (clip_key AS pg_catalog.uuid) IS 'Key of a uuid column';
COMMENT ON CAST (clip_key AS pg_catalog.int4) IS 'Key for an integer column';
COMMENT ON CAST (clip_key AS pg_catalog.int2) IS 'Key for a smallint column';
COMMENT ON FUNCTION clip_search.key_eq(clip_key, clip_key) IS 'Operator = of clip_key';
COMMENT ON FUNCTION clip_search.key_ne(clip_key, clip_key) IS 'Operator <> of clip_key';
COMMENT ON FUNCTION clip_search.key_lt(clip_key, clip_key) IS 'Operator < of clip_key';
COMMENT ON FUNCTION clip_search.key_le(clip_key, clip_key) IS 'Operator <= of clip_key';
COMMENT ON FUNCTION clip_search.key_gt(clip_key, clip_key) IS 'Operator > of clip_key';
COMMENT ON FUNCTION clip_search.key_ge(clip_key, clip_key) IS 'Operator >= of clip_key';
COMMENT ON FUNCTION clip_search.key_cmp(clip_key, clip_key) IS 'Order of clip_key';
COMMENT ON FUNCTION clip_search.key_hash(clip_key) IS 'Hash of clip_key';
COMMENT ON FUNCTION clip_search.key_hash_extended(clip_key, bigint) IS 'Seeded hash of clip_key';
COMMENT ON OPERATOR = (clip_key, clip_key) IS 'equal, by bytes';
COMMENT ON OPERATOR <> (clip_key, clip_key) IS 'not equal, by bytes';
COMMENT ON OPERATOR < (clip_key, clip_key) IS 'less, by bytes';
COMMENT ON OPERATOR <= (clip_key, clip_key) IS 'less or equal, by bytes';
COMMENT ON OPERATOR > (clip_key, clip_key) IS 'greater, by bytes';
COMMENT ON OPERATOR >= (clip_key, clip_key) IS 'greater or equal, by bytes';
COMMENT ON OPERATOR CLASS clip_key_ops USING btree IS 'Keys by their bytes';
COMMENT ON OPERATOR FAMILY clip_key_ops USING btree IS 'Keys by their bytes';
COMMENT ON OPERATOR CLASS clip_key_ops USING hash IS 'Keys by their bytes';
COMMENT ON OPERATOR FAMILY clip_key_ops USING hash IS 'Keys by their bytes';

-- Watched columns.
COMMENT ON VIEW clip_search.watch IS 'Columns that clip_watch keeps in sync, and their progress';
COMMENT ON COLUMN clip_search.watch.relation IS 'Watched table';
COMMENT ON COLUMN clip_search.watch.source IS 'Embedded column: images (bytea) or texts';
COMMENT ON COLUMN clip_search.watch.text_source IS 'Column of texts whose vectors are averaged with the images'' vectors';
COMMENT ON COLUMN clip_search.watch.text_weight IS 'Weight of the text in that average';
COMMENT ON COLUMN clip_search.watch.embedding IS 'Column that receives the embedding';
COMMENT ON COLUMN clip_search.watch.cluster IS 'Column that receives the cluster''s id, if rows are grouped';
COMMENT ON COLUMN clip_search.watch.model IS 'Model that computes the embeddings';
COMMENT ON COLUMN clip_search.watch.collection IS 'Collection of the clusters';
COMMENT ON COLUMN clip_search.watch.mode IS 'immediate: embeds when a row is written; queued: the background worker embeds';
COMMENT ON COLUMN clip_search.watch.on_error IS 'raise: the statement fails; skip: the row is stored without an embedding and listed in clip_search.failure';
COMMENT ON COLUMN clip_search.watch.replaces IS 'Column that clip_reembed will replace by this one';
COMMENT ON COLUMN clip_search.watch.active IS 'Whether the triggers exist and are enabled';
COMMENT ON COLUMN clip_search.watch.rows IS 'Rows of the table; NULL if the current role may not read them all';
COMMENT ON COLUMN clip_search.watch.embedded IS 'Rows with an embedding, outdated ones included';
COMMENT ON COLUMN clip_search.watch.pending IS 'Rows that still need embedding, grouping or tags, except failed rows';
COMMENT ON COLUMN clip_search.watch.failed IS 'Rows that could not be embedded';
COMMENT ON COLUMN clip_search.watch.models IS 'Number of rows with an embedding of each model, as a JSON object; "(unknown)" counts vectors from before the watch';
COMMENT ON COLUMN clip_search.watch.tags IS 'Column that receives the tags, if rows are tagged';
COMMENT ON COLUMN clip_search.watch.outdated IS 'Rows whose embedding is older than the watch, or was computed with an earlier source, weight or model; they count as pending';

COMMENT ON VIEW clip_search.pending IS 'Rows of the current role''s tables that await embedding by the background worker or by clip_backfill; a row that was deleted or got another key since is listed until its turn';
COMMENT ON COLUMN clip_search.pending.relation IS 'Watched table';
COMMENT ON COLUMN clip_search.pending.embedding IS 'Column that receives the embedding';
COMMENT ON COLUMN clip_search.pending.key IS 'Primary key of the row';
COMMENT ON COLUMN clip_search.pending.queued_at IS 'When the row was queued';
COMMENT ON COLUMN clip_search.pending.due IS 'When the next attempt is due';
COMMENT ON COLUMN clip_search.pending.attempts IS 'Number of attempts so far';
COMMENT ON COLUMN clip_search.pending.sqlstate IS 'SQLSTATE of the last error';
COMMENT ON COLUMN clip_search.pending.message IS 'Message of the last error';

COMMENT ON VIEW clip_search.failure IS 'Rows of the current role''s tables that could not be embedded; clip_retry retries them';
COMMENT ON COLUMN clip_search.failure.relation IS 'Watched table';
COMMENT ON COLUMN clip_search.failure.embedding IS 'Column that receives the embedding';
COMMENT ON COLUMN clip_search.failure.key IS 'Primary key of the row';
COMMENT ON COLUMN clip_search.failure.failed_at IS 'When the last attempt failed';
COMMENT ON COLUMN clip_search.failure.sqlstate IS 'SQLSTATE of the error';
COMMENT ON COLUMN clip_search.failure.message IS 'Message of the error';
COMMENT ON COLUMN clip_search.failure.detail IS 'Detail of the error';
COMMENT ON COLUMN clip_search.failure.attempts IS 'Number of attempts';

COMMENT ON TABLE clip_search.watch_setting IS 'Arguments of clip_watch; the view clip_search.watch shows them';
COMMENT ON TABLE clip_search.watch_queue IS 'Rows that await embedding; the view clip_search.pending shows them';
COMMENT ON TABLE clip_search.watch_failure IS 'Rows that could not be embedded; the view clip_search.failure shows them';
COMMENT ON VIEW clip_search.watch_live IS 'Watches whose triggers exist and are enabled';
COMMENT ON SEQUENCE clip_search.watch_id_seq IS 'Ids of watches';
COMMENT ON SEQUENCE clip_search.watch_queue_id_seq IS 'Ids of queue entries';
COMMENT ON INDEX clip_search.watch_setting_pkey IS 'Unique ids';
COMMENT ON INDEX clip_search.watch_setting_column_key IS 'Each column is watched at most once';
COMMENT ON INDEX clip_search.watch_queue_pkey IS 'Unique ids';
COMMENT ON INDEX clip_search.watch_queue_due_idx IS 'Entries of a watch in the order in which they are due';
COMMENT ON INDEX clip_search.watch_queue_tried_idx IS 'Entries that have been tried before';
COMMENT ON INDEX clip_search.watch_queue_watch_idx IS 'Entries by watch and row';
COMMENT ON INDEX clip_search.watch_queue_again_idx IS 'Rows whose vector will be replaced';
COMMENT ON INDEX clip_search.watch_failure_pkey IS 'Each row is listed at most once';

COMMENT ON FUNCTION clip_watch(regclass, text, text, text, text, text, text, text, text, double precision, double precision, boolean, text, text, text, text, text, text[]) IS 'Keeps a table''s embeddings, and optionally its clusters, in sync with a column of images or texts
Only the table''s owner can call it. It creates missing columns, index and collection; clip_backfill embeds existing rows.
A second call changes the settings that it names, and keeps the others.
source: the column of images (bytea) or texts
embedding: the column that receives the embedding, a vector or halfvec; created as a vector
cluster: the column that receives the cluster''s id; without it rows are not grouped
model: defaults to clip_search.model, in the variant NAME:auto-int8 if clip_search.precision is int8
collection: the collection of the clusters; defaults to a collection named after the table
mode: immediate (default) embeds when a row is written; queued leaves this to the background worker, and the column is NULL until it has finished
on_error: raise (default) fails the statement; skip stores the row without an embedding and lists it in clip_search.failure; in queued mode no statement fails, and the row is listed either way
text_source: a column of texts whose vectors are averaged with the images'' vectors
text_weight: weight of the text in that average, between 0 and 1; 0.5 by default
threshold: the collection''s threshold; NULL: keep its own, or use clip_search.cluster_threshold
index: whether to create an HNSW index for cosine distance
existing: vectors that the column already contains: replace (default) counts them as pending, to be embedded again; keep leaves them unchanged
key: the column that identifies a member of the collection; defaults to the primary key
labels: the column with keywords (text[]) that describe clusters; the tags describe members without keywords
image: the column with image files (bytea), for thumbnails of clusters
tags: the column that receives the tags (text[]), created if missing: the words that clip_tags(embedding, 10) rates at 0.5 or more, the most relevant first
reset: names of options to reset to their defaults, or to remove: cluster, mode, on_error, text_source, text_weight, threshold, key, labels, image, tags';
COMMENT ON FUNCTION clip_unwatch(regclass, text, boolean, boolean) IS 'Stops watching a table, and keeps its columns, index and collection
embedding: the watched column; NULL: the only one in this table
keep_columns: deprecated; false means drop_columns => true
drop_columns: drops the columns, index and collection that clip_watch added';
COMMENT ON FUNCTION clip_retry(regclass, text, text) IS 'Retries the rows of clip_search.failure; returns the number of rows that are no longer listed
embedding: the watched column; NULL: all watched columns of this table
sqlstate: retries only rows that failed with this SQLSTATE, or with a SQLSTATE of this class (its first two characters)';
COMMENT ON FUNCTION clip_embed_text_for(regclass, text, text) IS 'Embeds a text by the model of a watched column, to search that column
Every role that can read the table can call it.
embedding: the watched column; NULL: the only one in this table';
COMMENT ON FUNCTION clip_embed_image_for(regclass, bytea, text) IS 'Embeds an image by the model of a watched column, to search that column
Every role that can read the table can call it.
embedding: the watched column; NULL: the only one in this table';
COMMENT ON FUNCTION clip_watch_row() IS 'Trigger function of watched tables';
COMMENT ON PROCEDURE clip_backfill(regclass, integer, text) IS 'Embeds the rows of a watched table that have no embedding, one transaction per batch
It returns when all rows that existed when it was called are embedded or listed as failed.
It can''t run inside a transaction block. It can be interrupted and called again, and run in several sessions at once.
batch: rows per transaction
embedding: the watched column; NULL: all watched columns of this table';
COMMENT ON FUNCTION clip_search.watch_progress(regclass, name, name, name, name, name) IS 'Counts the rows of a watched table for clip_search.watch';
COMMENT ON FUNCTION clip_search.count_rows(regclass, text[], text, text, text) IS 'Counts a table''s rows by a scan without SQL, for a caller that may read all of them; NULL for others';
COMMENT ON FUNCTION clip_search.backfill_begin(regclass, text) IS 'Step of clip_backfill: queues the rows without an embedding';
COMMENT ON FUNCTION clip_search.backfill_claim(bigint, bigint, bigint, integer) IS 'Step of clip_backfill: claims the next queue entries';
COMMENT ON FUNCTION clip_search.backfill_left(bigint, bigint) IS 'Step of clip_backfill: counts the entries that other sessions are working on';
COMMENT ON FUNCTION clip_search.backfill_failed(bigint[]) IS 'Step of clip_backfill: counts the failures of each watch';
COMMENT ON FUNCTION clip_search.backfill_batch(bigint, bigint[]) IS 'Step of clip_backfill: embeds the claimed entries';
COMMENT ON PROCEDURE clip_reembed(regclass, text, text, integer) IS 'Embeds a watched table by another model into a second column, and swaps the columns once the second is complete
It can''t run inside a transaction block. If interrupted, call it again: it resumes.
model: the new model
embedding: the watched column; NULL: the only one in this table
batch: rows per transaction';
COMMENT ON FUNCTION clip_search.reembed_begin(regclass, text, text) IS 'Step of clip_reembed: adds and watches the second column';
COMMENT ON FUNCTION clip_search.reembed_goes_on(regclass, text, text) IS 'Step of clip_reembed: whether the second column still has to be filled; false if another session has finished';
COMMENT ON FUNCTION clip_search.reembed_finish(regclass, text) IS 'Step of clip_reembed: swaps the columns; false if rows are missing';
COMMENT ON FUNCTION clip_search.forget_dropped() IS 'Event trigger: removes the extension''s entries of a dropped table';
COMMENT ON FUNCTION clip_search.forget_dropped_tables() IS 'Removes the extension''s entries of dropped tables';
COMMENT ON EVENT TRIGGER clip_search_drop IS 'Removes settings, queue, failures and groups of a watched table with the table';
COMMENT ON TABLE clip_search.watch_partition IS 'Partitions of watched tables';
COMMENT ON INDEX clip_search.watch_partition_pkey IS 'One row per watch and partition';
COMMENT ON FUNCTION clip_search.follow_partitions() IS 'Event trigger: follows partitions that are added to a watched table, attached or detached';
COMMENT ON FUNCTION clip_search.settle_partitions(bigint[]) IS 'Removes the rows of detached partitions from their clusters, and creates triggers on new partitions';
COMMENT ON EVENT TRIGGER clip_search_partition IS 'Keeps the clusters of partitioned tables in sync when partitions are attached or detached';
COMMENT ON COLUMN clip_search.watch_setting.home IS 'For distributed tables of Citus and their shards: the watch of the distributed table, the column of clusters, the table of departures';
COMMENT ON FUNCTION clip_group(regclass, integer, text) IS 'Brings the groups of a distributed table of Citus up to date; returns the number of rows assigned
Rows that changed or left are taken out of their groups, then rows without a group are assigned.
Call it on the coordinator until it returns 0, or every minute.
most: rows that are taken out at most, and as many that are assigned
embedding: the watched column; NULL: all watched columns of this table';
COMMENT ON FUNCTION clip_search.ask_servers(text) IS 'Asks the servers of Citus about the shards of watched tables';
COMMENT ON FUNCTION clip_search.on_servers(text, regclass) IS 'Runs a command on the servers of Citus, as the caller';
COMMENT ON FUNCTION clip_search.shard_totals(bigint, regclass) IS 'Sums of clip_search.shard_progress over the servers of a distributed table';
COMMENT ON FUNCTION clip_search.shard_failures(bigint, regclass) IS 'Failed rows of the shards of a distributed table';
COMMENT ON FUNCTION clip_search.shard_pending(bigint, regclass) IS 'Queued rows of the shards of a distributed table';
COMMENT ON FUNCTION clip_search.shards_here(bigint, regclass) IS 'Shards of a distributed table that this server has, for their owner';
COMMENT ON FUNCTION clip_search.retry_here(bigint, regclass, text) IS 'A server''s part of clip_retry of a distributed table';
COMMENT ON PROCEDURE clip_search.backfill_here(bigint, regclass, integer) IS 'A server''s part of clip_backfill of a distributed table';
COMMENT ON FUNCTION clip_search.distributed_watches(regclass, text) IS 'Step of clip_backfill: the watches of a distributed table';
COMMENT ON FUNCTION clip_search.forget_rows(regclass) IS 'Removes queue and failures of a shard whose rows TRUNCATE removes';
COMMENT ON FUNCTION clip_search.adopt_shard(oid) IS 'Stores the settings that a trigger of clip_watch has brought to a shard';
COMMENT ON FUNCTION clip_search.is_placed_here(regclass) IS 'Whether Citus sends queries on a shard to this server';
COMMENT ON FUNCTION clip_search.is_owned(regclass) IS 'Whether the current role has the privileges of a table''s owner';
COMMENT ON FUNCTION clip_search.shown_as(regclass) IS 'The table that users name: of a shard of a table that Citus keeps on the coordinator, that table; otherwise the same';
COMMENT ON FUNCTION clip_search.distributed_table(regclass) IS 'The distributed table of a shard';
COMMENT ON FUNCTION clip_search.owner_of(regclass) IS 'The owner of a table, also of a shard, which Citus hides in pg_class';
COMMENT ON COLUMN clip_search.shard_progress.distributed IS 'The distributed table';
COMMENT ON COLUMN clip_search.shard_queue.distributed IS 'The distributed table';
COMMENT ON COLUMN clip_search.shard_failure.distributed IS 'The distributed table';
COMMENT ON FUNCTION clip_search.follow_shards() IS 'Event trigger: takes up the settings of clip_watch on shards of Citus';
COMMENT ON EVENT TRIGGER clip_search_shard IS 'Keeps shards of distributed tables watched, also where Citus moves them';
COMMENT ON VIEW clip_search.shard_progress IS 'Progress of the watched shards of this server, which clip_search.watch sums up on the coordinator';
COMMENT ON VIEW clip_search.shard_queue IS 'Queued rows of the watched shards of this server, which clip_search.pending shows on the coordinator';
COMMENT ON VIEW clip_search.shard_failure IS 'Failed rows of the watched shards of this server, which clip_search.failure shows on the coordinator';
COMMENT ON COLUMN clip_search.shard_progress.parent IS 'The distributed table''s watch';
COMMENT ON COLUMN clip_search.shard_progress.relation IS 'Shard';
COMMENT ON COLUMN clip_search.shard_progress.rows IS 'Rows of the shard; NULL if the current role may not read them all';
COMMENT ON COLUMN clip_search.shard_progress.embedded IS 'Rows with an embedding';
COMMENT ON COLUMN clip_search.shard_progress.pending IS 'Rows that still need embedding or tags, except failed rows';
COMMENT ON COLUMN clip_search.shard_progress.failed IS 'Rows that could not be embedded';
COMMENT ON COLUMN clip_search.shard_progress.outdated IS 'Rows whose embedding will be replaced';
COMMENT ON COLUMN clip_search.shard_queue.parent IS 'The distributed table''s watch';
COMMENT ON COLUMN clip_search.shard_queue.relation IS 'Shard';
COMMENT ON COLUMN clip_search.shard_queue.key IS 'Primary key of the row';
COMMENT ON COLUMN clip_search.shard_queue.queued_at IS 'When the row was queued';
COMMENT ON COLUMN clip_search.shard_queue.due IS 'When the next attempt is due';
COMMENT ON COLUMN clip_search.shard_queue.attempts IS 'Number of attempts so far';
COMMENT ON COLUMN clip_search.shard_queue.sqlstate IS 'SQLSTATE of the last attempt''s error';
COMMENT ON COLUMN clip_search.shard_queue.message IS 'Message of that error';
COMMENT ON COLUMN clip_search.shard_failure.parent IS 'The distributed table''s watch';
COMMENT ON COLUMN clip_search.shard_failure.relation IS 'Shard';
COMMENT ON COLUMN clip_search.shard_failure.key IS 'Primary key of the row';
COMMENT ON COLUMN clip_search.shard_failure.failed_at IS 'When the last attempt failed';
COMMENT ON COLUMN clip_search.shard_failure.sqlstate IS 'SQLSTATE of the error';
COMMENT ON COLUMN clip_search.shard_failure.message IS 'Message of the error';
COMMENT ON COLUMN clip_search.shard_failure.detail IS 'Its DETAIL';
COMMENT ON COLUMN clip_search.shard_failure.attempts IS 'Number of attempts';

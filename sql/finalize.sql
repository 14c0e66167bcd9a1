-- What a dump must carry, who may do what, and the documentation that psql shows (\df+, \d+).

SELECT pg_catalog.pg_extension_config_dump('clip_search.collection_setting', '');
-- But grants to roles that have been dropped: they would come back as numbers, which another role might have there.
SELECT pg_catalog.pg_extension_config_dump('clip_search.collection_grant',
    'WHERE grantee::pg_catalog.oid OPERATOR(pg_catalog.=) 0::pg_catalog.oid
        OR EXISTS (SELECT FROM pg_catalog.pg_roles r WHERE r.oid OPERATOR(pg_catalog.=) grantee::pg_catalog.oid)');
SELECT pg_catalog.pg_extension_config_dump('clip_search.cluster_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('clip_search.cluster_change_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('clip_search.cluster_sum', '');
SELECT pg_catalog.pg_extension_config_dump('clip_search.cluster_change', '');
SELECT pg_catalog.pg_extension_config_dump('clip_search.cluster_code', '');

-- Everyone may embed, and group in collections that are open or that their owners have granted. The tables change only
-- through the functions, which look whose rights the caller has.
-- It reads any directory that the server may read.
REVOKE ALL ON FUNCTION clip_check_model(text) FROM PUBLIC;
-- It may be everybody's figures.
REVOKE ALL ON FUNCTION clip_reset_stats() FROM PUBLIC;
GRANT USAGE ON SCHEMA clip_search TO PUBLIC;
GRANT SELECT ON clip_search.collection, clip_search.cluster TO PUBLIC;
-- Whoever owns the database can dump it, as he could before; the tables have keys and messages of all tables' rows.
GRANT SELECT ON clip_search.collection_setting, clip_search.collection_grant, clip_search.cluster_sum, clip_search.cluster_change, clip_search.cluster_code,
    clip_search.watch_setting, clip_search.watch_queue, clip_search.watch_failure TO pg_database_owner;
GRANT SELECT ON SEQUENCE clip_search.cluster_id_seq, clip_search.cluster_change_id_seq, clip_search.watch_id_seq, clip_search.watch_queue_id_seq TO pg_database_owner;

-- What the planner expects of them, in place of 1000 rows.
ALTER FUNCTION clip_classify(bytea, text[], text, text) ROWS 10;
ALTER FUNCTION clip_classify(bytea, text[], text[], text) ROWS 10;
ALTER FUNCTION clip_classify(vector, text[], text, text) ROWS 10;
ALTER FUNCTION clip_classify(vector, text[], text[], text) ROWS 10;
ALTER FUNCTION clip_image_info(bytea) ROWS 1;
ALTER FUNCTION clip_diversify(vector, anyarray, vector[], integer, double precision) ROWS 10;

COMMENT ON SCHEMA clip_search IS 'Views of the extension clip_search: collection, cluster, watch, pending and failure; its tables are its own';

COMMENT ON VIEW clip_search.collection IS 'Sets of clusters that are kept apart, with their settings; made by clip_create_collection or the first assignment to a name';
COMMENT ON COLUMN clip_search.collection.name IS 'Its name, as given to clip_assign_cluster; default where none was';
COMMENT ON COLUMN clip_search.collection.dimensions IS 'Dimensions of its vectors';
COMMENT ON COLUMN clip_search.collection.threshold IS 'Cosine from which on a vector joins a cluster: its own, else clip_search.cluster_threshold';
COMMENT ON COLUMN clip_search.collection.model IS 'The model whose vectors it holds, if known';
COMMENT ON COLUMN clip_search.collection.members IS 'The table that its members are in';
COMMENT ON COLUMN clip_search.collection.embedding IS 'The column of that table with the embedding';
COMMENT ON COLUMN clip_search.collection.cluster IS 'The column of that table with the cluster''s id';
COMMENT ON COLUMN clip_search.collection.key IS 'The column of that table that names a member';
COMMENT ON COLUMN clip_search.collection.labels IS 'The column of that table with keywords (text[])';
COMMENT ON COLUMN clip_search.collection.image IS 'The column of that table with the image file';
COMMENT ON COLUMN clip_search.collection.owner IS 'The role that it belongs to';
COMMENT ON COLUMN clip_search.collection.created_at IS 'When clip_create_collection made it; NULL for one that came to be by its first cluster';

COMMENT ON VIEW clip_search.cluster IS 'Groups of look-alikes, as clip_assign_cluster and clip_recluster keep them';
COMMENT ON COLUMN clip_search.cluster.id IS 'What clip_assign_cluster returns';
COMMENT ON COLUMN clip_search.cluster.collection IS 'The collection it belongs to';
COMMENT ON COLUMN clip_search.cluster.centroid IS 'Direction of the mean of its members, length 1';
COMMENT ON COLUMN clip_search.cluster.resultant IS 'Length of the mean of its members, which is their mean cosine to the centroid: 1 if all are equal';
COMMENT ON COLUMN clip_search.cluster.size IS 'How many members it has';
COMMENT ON COLUMN clip_search.cluster.created_at IS 'When it was founded';
COMMENT ON COLUMN clip_search.cluster.updated_at IS 'When a member last came or went';

COMMENT ON TABLE clip_search.collection_setting IS 'Settings of collections, written by clip_create_collection; read them in clip_search.collection';
COMMENT ON TABLE clip_search.collection_grant IS 'What roles may do with collections, written by clip_grant_collection and clip_revoke_collection';
COMMENT ON COLUMN clip_search.collection_grant.grantee IS 'The role; 0 (-) for PUBLIC';
COMMENT ON COLUMN clip_search.collection_grant.privilege IS 'select, assign or recluster; owner for collections without settings';
COMMENT ON COLUMN clip_search.collection_setting.owner IS 'The role that it belongs to; the owner of the database if there is no such role';
COMMENT ON VIEW clip_search.collection_owner IS 'Owners of collections';
COMMENT ON VIEW clip_search.collection_visible IS 'Collections whose clusters the current role may see';
COMMENT ON INDEX clip_search.collection_grant_collection_idx IS 'The grants of a collection';
COMMENT ON TABLE clip_search.cluster_sum IS 'Sums of the members of clusters; read them in clip_search.cluster';
COMMENT ON COLUMN clip_search.cluster_sum.sum IS 'Sum of unit vectors, rounded to single precision';
COMMENT ON COLUMN clip_search.cluster_sum.rest IS 'What the rounding took away';
COMMENT ON COLUMN clip_search.cluster_sum.code IS 'Binary code of the sum as it stands in cluster_code; NULL: not there, searches read the sum';
COMMENT ON COLUMN clip_search.cluster_sum.model IS 'The model of the founding vector, if known';
COMMENT ON COLUMN clip_search.cluster_sum.mark IS 'Grows with each row that is new to searches: its place in the order of writing';
COMMENT ON TABLE clip_search.cluster_change IS 'Members that have come or gone since the sums were written; read them in clip_search.cluster';
COMMENT ON TABLE clip_search.cluster_code IS 'Binary codes of clusters, many to a row, for the search of the nearest';
COMMENT ON COLUMN clip_search.cluster_code.mark IS 'The highest mark of the sums whose codes it holds';
COMMENT ON SEQUENCE clip_search.cluster_id_seq IS 'Ids of clusters, and marks';
COMMENT ON COLUMN clip_search.cluster_change.mark IS 'Grows with each row: the order of writing';
COMMENT ON SEQUENCE clip_search.cluster_change_id_seq IS 'Marks of changes';
COMMENT ON INDEX clip_search.collection_setting_pkey IS 'Names are unique';
COMMENT ON INDEX clip_search.cluster_sum_cluster_idx IS 'The sums of a cluster';
COMMENT ON INDEX clip_search.cluster_sum_collection_idx IS 'The sums of a collection';
COMMENT ON INDEX clip_search.cluster_sum_recent_idx IS 'Sums without a code';
COMMENT ON INDEX clip_search.cluster_change_cluster_idx IS 'The changes of a cluster';
COMMENT ON INDEX clip_search.cluster_code_collection_idx IS 'The codes of a collection';

-- A first line that says what it is; then arguments and columns, one a line, which the reference page shows as a list.
COMMENT ON FUNCTION clip_embed_image(bytea) IS 'Embedding of an image file (JPEG, PNG, WebP, GIF, BMP, TIFF, ICO) by the model clip_search.model, of length 1';
COMMENT ON FUNCTION clip_embed_image(bytea, text) IS 'Embedding of an image file by the named model, of length 1; immutable, so a generated column can use it';
COMMENT ON FUNCTION clip_embed_text(text) IS 'Embedding of a text by the model clip_search.model, of length 1';
COMMENT ON FUNCTION clip_embed_text(text, text) IS 'Embedding of a text by the named model, of length 1; immutable, so a generated column can use it';
COMMENT ON FUNCTION clip_embed_images(bytea[]) IS 'Embeddings of many image files, in batches; NULL elements stay NULL, and one bad file is an error for all';
COMMENT ON FUNCTION clip_embed_images(bytea[], text) IS 'Embeddings of many image files by the named model, in batches; NULL elements stay NULL';
COMMENT ON FUNCTION clip_embed_texts(text[]) IS 'Embeddings of many texts, in batches; NULL elements stay NULL, and one bad text is an error for all';
COMMENT ON FUNCTION clip_embed_texts(text[], text) IS 'Embeddings of many texts by the named model, in batches; NULL elements stay NULL';
COMMENT ON FUNCTION clip_classify(bytea, text[], text, text) IS 'Zero-shot classification of an image file, the most probable label first
labels: what to choose from; none may be NULL or empty
template: the text that is embedded for each label, which takes the place of {}
model: else clip_search.model
probability: by the model''s own logit scale: a softmax over the labels, or SigLIP''s sigmoid of each';
COMMENT ON FUNCTION clip_classify(bytea, text[], text[], text) IS 'Zero-shot classification of an image file by an ensemble: each label is the mean of its texts in all templates';
COMMENT ON FUNCTION clip_classify(vector, text[], text, text) IS 'Zero-shot classification of a stored embedding, which must be of the same model as the labels will be';
COMMENT ON FUNCTION clip_classify(vector, text[], text[], text) IS 'Zero-shot classification of a stored embedding by an ensemble of templates';
COMMENT ON FUNCTION clip_query(text[], double precision[], bytea[], double precision[], vector[], double precision[], text) IS 'One query of many: the weighted sum of texts, image files and vectors, scaled to length 1
Each term counts by its direction alone and by its weight: 1 where none are given, below 0 to lead away.
weights: of the texts; image_weights and vector_weights of the others; as many as there are terms
model: else clip_search.model; vectors must be of the same';
COMMENT ON FUNCTION clip_diversify(vector, anyarray, vector[], integer, double precision) IS 'The best of some candidates that are unlike each other (maximal marginal relevance)
ids: what names the candidates, of any type; their embeddings in the same order
k: how many are chosen, at most
lambda: share of nearness to the query, from 0 to 1; the rest is unlikeness to those chosen before
score: lambda × cosine to the query − (1 − lambda) × highest cosine to one chosen before';
COMMENT ON FUNCTION clip_assign_cluster(vector) IS 'Joins the nearest cluster of collection default, if near enough, or founds one; returns its id';
COMMENT ON FUNCTION clip_assign_cluster(vector, text) IS 'Joins the nearest cluster of a collection, if near enough, or founds one; returns its id
Near enough is a cosine to the centroid of at least the collection''s threshold, else clip_search.cluster_threshold.';
COMMENT ON FUNCTION clip_leave_cluster(bigint, vector) IS 'Takes a member out of its cluster, and the cluster away with its last one; false if there is no such cluster
embedding: the one that joined';
COMMENT ON FUNCTION clip_create_collection(text, double precision, integer, text, regclass, text, text, text, text, text) IS 'Gives a collection its settings, and says in which table and columns its members are
threshold: cosine from which on a vector joins a cluster; else clip_search.cluster_threshold
dimensions: of its vectors; else those of the first
model: whose vectors it takes; else that of the first, if known
members: the table of the members
embedding, cluster: its columns of the embedding (vector or halfvec) and of the cluster''s id (bigint)
key: its column that names a member; else its primary key
labels: its column of keywords (text[])
image: its column of image files (bytea), for thumbnails';
COMMENT ON FUNCTION clip_drop_collection(text) IS 'Drops a collection with its clusters; the members'' table stays as it is';
COMMENT ON FUNCTION clip_alter_collection(text, text, double precision, text, text, text, text) IS 'Changes the settings of a collection that are given, and nothing else; for its owner
owner: a role that the caller is a member of, and that owns the members'' table
threshold: cosine from which on a vector joins a cluster
model: whose vectors it takes
key: the column that names a member; labels: that of its keywords (text[]); image: that of its image file (bytea)';
COMMENT ON FUNCTION clip_grant_collection(text, text, text) IS 'Gives a role, or PUBLIC, rights to a collection; for its owner
privilege: select, to see its clusters and reports; assign, to join and leave; recluster; or all three';
COMMENT ON FUNCTION clip_revoke_collection(text, text, text) IS 'Takes rights to a collection from a role, or from PUBLIC; for its owner
privilege: select, assign, recluster or all three';
COMMENT ON FUNCTION clip_has_collection_privilege(text, text) IS 'Whether the current role has a right to a collection
privilege: select, assign, recluster, all three, or owner';
COMMENT ON FUNCTION clip_recluster(text, text) IS 'Groups all members of a collection anew by agglomerative clustering, writes that to their table and returns what has changed
linkage: average, or single (a chain of near ones is one group)
cluster: the group; it keeps the id of the one that most of its members were in
change: new, merged (of several, whole), split (a part of one) or moved (members came or went)
sources: the clusters that its members were in
moved: members that were not in it before';
COMMENT ON FUNCTION clip_clusters(text, bigint, regclass) IS 'Clusters of a collection with at least min_size members, the largest first
representative: key of the member nearest the centroid
cohesion: mean cosine of the members to the centroid; lowest: the lowest
labels: its five most telling keywords
members: the members'' table, if row-level policies or a view decide what the caller sees of it
Of a collection that was not told its members'' table, representative, lowest and labels are NULL.';
COMMENT ON FUNCTION clip_cluster_groups(text, bigint, regclass) IS 'Clusters of a collection as JSON for a user interface: representative with thumbnail, members, keywords
members: the members'' table, if row-level policies or a view decide what the caller sees of it
Its shape is that of docs/cluster_groups.schema.json.';
COMMENT ON FUNCTION clip_duplicates(text, double precision, regclass) IS 'Members of a collection that nearly equal one before them, each with the nearest such, by their keys
threshold: the cosine from which on they do
members: the members'' table, if row-level policies or a view decide what the caller sees of it';
COMMENT ON FUNCTION clip_thumbnail(bytea, integer, text) IS 'Small upright copy of an image file, in its proportions; smaller images keep their size
edge: the longer side in pixels, from 1 to 4096
format: jpeg (quality 85), png or webp (lossless)';
COMMENT ON FUNCTION clip_image_info(bytea) IS 'What the header of an image file says; no pixel is decoded, and no limit of size applies
format: JPEG, PNG, GIF, WebP, BMP, TIFF or ICO
width, height: pixels as stored, before orientation
orientation: EXIF''s, from 1 (upright) to 8; from 5 on the sides are swapped
channels: samples a pixel: 1 grey or palette, 2 grey with alpha, 3 RGB, 4 RGB with alpha or CMYK
frames: of an animation, or pages
bytes: length of the file';
COMMENT ON FUNCTION clip_models() IS 'Models that can be used, and what this connection has loaded of them
path: its directory; dimensions: of its vectors, NULL while unknown
selected: named by clip_search.model
loaded: image_loaded or text_loaded, its towers
images, texts: embedded by this connection';
COMMENT ON FUNCTION clip_check_model(text) IS 'Looks over a model: its files, inputs, outputs, preprocessing, and whether it tells red, green and blue apart
model: a name, or the absolute path of a directory
The last item is the verdict: good, or what is wrong.';
COMMENT ON FUNCTION clip_stats() IS 'What the embedding functions have done, for each model, and how long it took
images, texts: embedded by the model; memo_hits: texts that were remembered instead
errors: calls that failed
runs: of a graph, with one item or a batch; loads: of graphs
load_ms, decode_ms, inference_ms: milliseconds for loading, from image file to input, and in the graphs
total_ms: of all calls
since: when counting began
shared: over all connections (clip_search is in shared_preload_libraries); else of this one';
COMMENT ON FUNCTION clip_reset_stats() IS 'Begins the figures of clip_stats() anew';
COMMENT ON FUNCTION clip_benchmark(text) IS 'How long each step takes here, on made-up photos and texts, with the model loaded anew
model: else clip_search.model
ms_each: milliseconds an item';
COMMENT ON FUNCTION clip_version() IS 'Version of the extension, and of ONNX Runtime once that is loaded';

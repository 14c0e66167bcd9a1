-- What a dump must carry, who may do what, and the documentation that psql shows (\df+, \d+).

SELECT pg_catalog.pg_extension_config_dump('clip_search.collection_setting', '');
SELECT pg_catalog.pg_extension_config_dump('clip_search.cluster_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('clip_search.cluster_sum', '');
SELECT pg_catalog.pg_extension_config_dump('clip_search.cluster_change', '');
SELECT pg_catalog.pg_extension_config_dump('clip_search.cluster_code', '');

-- Everyone may embed, group and read groups. The tables change only through the functions, which run as the owner.
-- It reads any directory that the server may read.
REVOKE ALL ON FUNCTION clip_check_model(text) FROM PUBLIC;
-- They decide what belongs together, for everybody who uses the collection.
REVOKE ALL ON FUNCTION clip_create_collection(text, double precision, integer, text, regclass, text, text, text, text, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION clip_drop_collection(text) FROM PUBLIC;
-- It may be everybody's figures.
REVOKE ALL ON FUNCTION clip_reset_stats() FROM PUBLIC;
GRANT USAGE ON SCHEMA clip_search TO PUBLIC;
GRANT SELECT ON clip_search.collection, clip_search.cluster TO PUBLIC;

-- What the planner expects of them, in place of 1000 rows.
ALTER FUNCTION clip_classify(bytea, text[], text, text) ROWS 10;
ALTER FUNCTION clip_classify(bytea, text[], text[], text) ROWS 10;
ALTER FUNCTION clip_classify(vector, text[], text, text) ROWS 10;
ALTER FUNCTION clip_classify(vector, text[], text[], text) ROWS 10;
ALTER FUNCTION clip_image_info(bytea) ROWS 1;
ALTER FUNCTION clip_diversify(vector, anyarray, vector[], integer, double precision) ROWS 10;

COMMENT ON SCHEMA clip_search IS 'Tables of the extension clip_search';

COMMENT ON VIEW clip_search.collection IS 'Sets of clusters that are kept apart, with their settings; made by clip_create_collection or the first assignment to a name';
COMMENT ON COLUMN clip_search.collection.name IS 'As given to clip_assign_cluster; ''default'' where none was';
COMMENT ON COLUMN clip_search.collection.dimensions IS 'Dimensions of its vectors';
COMMENT ON COLUMN clip_search.collection.threshold IS 'Cosine from which on a vector joins a cluster: its own, else clip_search.cluster_threshold';
COMMENT ON COLUMN clip_search.collection.model IS 'The model whose vectors it holds, if known';
COMMENT ON COLUMN clip_search.collection.members IS 'The table that its members are in';
COMMENT ON COLUMN clip_search.collection.embedding IS 'The column of that table with the embedding';
COMMENT ON COLUMN clip_search.collection.cluster IS 'The column of that table with the cluster''s id';
COMMENT ON COLUMN clip_search.collection.key IS 'The column of that table that names a member';
COMMENT ON COLUMN clip_search.collection.labels IS 'The column of that table with keywords (text[])';
COMMENT ON COLUMN clip_search.collection.image IS 'The column of that table with the image file';
COMMENT ON COLUMN clip_search.collection.created_at IS 'When it was created, if it was';

COMMENT ON VIEW clip_search.cluster IS 'Groups of look-alikes, kept by clip_assign_cluster';
COMMENT ON COLUMN clip_search.cluster.id IS 'What clip_assign_cluster returns';
COMMENT ON COLUMN clip_search.cluster.collection IS 'The collection it belongs to';
COMMENT ON COLUMN clip_search.cluster.centroid IS 'Direction of the mean of its members, length 1';
COMMENT ON COLUMN clip_search.cluster.resultant IS 'Length of the mean of its members, which is their mean cosine to the centroid: 1 if all are equal';
COMMENT ON COLUMN clip_search.cluster.size IS 'Members';
COMMENT ON COLUMN clip_search.cluster.created_at IS 'When it was founded';
COMMENT ON COLUMN clip_search.cluster.updated_at IS 'When a member last came or went';

COMMENT ON TABLE clip_search.collection_setting IS 'Settings of collections, written by clip_create_collection; read them in clip_search.collection';
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
COMMENT ON INDEX clip_search.collection_setting_pkey IS 'Names are unique';
COMMENT ON INDEX clip_search.cluster_sum_cluster_idx IS 'The sums of a cluster';
COMMENT ON INDEX clip_search.cluster_sum_collection_idx IS 'The sums of a collection';
COMMENT ON INDEX clip_search.cluster_sum_recent_idx IS 'Sums without a code';
COMMENT ON INDEX clip_search.cluster_change_cluster_idx IS 'The changes of a cluster';
COMMENT ON INDEX clip_search.cluster_code_collection_idx IS 'The codes of a collection';

COMMENT ON FUNCTION clip_embed_image(bytea) IS 'Embedding of an image file (JPEG, PNG, WebP, GIF, BMP, TIFF, ICO) by the model clip_search.model, length 1';
COMMENT ON FUNCTION clip_embed_image(bytea, text) IS 'Embedding of an image file by the named model, length 1';
COMMENT ON FUNCTION clip_embed_text(text) IS 'Embedding of a text by the model clip_search.model, length 1';
COMMENT ON FUNCTION clip_embed_text(text, text) IS 'Embedding of a text by the named model, length 1';
COMMENT ON FUNCTION clip_embed_images(bytea[]) IS 'Embeddings of image files in batches; NULL elements stay NULL';
COMMENT ON FUNCTION clip_embed_images(bytea[], text) IS 'Embeddings of image files in batches by the named model; NULL elements stay NULL';
COMMENT ON FUNCTION clip_embed_texts(text[]) IS 'Embeddings of texts in batches; NULL elements stay NULL';
COMMENT ON FUNCTION clip_embed_texts(text[], text) IS 'Embeddings of texts in batches by the named model; NULL elements stay NULL';
COMMENT ON FUNCTION clip_classify(bytea, text[], text, text) IS 'Zero-shot classification of an image file: labels with their probabilities, the most probable first, each embedded in the template (clip_search.model where no model is named)';
COMMENT ON FUNCTION clip_classify(bytea, text[], text[], text) IS 'The same by an ensemble of templates';
COMMENT ON FUNCTION clip_classify(vector, text[], text, text) IS 'The same of an embedding that is stored';
COMMENT ON FUNCTION clip_classify(vector, text[], text[], text) IS 'The same of an embedding that is stored, by an ensemble of templates';
COMMENT ON FUNCTION clip_query(text[], double precision[], bytea[], double precision[], vector[], double precision[], text) IS 'Weighted sum of texts, image files and vectors, each as a unit vector, scaled to length 1; negative weights lead away, no weights are 1 each';
COMMENT ON FUNCTION clip_diversify(vector, anyarray, vector[], integer, double precision) IS 'The k best of some candidates by maximal marginal relevance: near the query and, the more so the smaller lambda, unlike each other';
COMMENT ON FUNCTION clip_assign_cluster(vector) IS 'Joins the nearest cluster at cosine >= clip_search.cluster_threshold, else founds one; returns its id';
COMMENT ON FUNCTION clip_assign_cluster(vector, text) IS 'The same within a named collection';
COMMENT ON FUNCTION clip_leave_cluster(bigint, vector) IS 'Takes a member out of its cluster, the last one with the cluster; false if there is no such cluster';
COMMENT ON FUNCTION clip_create_collection(text, double precision, integer, text, regclass, text, text, text, text, text) IS 'Makes a collection of clusters with its threshold, dimensions and model, and says in which table and columns its members are';
COMMENT ON FUNCTION clip_drop_collection(text) IS 'Drops a collection with its clusters; the members'' table stays as it is';
COMMENT ON FUNCTION clip_recluster(text, text) IS 'Groups all members of a collection anew (agglomerative, linkage average or single, cosine); returns what has changed';
COMMENT ON FUNCTION clip_clusters(text, bigint) IS 'Clusters of a collection with at least that many members: representative, mean and lowest cosine to the centroid, keywords';
COMMENT ON FUNCTION clip_cluster_groups(text, bigint) IS 'Clusters of a collection as JSON: representative with thumbnail, members, keywords';
COMMENT ON FUNCTION clip_duplicates(text, double precision) IS 'Members of a collection that are within a strict threshold of one before them, each with the nearest such';
COMMENT ON FUNCTION clip_thumbnail(bytea, integer, text) IS 'Small upright copy of an image file that fits a square: jpeg, png or webp';
COMMENT ON FUNCTION clip_image_info(bytea) IS 'What an image file says of itself, without decoding it: format, width and height as stored, EXIF orientation, channels, frames or pages, bytes';
COMMENT ON FUNCTION clip_models() IS 'Models that can be used, and what this connection has loaded and embedded';
COMMENT ON FUNCTION clip_check_model(text) IS 'Looks over a model, named or by its directory: files, inputs, outputs, preprocessing, and whether it tells colours apart';
COMMENT ON FUNCTION clip_stats() IS 'What the embedding functions have done, for each model: of all connections where shared, else of this one';
COMMENT ON FUNCTION clip_reset_stats() IS 'Begins clip_stats() anew';
COMMENT ON FUNCTION clip_benchmark(text) IS 'Latency of each step on made-up photos and texts, in a connection that has not loaded the model';
COMMENT ON FUNCTION clip_version() IS 'Version of the extension and of the loaded ONNX Runtime';

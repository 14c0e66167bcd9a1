-- What a dump must carry, who may do what, and the documentation that psql shows (\df+, \d+).

SELECT pg_catalog.pg_extension_config_dump('clip_search.collection', '');
SELECT pg_catalog.pg_extension_config_dump('clip_search.cluster', '');
SELECT pg_catalog.pg_extension_config_dump('clip_search.cluster_id_seq', '');

-- Everyone may embed, group and read groups. The tables change only through the functions, which run as the owner.
-- It reads any directory that the server may read.
REVOKE ALL ON FUNCTION clip_check_model(text) FROM PUBLIC;
GRANT USAGE ON SCHEMA clip_search TO PUBLIC;
GRANT SELECT ON clip_search.collection, clip_search.cluster TO PUBLIC;

COMMENT ON SCHEMA clip_search IS 'Tables of the extension clip_search';

COMMENT ON TABLE clip_search.collection IS 'Sets of clusters that are kept apart; made by the first assignment to a name';
COMMENT ON COLUMN clip_search.collection.name IS 'As given to clip_assign_cluster; ''default'' where none was';
COMMENT ON COLUMN clip_search.collection.dimensions IS 'Dimensions of its vectors';
COMMENT ON COLUMN clip_search.collection.clusters IS 'Clusters founded so far';
COMMENT ON COLUMN clip_search.collection.created_at IS 'When the first vector came';

COMMENT ON TABLE clip_search.cluster IS 'Groups of look-alikes, kept by clip_assign_cluster';
COMMENT ON COLUMN clip_search.cluster.id IS 'What clip_assign_cluster returns';
COMMENT ON COLUMN clip_search.cluster.collection IS 'The collection it belongs to';
COMMENT ON COLUMN clip_search.cluster.centroid IS 'Direction of the mean of its members, length 1';
COMMENT ON COLUMN clip_search.cluster.resultant IS 'Length of the mean of its members: 1 if all are equal, less the more they spread';
COMMENT ON COLUMN clip_search.cluster.size IS 'Members assigned';
COMMENT ON COLUMN clip_search.cluster.created_at IS 'When it was founded';
COMMENT ON COLUMN clip_search.cluster.updated_at IS 'When a member last joined';
COMMENT ON INDEX clip_search.cluster_collection_idx IS 'The clusters of a collection';

COMMENT ON FUNCTION clip_embed_image(bytea) IS 'Embedding of an image file (JPEG, PNG, WebP, GIF, BMP, TIFF, ICO) by the model clip_search.model, length 1';
COMMENT ON FUNCTION clip_embed_image(bytea, text) IS 'Embedding of an image file by the named model, length 1';
COMMENT ON FUNCTION clip_embed_text(text) IS 'Embedding of a text by the model clip_search.model, length 1';
COMMENT ON FUNCTION clip_embed_text(text, text) IS 'Embedding of a text by the named model, length 1';
COMMENT ON FUNCTION clip_embed_images(bytea[]) IS 'Embeddings of image files in batches; NULL elements stay NULL';
COMMENT ON FUNCTION clip_embed_images(bytea[], text) IS 'Embeddings of image files in batches by the named model; NULL elements stay NULL';
COMMENT ON FUNCTION clip_embed_texts(text[]) IS 'Embeddings of texts in batches; NULL elements stay NULL';
COMMENT ON FUNCTION clip_embed_texts(text[], text) IS 'Embeddings of texts in batches by the named model; NULL elements stay NULL';
COMMENT ON FUNCTION clip_assign_cluster(vector) IS 'Joins the nearest cluster at cosine >= clip_search.cluster_threshold, else founds one; returns its id';
COMMENT ON FUNCTION clip_assign_cluster(vector, text) IS 'The same within a named collection';
COMMENT ON FUNCTION clip_models() IS 'Models that can be used, and what this connection has loaded and embedded';
COMMENT ON FUNCTION clip_check_model(text) IS 'Looks over a model, named or by its directory: files, inputs, outputs, preprocessing, and whether it tells colours apart';
COMMENT ON FUNCTION clip_version() IS 'Version of the extension and of the loaded ONNX Runtime';

-- Every function: its arguments, result, volatility, strictness, parallel mode, cost and who may call it.
SELECT p.oid::regprocedure AS function, pg_get_function_result(p.oid) AS result,
       p.provolatile AS volatile, p.proisstrict AS strict, p.proparallel AS parallel, p.procost AS cost, p.prosecdef AS definer, p.proconfig AS settings
FROM pg_depend d JOIN pg_proc p ON p.oid = d.objid
WHERE d.classid = 'pg_proc'::regclass AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
  AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'clip_search')
ORDER BY p.oid::regprocedure::text COLLATE "C";

-- Every object has a comment.
SELECT pg_describe_object(classid, objid, objsubid) AS without_comment
FROM pg_depend d
WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e'
  AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'clip_search')
  AND classid IN ('pg_proc'::regclass, 'pg_class'::regclass, 'pg_namespace'::regclass, 'pg_type'::regclass, 'pg_cast'::regclass,
                  'pg_operator'::regclass, 'pg_opclass'::regclass, 'pg_opfamily'::regclass)
  AND NOT EXISTS (SELECT FROM pg_type t WHERE t.oid = objid AND classid = 'pg_type'::regclass AND (t.typrelid <> 0 OR t.typcategory = 'A'))
  AND NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = objid AND classid = 'pg_class'::regclass AND c.relkind = 'S')
  AND obj_description(objid, (SELECT relname FROM pg_class WHERE oid = classid)) IS NULL;
SELECT attrelid::regclass, attname AS without_comment
FROM pg_attribute
WHERE attrelid IN ('clip_search.cluster'::regclass, 'clip_search.collection'::regclass, 'clip_search.watch'::regclass,
                   'clip_search.pending'::regclass, 'clip_search.failure'::regclass) AND attnum > 0
  AND col_description(attrelid, attnum) IS NULL;

-- Settings, which a session knows once it has called a function of the extension.
SELECT clip_version() IS NOT NULL AS loaded;
SELECT name, vartype, unit, context, min_val, max_val, boot_val FROM pg_settings WHERE name LIKE 'clip\_search.%' ORDER BY name;
SET clip_search.nonsense = 1;
SET clip_search.threads = 0;
SET clip_search.cluster_threshold = 1.5;

\c -
SELECT name, dimensions, selected, loaded, images, texts FROM clip_models();
SELECT clip_version() ~ '^clip_search \d+\.\d+\.\d+ \(ONNX Runtime not loaded yet\)$' AS version;
SELECT vector_dims(clip_embed_text('a cat'));
SELECT clip_version() ~ '^clip_search \d+\.\d+\.\d+ \(ONNX Runtime 1\.\d+\.\d+\)$' AS version;
SELECT name, dimensions, selected, loaded, image_loaded, text_loaded, images, texts FROM clip_models();

-- The only column of the primary key, and the columns with embeddings, of table $1; pgvector's types are in
-- schema $2. Without the columns $3.
SELECT (SELECT min(a.attname::text) FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
        WHERE i.indrelid = $1 AND i.indisprimary HAVING count(*) = 1),
       (SELECT array_agg(a.attname::text ORDER BY a.attnum) FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
        WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped AND t.typname IN ('vector', 'halfvec')
          AND t.typnamespace = $2 AND a.attname <> ALL ($3::text[]))

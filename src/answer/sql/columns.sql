-- The only column of the primary key of table $1, and the table's columns with embeddings except the columns $3.
-- pgvector's types are in schema $2.
SELECT (SELECT min(a.attname::text) FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
        WHERE i.indrelid = $1 AND i.indisprimary HAVING count(*) = 1),
       (SELECT array_agg(a.attname::text ORDER BY a.attnum) FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
        WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped AND t.typname IN ('vector', 'halfvec')
          AND t.typnamespace = $2 AND a.attname <> ALL ($3::text[]))

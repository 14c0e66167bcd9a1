SELECT k.names FROM pg_catalog.pg_index i, LATERAL (
        SELECT pg_catalog.array_agg(a.attname::text ORDER BY u.n) AS names, pg_catalog.bool_and(a.attnotnull) AS certain
        FROM pg_catalog.unnest(i.indkey::int2[]) WITH ORDINALITY AS u (attnum, n)
        JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = u.attnum WHERE u.n <= i.indnkeyatts) AS k
    WHERE i.indrelid = $1 AND i.indisunique AND i.indisvalid AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL
        AND k.certain ORDER BY i.indisprimary DESC, i.indisreplident DESC, i.indexrelid

SELECT count(*) FROM {table} AS t
    WHERE t.{cluster} IS NOT NULL AND NOT EXISTS (SELECT FROM unnest($1::bigint[]) AS c (id) WHERE c.id = t.{cluster})

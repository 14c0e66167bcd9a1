SELECT EXISTS (
    SELECT FROM unnest($1::bigint[], $2::bigint[]) AS c (id, size)
    LEFT JOIN (SELECT t.{cluster} AS id, count(*) AS size FROM {table} AS t
               WHERE t.{cluster} IS NOT NULL AND t.{embedding} IS NOT NULL GROUP BY t.{cluster}) AS m ON m.id = c.id
    WHERE c.size <> coalesce(m.size, 0))

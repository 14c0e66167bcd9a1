SELECT pg_catalog.count(*), pg_catalog.count({embedding}),
       pg_catalog.count(*) FILTER (WHERE ({embedding} IS NULL{cluster}) AND ({source}))
FROM {table}

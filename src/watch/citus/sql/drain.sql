WITH noted AS MATERIALIZED (SELECT departed_id AS id FROM {table} LIMIT {most}),
gone AS (DELETE FROM {table} AS d USING noted WHERE d.departed_id = noted.id RETURNING d.departed_cluster, d.departed_embedding)
SELECT departed_cluster, departed_embedding FROM gone

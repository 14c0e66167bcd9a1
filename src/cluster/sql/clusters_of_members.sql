WITH {grouped}
SELECT c.id, c.size, c.centroid, g.keys[1], c.resultant, g.lowest, {words}
FROM cluster c JOIN grouped g ON g.id OPERATOR(pg_catalog.=) c.id
ORDER BY c.size DESC, c.id

(SELECT pg_catalog.array_agg(word ORDER BY here DESC, everywhere, word)
 FROM (SELECT word, here, everywhere FROM word w WHERE w.id OPERATOR(pg_catalog.=) c.id
       ORDER BY here DESC, everywhere, word LIMIT 5) AS best)

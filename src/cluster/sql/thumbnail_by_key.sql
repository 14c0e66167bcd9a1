(SELECT n.image FROM thumbnail n WHERE n.id OPERATOR(pg_catalog.=) c.id)

-- Whether the session, the client or the role has set the list of words, rather than the database or the server.
-- pg_settings has no row of the setting for roles that may not see it.
SELECT EXISTS (
    SELECT FROM pg_catalog.pg_settings s
    WHERE s.name OPERATOR(pg_catalog.=) 'clip_search.words'
        AND s.source OPERATOR(pg_catalog.=) ANY ('{session,client,user,database user}'::pg_catalog.text[]))

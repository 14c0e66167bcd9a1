-- Whether the session, the client or the role has set the list of words, rather than the database or the server. Roles
-- that may not see the setting have no row of it.
SELECT EXISTS (
    SELECT FROM pg_catalog.pg_settings s
    WHERE s.name OPERATOR(pg_catalog.=) 'clip_search.words'
        AND s.source OPERATOR(pg_catalog.=) ANY ('{session,client,user,database user}'::pg_catalog.text[]))

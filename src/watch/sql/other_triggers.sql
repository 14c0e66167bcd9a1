WITH written AS (SELECT c.name, '\mnew\s*\.\s*"?' || pg_catalog.regexp_replace(c.name, '\W', '\\\&', 'g') || '"?\s*:?=' AS pattern
                 FROM unnest(ARRAY[$2, $3]) AS c (name) WHERE c.name IS NOT NULL)
SELECT pg_catalog.quote_ident(t.tgname),
       coalesce('calls ' || (pg_catalog.regexp_match(p.prosrc, '\m(clip_assign_cluster|clip_leave_cluster)\M', 'i'))[1] || '()',
                (SELECT 'writes column "' || w.name || '"' FROM written w WHERE p.prosrc ~* w.pattern LIMIT 1))
    FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
    JOIN pg_catalog.pg_language l ON l.oid = p.prolang
    WHERE t.tgrelid = $1 AND NOT t.tgisinternal AND t.tgenabled <> 'D' AND l.lanname NOT IN ('c', 'internal')
        AND (p.prosrc ~* '\m(clip_assign_cluster|clip_leave_cluster)\M' OR EXISTS (SELECT FROM written w WHERE p.prosrc ~* w.pattern))
    ORDER BY t.tgname

SELECT FROM unnest($2::text[]) AS k (key)
    WHERE NOT EXISTS (SELECT FROM clip_search.watch_failure f WHERE f.watch = $1 AND f.key = k.key::text[])

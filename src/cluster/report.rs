//! What applications read of a collection's clusters and their members.

use clip::{Error, Kind};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::cluster::members::Members;
use crate::pg::error::{SqlResult, report};
use crate::pg::spi::{get, own_schema, spi};
use crate::pg::vector::{self, Vector};

// What follows only reads, by `select` throughout: `update` assigns a transaction id, which a standby can't.

#[pg_extern(stable, strict, parallel_restricted, cost = 10000)]
#[allow(clippy::type_complexity)]
fn clip_clusters(
    collection: &str,
    min_size: default!(i64, "2"),
) -> Result<
    TableIterator<
        'static,
        (
            name!(id, i64),
            name!(size, i64),
            name!(centroid, Vector),
            name!(representative, Option<String>),
            name!(cohesion, f64),
            name!(lowest, Option<f64>),
            name!(labels, Option<Vec<Option<String>>>),
        ),
    >,
    ErrorReport,
> {
    let rows = Spi::connect(|client| {
        let members = Members::find(client, collection)?;
        let query = match &members {
            None => {
                "SELECT id, size, centroid, NULL::text, resultant, NULL::float8, NULL::text[] FROM clip_search.cluster \
                 WHERE collection OPERATOR(pg_catalog.=) $1 AND size OPERATOR(pg_catalog.>=) $2 ORDER BY size DESC, id"
                    .to_owned()
            }
            Some(members) => format!(
                "WITH {} SELECT c.id, c.size, c.centroid, g.keys[1], c.resultant, g.lowest, {} \
                 FROM cluster c JOIN grouped g ON g.id OPERATOR(pg_catalog.=) c.id ORDER BY c.size DESC, c.id",
                members.grouped(),
                members.words("c.id")
            ),
        };
        let rows = client.select(&query, None, &[collection.into(), min_size.into()]).map_err(spi)?;
        let missing = || report(Error::new(Kind::Internal, "a cluster has no id, size or centroid"));
        rows.into_iter()
            .map(|row| {
                Ok((
                    get(&row, 1)?.ok_or_else(missing)?,
                    get(&row, 2)?.ok_or_else(missing)?,
                    get(&row, 3)?.ok_or_else(missing)?,
                    get(&row, 4)?,
                    get(&row, 5)?.ok_or_else(missing)?,
                    get(&row, 6)?,
                    get(&row, 7)?,
                ))
            })
            .collect::<SqlResult<Vec<_>>>()
    })?;
    Ok(TableIterator::new(rows))
}
impl Members {
    /// Common table expressions: `cluster` (the clusters of collection $1 with $2 members or more), `member` (what is in
    /// them) and `grouped`.
    fn grouped(&self) -> String {
        let Self { table, embedding, cluster, key, .. } = self;
        let labels = self.labels.as_ref().map_or("NULL::text[]".to_owned(), |labels| format!("t.{labels}"));
        let schema = vector::schema();
        format!(
            "cluster AS MATERIALIZED (SELECT id, size, centroid, resultant FROM clip_search.cluster \
                 WHERE collection OPERATOR(pg_catalog.=) $1 AND size OPERATOR(pg_catalog.>=) $2), \
             member AS MATERIALIZED (SELECT c.id, t.{key}::text AS key, {labels} AS labels, t.tableoid, t.ctid, \
                 1 OPERATOR(pg_catalog.-) (t.{embedding}::{schema}.vector OPERATOR({schema}.<=>) c.centroid) AS cosine \
                 FROM {table} t JOIN cluster c ON c.id OPERATOR(pg_catalog.=) t.{cluster} WHERE t.{embedding} IS NOT NULL), \
             grouped AS (SELECT id, pg_catalog.array_agg(key ORDER BY cosine DESC, key) AS keys, pg_catalog.min(cosine) AS lowest \
                 FROM member GROUP BY id), \
             word AS (SELECT id, w AS word, pg_catalog.count(*) AS here, \
                 pg_catalog.sum(pg_catalog.count(*)) OVER (PARTITION BY w) AS everywhere \
                 FROM member, pg_catalog.unnest(labels) AS w WHERE w IS NOT NULL GROUP BY id, w)"
        )
    }

    /// The five keywords that most members of a cluster have; of those that are as frequent, the ones that are rarest
    /// elsewhere. NULL without a column of keywords.
    fn words(&self, id: &str) -> String {
        if self.labels.is_none() {
            return "NULL::text[]".to_owned();
        }
        format!(
            "(SELECT pg_catalog.array_agg(word ORDER BY here DESC, everywhere, word) FROM (SELECT word, here, everywhere FROM word w \
              WHERE w.id OPERATOR(pg_catalog.=) {id} ORDER BY here DESC, everywhere, word LIMIT 5) AS best)"
        )
    }
}

#[pg_extern(stable, strict, parallel_restricted, cost = 10000)]
fn clip_cluster_groups(collection: &str, min_size: default!(i64, "2")) -> SqlResult<pgrx::JsonB> {
    Spi::connect(|client| {
        let members = Members::known(client, collection)?;
        let image = match &members.image {
            // The representative is the member nearest the centroid.
            Some(image) => format!(
                "(SELECT pg_catalog.encode({}.clip_thumbnail(t.{image}, 256, 'jpeg'), 'base64') FROM {} t JOIN member m \
                  ON m.tableoid OPERATOR(pg_catalog.=) t.tableoid AND m.ctid OPERATOR(pg_catalog.=) t.ctid \
                  WHERE m.id OPERATOR(pg_catalog.=) c.id ORDER BY m.cosine DESC, m.key LIMIT 1)",
                own_schema(client)?,
                members.table
            ),
            None => "NULL".to_owned(),
        };
        let query = format!(
            "WITH {} SELECT coalesce(pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object('cluster_id', c.id, 'size', c.size, \
                 'cohesion', c.resultant, 'lowest', g.lowest, 'representative', g.keys[1], 'representative_thumbnail', {image}, \
                 'labels', coalesce(pg_catalog.to_jsonb({}), '[]'::jsonb), \
                 'assets', (SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object('id', m.key, 'cosine', m.cosine, \
                     'keywords', coalesce(pg_catalog.to_jsonb(m.labels), '[]'::jsonb)) ORDER BY m.cosine DESC, m.key) \
                     FROM member m WHERE m.id OPERATOR(pg_catalog.=) c.id)) ORDER BY c.size DESC, c.id), '[]'::jsonb) \
             FROM cluster c JOIN grouped g ON g.id OPERATOR(pg_catalog.=) c.id",
            members.grouped(),
            members.words("c.id")
        );
        let rows = client.select(&query, Some(1), &[collection.into(), min_size.into()]).map_err(spi)?;
        let value = rows.first().get::<pgrx::JsonB>(1).map_err(spi)?;
        value.ok_or_else(|| report(Error::new(Kind::Internal, "no groups came back")))
    })
}

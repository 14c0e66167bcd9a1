//! Reports about a collection's clusters and their members.
//!
//! These functions only read, and use `select` throughout: `update` assigns a transaction id, which a standby can't do.

use clip::memory::{self, Reserve};
use clip::{Error, Kind};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use pgrx::spi::SpiTupleTable;

use crate::cluster::access::Privilege;
use crate::cluster::members::Members;
use crate::pg::error::{SqlResult, report};
use crate::pg::regclass::Regclass;
use crate::pg::spi::{get, own_schema, spi};
use crate::pg::text::{Key, Returned, Text, is_utf8};
use crate::pg::user_context::{UserContext, current_role};
use crate::pg::vector::{self, Vector};

/// A row of clip_clusters.
type Found = (i64, i64, Vector, Option<Key>, f64, Option<f64>, Option<Vec<Option<String>>>);

#[pg_extern(stable, parallel_restricted, cost = 10000, name = "clip_clusters")]
#[allow(clippy::type_complexity)]
fn clip_clusters_of(
    collection: Option<Text<'_>>,
    min_size: default!(Option<i64>, "2"),
    members: default!(Option<Regclass>, "NULL"),
) -> Result<
    TableIterator<
        'static,
        (
            name!(id, i64),
            name!(size, i64),
            name!(centroid, Vector),
            name!(representative, Option<Key>),
            name!(cohesion, f64),
            name!(lowest, Option<f64>),
            name!(labels, Option<Vec<Option<String>>>),
        ),
    >,
    ErrorReport,
> {
    let collection = collection.map(Text::str);
    let (Some(collection), Some(min_size)) = (collection, min_size) else { return Ok(TableIterator::new(Vec::new())) };
    let found = Members::find(collection, current_role(), Privilege::Select)?;
    let arguments = [collection.into(), min_size.into()];
    let rows = match &found {
        None => {
            let _user_context = UserContext::of_caller();
            Spi::connect(|client| {
                clusters(client.select(include_str!("sql/clusters.sql"), None, &arguments).map_err(spi)?)
            })?
        }
        Some(found) => found.read(members.map(|Regclass(oid)| oid), |client| {
            let query = format!(
                include_str!("sql/clusters_of_members.sql"),
                grouped = found.grouped(client.name()),
                words = found.words()
            );
            clusters(client.select(&query, None, &arguments)?)
        })?,
    };
    Ok(TableIterator::new(rows))
}

/// The number of clusters for which memory is reserved at a time, and the maximum size of one: a centroid with
/// pgvector's maximum dimensions, and texts.
const AT_ONCE: usize = 64;
const LARGEST: usize = 100_000;

/// The rows that both queries return.
fn clusters(rows: SpiTupleTable<'_>) -> SqlResult<Vec<Found>> {
    let missing = || report(Error::new(Kind::Internal, "a cluster has no id, size or centroid"));
    let (mut found, mut reserve) = (Vec::new(), None);
    for (index, row) in rows.enumerate() {
        if index % AT_ONCE == 0 {
            pgrx::check_for_interrupts!();
            reserve.take().map_or(Ok(()), Reserve::finish).map_err(report)?;
            reserve = Some(Reserve::new(AT_ONCE * LARGEST).map_err(report)?);
        }
        let cluster = (
            get(&row, 1)?.ok_or_else(missing)?,
            get(&row, 2)?.ok_or_else(missing)?,
            get(&row, 3)?.ok_or_else(missing)?,
            get::<Returned>(&row, 4)?.map(|Returned(key)| Key(key)),
            get(&row, 5)?.ok_or_else(missing)?,
            get(&row, 6)?,
            get(&row, 7)?,
        );
        memory::push(&mut found, cluster).map_err(report)?;
    }
    reserve.map_or(Ok(()), Reserve::finish).map_err(report)?;
    Ok(found)
}

/// The declaration in the SQL of 0.2.0, which this library supports until ALTER EXTENSION … UPDATE.
#[pg_extern(sql = false)]
#[allow(clippy::type_complexity)]
fn clip_clusters(
    collection: Text<'_>,
    min_size: i64,
) -> Result<
    TableIterator<
        'static,
        (
            name!(id, i64),
            name!(size, i64),
            name!(centroid, Vector),
            name!(representative, Option<Key>),
            name!(cohesion, f64),
            name!(lowest, Option<f64>),
            name!(labels, Option<Vec<Option<String>>>),
        ),
    >,
    ErrorReport,
> {
    clip_clusters_of(Some(collection), Some(min_size), None)
}

impl Members {
    /// Common table expressions: `cluster` (the clusters of collection $1 with at least $2 members), `member` (their
    /// members), `grouped` and `word`.
    fn grouped(&self, table: &str) -> String {
        format!(
            include_str!("sql/grouped.sql"),
            embedding = self.embedding,
            cluster = self.cluster,
            key = self.key,
            labels = self.keywords(),
            place = if self.is_distributed { "" } else { ", t.tableoid, t.ctid" },
            schema = vector::schema(),
            table = table,
        )
    }

    /// A member's keywords: the labels that a user has given it, or else its tags.
    fn keywords(&self) -> String {
        match (&self.labels, &self.tags) {
            (Some(labels), Some(tags)) if labels != tags => {
                format!(
                    "CASE WHEN pg_catalog.cardinality(t.{labels}) OPERATOR(pg_catalog.>) 0 THEN t.{labels} ELSE t.{tags} END"
                )
            }
            (Some(column), _) | (None, Some(column)) => format!("t.{column}"),
            (None, None) => "NULL::text[]".to_owned(),
        }
    }

    /// The five keywords that most members of cluster c have. Among equally frequent keywords, the ones that are rarest
    /// elsewhere come first. NULL without a column of keywords or tags.
    fn words(&self) -> &'static str {
        match (&self.labels, &self.tags) {
            (None, None) => "NULL::text[]",
            _ => include_str!("sql/words.sql"),
        }
    }
}

#[pg_extern(stable, parallel_restricted, cost = 10000, name = "clip_cluster_groups")]
fn clip_cluster_groups_of(
    collection: Option<Text<'_>>,
    min_size: default!(Option<i64>, "2"),
    members: default!(Option<Regclass>, "NULL"),
) -> SqlResult<Option<pgrx::JsonB>> {
    let collection = collection.map(Text::str);
    let (Some(collection), Some(min_size)) = (collection, min_size) else { return Ok(None) };
    let found = Members::known(collection, current_role(), Privilege::Select)?;
    let own_schema = Spi::connect(own_schema)?;
    found.read(members.map(|Regclass(oid)| oid), |client| {
        let thumbnail = match &found.image {
            // Citus can't plan a subquery on shards for each group, so one subquery finds the thumbnails of all groups
            // by key.
            Some(_) if found.is_distributed => include_str!("sql/thumbnail_by_key.sql").to_owned(),
            Some(image) => format!(
                include_str!("sql/thumbnail.sql"),
                own_schema = own_schema,
                image = image,
                table = client.name()
            ),
            None => "NULL".to_owned(),
        };
        let mut grouped = found.grouped(client.name());
        if let Some(image) = found.image.as_ref().filter(|_| found.is_distributed) {
            grouped.push_str(&format!(
                include_str!("sql/thumbnails.sql"),
                own_schema = own_schema,
                image = image,
                key = found.key,
                table = client.name()
            ));
        }
        let query = format!(
            include_str!("sql/cluster_groups.sql"),
            grouped = grouped,
            thumbnail = thumbnail,
            words = found.words()
        );
        // Keys and keywords that are not UTF-8 are an error of Returned; pgrx's JsonB would panic.
        let query = format!("SELECT g.v, CASE WHEN $3 THEN g.v::pg_catalog.text END FROM ({query}) AS g (v)");
        let rows = client.select(&query, Some(1), &[collection.into(), min_size.into(), (!is_utf8()).into()])?;
        let row = rows.first();
        row.get::<Returned>(2).map_err(spi)?;
        let value = row.get::<pgrx::JsonB>(1).map_err(spi)?;
        value.map(Some).ok_or_else(|| report(Error::new(Kind::Internal, "no groups came back")))
    })
}

/// The declaration in the SQL of 0.2.0, which this library supports until ALTER EXTENSION … UPDATE.
#[pg_extern(sql = false)]
fn clip_cluster_groups(collection: Text<'_>, min_size: i64) -> SqlResult<Option<pgrx::JsonB>> {
    clip_cluster_groups_of(Some(collection), Some(min_size), None)
}

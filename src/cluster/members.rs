//! The table that a collection's members are in: its columns, and the vectors that are read from it.

use std::time::{Duration, Instant};

use clip::clustering::agglomerative::Progress;
use clip::clustering::centroid::normalise;
use clip::clustering::regroup::Rows;
use clip::{Error, Kind};
use pgrx::prelude::*;
use pgrx::spi::{SpiClient, SpiCursor, SpiHeapTupleData, quote_identifier};

use crate::pg::citus;
use crate::pg::error::{SqlResult, report, sql_error};
use crate::pg::spi::{get, spi};
use crate::pg::vector::{self, Vector};

/// Between two messages about the progress.
const REPORT: Duration = Duration::from_secs(5);
/// Rows fetched at a time: 20 MB of 512 dimensions.
pub const FETCH: i64 = 10_000;

/// Whether a table has a column, of a type that will do.
pub fn check_column(
    client: &mut SpiClient<'_>,
    table: pg_sys::Oid,
    column: &str,
    will_do: impl Fn(pg_sys::Oid) -> bool,
    name: &str,
) -> SqlResult<()> {
    let query = "SELECT t.oid, pg_catalog.format_type(t.oid, a.atttypmod), $1::regclass::text FROM pg_catalog.pg_attribute a \
         JOIN pg_catalog.pg_type t ON t.oid = a.atttypid WHERE a.attrelid = $1 AND a.attname = $2 AND a.attnum > 0 AND NOT a.attisdropped";
    let rows = client.update(query, Some(1), &[table.into(), column.into()]).map_err(spi)?;
    let Some(row) = rows.into_iter().next() else {
        return Err(sql_error(
            PgSqlErrorCode::ERRCODE_UNDEFINED_COLUMN,
            format!("the members' table has no column \"{column}\""),
        )
        .set_hint("Name the columns: embedding => …, cluster => …, key => …"));
    };
    match get::<pg_sys::Oid>(&row, 1)? {
        Some(found) if !will_do(found) => Err(sql_error(
            PgSqlErrorCode::ERRCODE_DATATYPE_MISMATCH,
            format!(
                "column \"{column}\" of {} is of type {}, not {name}",
                get::<String>(&row, 3)?.unwrap_or_default(),
                get::<String>(&row, 2)?.unwrap_or_default()
            ),
        )),
        _ => Ok(()),
    }
}

/// The column of a primary key of one column.
pub fn primary_key(client: &mut SpiClient<'_>, table: pg_sys::Oid) -> SqlResult<String> {
    let query = "SELECT a.attname::text FROM pg_catalog.pg_index i \
         JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0] \
         WHERE i.indrelid = $1 AND i.indisprimary AND i.indnkeyatts = 1";
    let rows = client.update(query, Some(1), &[table.into()]).map_err(spi)?;
    let key = rows.into_iter().next().map(|row| get::<String>(&row, 1)).transpose()?.flatten();
    key.ok_or_else(|| {
        report(
            Error::new(Kind::InvalidInput, "the members' table has no primary key of one column")
                .hint("Name a column that tells members apart: key => …"),
        )
    })
}

/// A collection's table of members, quoted for use in queries.
pub struct Members {
    pub threshold: f64,
    pub table: String,
    pub oid: pg_sys::Oid,
    pub embedding: String,
    pub cluster: String,
    pub key: String,
    pub labels: Option<String>,
    pub image: Option<String>,
}

impl Members {
    /// None for a collection that was not told where its members are.
    pub fn find(client: &SpiClient<'_>, collection: &str) -> SqlResult<Option<Self>> {
        let query = "SELECT c.threshold, CASE WHEN r.oid IS NOT NULL THEN pg_catalog.format('%I.%I', n.nspname, r.relname) END, r.oid, \
                    c.embedding::text, c.cluster::text, c.key::text, c.labels::text, c.image::text \
             FROM clip_search.collection c LEFT JOIN pg_catalog.pg_class r ON r.oid OPERATOR(pg_catalog.=) c.members::pg_catalog.oid \
             LEFT JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) r.relnamespace WHERE c.name OPERATOR(pg_catalog.=) $1";
        let rows = client.select(query, Some(1), &[collection.into()]).map_err(spi)?;
        let Some(row) = rows.into_iter().next() else { return Err(unknown(collection)) };
        let quoted = |column| Ok(get::<String>(&row, column)?.map(quote_identifier));
        let (Some(table), Some(oid), Some(embedding), Some(cluster), Some(key)) =
            (get::<String>(&row, 2)?, get::<pg_sys::Oid>(&row, 3)?, quoted(4)?, quoted(5)?, quoted(6)?)
        else {
            return Ok(None);
        };
        let threshold = get::<f64>(&row, 1)?.unwrap_or_default();
        refuse_citus(client, oid)?;
        Ok(Some(Self { threshold, table, oid, embedding, cluster, key, labels: quoted(7)?, image: quoted(8)? }))
    }

    /// The embedding as a vector, be it a halfvec.
    pub fn vector(&self) -> String {
        format!("{}::{}.vector", self.embedding, vector::schema())
    }

    pub fn known(client: &SpiClient<'_>, collection: &str) -> SqlResult<Self> {
        Self::find(client, collection)?.ok_or_else(|| {
            sql_error(
                PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("collection \"{collection}\" does not know the table of its members"),
            )
            .set_hint(format!(
                "SELECT clip_create_collection({}, members => 'your_table');",
                pgrx::spi::quote_literal(collection)
            ))
        })
    }
}

/// Members are told apart, and written, by `ctid`: tables of Citus have the same one in several shards.
pub fn refuse_citus(client: &SpiClient<'_>, table: pg_sys::Oid) -> SqlResult<()> {
    citus::refuse(
        client,
        table,
        "it can't be what a collection knows its members by",
        "Members are read and regrouped by their place in a table of this server.",
        "SELECT clip_create_collection(…) without members; clip_assign_cluster works, and docs/citus.md says how to join \
         clip_search.cluster to the rows.",
    )
}

/// Reads the vectors in the first column of a query's result, and has the other columns visited.
pub fn read(
    mut cursor: SpiCursor<'_>,
    mut visit: impl FnMut(&SpiHeapTupleData<'_>) -> SqlResult<()>,
) -> SqlResult<Rows> {
    let mut rows = Rows::default();
    loop {
        pgrx::check_for_interrupts!();
        let fetched = cursor.fetch(FETCH).map_err(spi)?;
        if fetched.is_empty() {
            return Ok(rows);
        }
        for row in fetched {
            let Some(Vector(mut vector)) = get::<Vector>(&row, 1)? else { continue };
            normalise(&mut vector).map_err(report)?;
            if !rows.push(&vector) {
                return Err(sql_error(
                    PgSqlErrorCode::ERRCODE_DATA_EXCEPTION,
                    format!("different vector dimensions {} and {}", rows.dimensions(), vector.len()),
                ));
            }
            visit(&row)?;
        }
    }
}

/// Lets a cancel act, and tells how far the work is.
pub fn check_interrupts() -> impl FnMut(Progress) {
    let mut last = Instant::now();
    move |progress| {
        pgrx::check_for_interrupts!();
        if last.elapsed() >= REPORT {
            last = Instant::now();
            let percent = 100 * progress.done / progress.total.max(1);
            pgrx::notice!("clip_search: {}, {percent} %", progress.stage);
        }
    }
}

pub fn unknown(collection: &str) -> pgrx::pg_sys::panic::ErrorReport {
    sql_error(PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT, format!("collection \"{collection}\" does not exist"))
        .set_hint("SELECT name FROM clip_search.collection lists those there are.")
}

//! The table that contains a collection's members: its columns, and how its vectors are read.

use std::time::{Duration, Instant};

use clip::clustering::agglomerative::Progress;
use clip::clustering::regroup::Rows;
use clip::vector::l2_normalize;
use clip::{Error, Kind};
use pgrx::prelude::*;
use pgrx::spi::{SpiClient, SpiCursor, SpiHeapTupleData, quote_identifier, quote_literal};

use crate::cluster::access::{Access, Privilege, unknown};
use crate::cluster::tables::Store;
use crate::guc;
use crate::pg::citus::{self, Place};
use crate::pg::error::{SqlResult, different_dimensions, report, sql_error};
use crate::pg::owners_table::{OwnersTable, TableClient};
use crate::pg::spi::{get, spi};
use crate::pg::user_context::{as_extension, current_role, role_name};
use crate::pg::vector::{self, Vector};

/// The time between two progress messages.
const REPORT: Duration = Duration::from_secs(5);
/// The number of rows that are fetched at a time: 20 MB at 512 dimensions.
pub const FETCH: i64 = 10_000;

/// Checks that a table has a column of a suitable type.
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

/// The column of a single-column primary key.
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

/// A collection's members' table, with its columns quoted for use in queries.
pub struct Members {
    pub threshold: f64,
    pub table: OwnersTable,
    pub embedding: String,
    pub cluster: String,
    pub key: String,
    pub labels: Option<String>,
    /// The column of tags that a watch of the table fills. Tags stand in for labels.
    pub tags: Option<String>,
    pub image: Option<String>,
    /// Whether the members are in shards of Citus, which identify them by key instead of location.
    pub is_distributed: bool,
    /// The names of the columns, unquoted.
    columns: Vec<String>,
}

impl Members {
    /// None for a collection without a members' table.
    ///
    /// # Errors
    /// 42501 if the role lacks the privilege on the collection, 42704 if the collection does not exist.
    pub fn find(collection: &str, role: pg_sys::Oid, privilege: Privilege) -> SqlResult<Option<Self>> {
        let access = Access::find(&Store::open_to_read(), collection);
        if !access.exists() {
            citus::refuse_worker("a function for the groups of a collection")?;
            return Err(unknown(collection));
        }
        access.check(role, privilege)?;
        as_extension(|client| {
            let rows = client.select(include_str!("sql/members.sql"), Some(1), &[collection.into()]).map_err(spi)?;
            let Some(row) = rows.into_iter().next() else { return Ok(None) };
            let named = |column| get::<String>(&row, column);
            let (Some(oid), Some(embedding), Some(cluster), Some(key)) =
                (get::<pg_sys::Oid>(&row, 2)?, named(3)?, named(4)?, named(5)?)
            else {
                return Ok(None);
            };
            let (labels, image, tags) = (named(6)?, named(7)?, named(8)?);
            let Some(table) = OwnersTable::find(oid)? else { return Ok(None) };
            let place = citus::place(client, oid)?;
            if !matches!(place, None | Some(Place::Shards(_))) {
                refuse_citus(client, oid)?;
            }
            // The table's owner may have changed before it was locked.
            if access.owner() != table.owner && !access.is_outdated() {
                Access::find(&Store::open_to_read(), collection).check(role, privilege)?;
            }
            let columns =
                [Some(&embedding), Some(&cluster), Some(&key), labels.as_ref(), image.as_ref(), tags.as_ref()];
            let columns: Vec<String> = columns.into_iter().flatten().cloned().collect();
            check_are_there(client, collection, &table, &columns)?;
            Ok(Some(Self {
                threshold: get::<f64>(&row, 1)?.unwrap_or_else(guc::cluster_threshold),
                table,
                embedding: quote_identifier(embedding),
                cluster: quote_identifier(cluster),
                key: quote_identifier(key),
                labels: labels.map(quote_identifier),
                tags: tags.map(quote_identifier),
                image: image.map(quote_identifier),
                is_distributed: place.is_some(),
                columns,
            }))
        })
    }

    pub fn known(collection: &str, role: pg_sys::Oid, privilege: Privilege) -> SqlResult<Self> {
        Self::find(collection, role, privilege)?.ok_or_else(|| {
            sql_error(
                PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("collection \"{collection}\" does not know the table of its members"),
            )
            .set_hint(format!("SELECT clip_create_collection({}, members => 'your_table');", quote_literal(collection)))
        })
    }

    /// An expression for the embedding as a vector, whether the column is a vector or a halfvec.
    pub fn vector(&self) -> String {
        format!("{}::{}.vector", self.embedding, vector::schema())
    }

    /// Runs queries on the table for a caller who may read it: as its owner, or as the caller if the caller has named
    /// the table.
    ///
    /// # Errors
    /// 42501 if the caller may not read the columns, or may not read every row. A policy is code of the table's owner;
    /// naming a collection does not imply consent to run it, and without it the caller would see the rows that the
    /// policy hides.
    pub fn read<T>(
        &self,
        named: Option<pg_sys::Oid>,
        work: impl FnOnce(&mut TableClient<'_, '_>) -> SqlResult<T>,
    ) -> SqlResult<T> {
        let table = &self.table;
        if let Some(named) = named {
            if named != table.oid {
                return Err(sql_error(
                    PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
                    format!("the members of the collection are in {}, not in the table given", table.shown()),
                )
                .set_hint(format!(
                    "members => {}, or leave the argument out; for the rows that a view shows, join it to {} by {}.",
                    quote_literal(table.shown()),
                    table.shown(),
                    self.key
                )));
            }
            return table.as_caller(work);
        }
        let columns: Vec<&str> = self.columns.iter().map(String::as_str).collect();
        if !table.may_read(current_role(), &columns)? {
            return Err(sql_error(
                PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
                format!("permission denied for table {}", table.shown()),
            )
            .set_detail(format!("SELECT on its columns {} is needed.", self.columns.join(", ")))
            .set_hint(format!(
                "Its owner can GRANT SELECT ({}) ON {} TO {}.",
                self.columns.iter().map(quote_identifier).collect::<Vec<_>>().join(", "),
                table.shown(),
                quote_identifier(role_name(current_role()))
            )));
        }
        // A view can depend on current_user, like a policy.
        if table.has_policies_for_caller() || table.kind == pg_sys::RELKIND_VIEW {
            return Err(sql_error(
                PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
                format!("{} decides row by row what {} sees", table.shown(), role_name(current_role())),
            )
            .set_detail("Its row-level security policies, or the view's query, are code of its owner.")
            .set_hint(format!(
                "Name the table to run it and read the rows that it shows: members => {}",
                quote_literal(table.shown())
            )));
        }
        table.as_owner(work)
    }
}

/// # Errors
/// 42703 if a column was renamed or dropped since the collection's settings named it.
fn check_are_there(client: &SpiClient<'_>, collection: &str, table: &OwnersTable, columns: &[String]) -> SqlResult<()> {
    let query = "SELECT c.name FROM pg_catalog.unnest($2) AS c (name) WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_attribute a \
         WHERE a.attrelid OPERATOR(pg_catalog.=) $1 AND a.attname OPERATOR(pg_catalog.=) c.name AND a.attnum OPERATOR(pg_catalog.>) 0 AND NOT a.attisdropped)";
    let rows = client.select(query, Some(1), &[table.oid.into(), columns.to_vec().into()]).map_err(spi)?;
    let Some(gone) = rows.into_iter().next().map(|row| get::<String>(&row, 1)).transpose()?.flatten() else {
        return Ok(());
    };
    let (shown, column) = (table.shown(), quote_identifier(&gone));
    Err(sql_error(
        PgSqlErrorCode::ERRCODE_UNDEFINED_COLUMN,
        format!("column \"{gone}\" of the members of collection \"{collection}\" is not in {shown} any more"),
    )
    .set_detail("It has been renamed or dropped.")
    .set_hint(format!(
        "If it was renamed: ALTER TABLE {shown} RENAME COLUMN … TO {column}; or, where clip_watch keeps the groups, \
         clip_unwatch, then clip_watch with the new name, cluster => … and existing => 'keep'."
    )))
}

/// Refuses tables of Citus. Members are identified and written by `ctid`, and the same `ctid` can occur in several
/// shards.
pub fn refuse_citus(client: &SpiClient<'_>, table: pg_sys::Oid) -> SqlResult<()> {
    citus::refuse(
        client,
        table,
        "it can't be what a collection knows its members by",
        "Members that join and leave on other servers have to be noted there, which clip_watch provides for.",
        "SELECT clip_watch(…, cluster => 'cluster_id') makes a collection with its rows as members (docs/citus.md).",
    )
}

/// Reads the vectors in the first column of a query's result, and passes each row to a visitor.
pub fn read(cursor: SpiCursor<'_>, mut visit: impl FnMut(&SpiHeapTupleData<'_>) -> SqlResult<()>) -> SqlResult<Rows> {
    let mut rows = Rows::default();
    read_each(cursor, |vector, row| {
        if !rows.push(vector).map_err(report)? {
            return Err(different_dimensions(rows.dimensions(), vector.len()));
        }
        visit(row)
    })?;
    Ok(rows)
}

/// Passes each row of a query's result to a visitor, with the vector in its first column, scaled to length 1.
pub fn read_each(
    mut cursor: SpiCursor<'_>,
    mut visit: impl FnMut(&[f32], &SpiHeapTupleData<'_>) -> SqlResult<()>,
) -> SqlResult<()> {
    loop {
        pgrx::check_for_interrupts!();
        let fetched = cursor.fetch(FETCH).map_err(spi)?;
        if fetched.is_empty() {
            return Ok(());
        }
        for row in fetched {
            let Some(Vector(mut vector)) = get::<Vector>(&row, 1)? else { continue };
            l2_normalize(&mut vector).map_err(report)?;
            visit(&vector, &row)?;
        }
    }
}

/// Reports the progress and the estimated remaining time of the stage, and checks for interrupts.
pub fn report_progress() -> impl FnMut(Progress) {
    let mut last = Instant::now();
    let mut stage = ("", 0, last);
    move |progress| {
        pgrx::check_for_interrupts!();
        if progress.stage != stage.0 || progress.done < stage.1 {
            stage = (progress.stage, progress.done, Instant::now());
        }
        if last.elapsed() >= REPORT {
            last = Instant::now();
            let Progress { stage: name, done, total } = progress;
            let percent = 100 * done / total.max(1);
            let left = (total.saturating_sub(done)) as f64 / done.saturating_sub(stage.1) as f64;
            let left = stage.2.elapsed().as_secs_f64() * left;
            let left = if left.is_finite() { format!(", some {} left", duration(left)) } else { String::new() };
            pgrx::notice!("clip_search: {name}, {percent} %{left}");
        }
    }
}

/// A duration as text: "40 s", "3 min".
fn duration(seconds: f64) -> String {
    if seconds < 90.0 { format!("{seconds:.0} s") } else { format!("{:.0} min", seconds / 60.0) }
}

//! Existing group ids in a table's rows when a watch begins to group them.
//!
//! While a table is not watched, its column of clusters and the collection diverge: rows are inserted, updated and
//! deleted, and the column may outlive the collection, for example after DROP EXTENSION.

use std::collections::HashMap;

use clip::{Error, Kind};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use pgrx::spi::{quote_identifier, quote_literal};

use crate::cluster::statements;
use crate::pg::error::{SqlResult, counted, report, sql_error};
use crate::pg::owners_table::TableClient;
use crate::pg::spi::spi;
use crate::pg::user_context::UserContext;
use crate::watch::setting::Watch;

/// Sets ids that are not clusters of the collection to NULL, so that their rows count as pending: the collection may
/// assign the same ids to other groups. `same`: the collection's members were in this table before. The table is
/// locked. Returns whether any id was reset.
pub fn settle_groups(watch: &Watch, same: bool) -> SqlResult<bool> {
    let (Some(collection), Some(cluster)) = (&watch.collection, &watch.cluster) else { return Ok(false) };
    let known: HashMap<i64, i64> = {
        let _user_context = UserContext::of_extension();
        Spi::connect_mut(statements::sizes(collection))?
    };
    let (ids, sizes): (Vec<i64>, Vec<i64>) = known.into_iter().unzip();
    let column = quote_identifier(cluster);
    let (cleared, differ) = watch.as_owner(|client| {
        let cleared = clear(client, watch, &column, &ids)?;
        if !same || ids.is_empty() {
            return Ok((cleared, false));
        }
        let query = format!(
            include_str!("sql/sizes_differ.sql"),
            table = watch.table,
            cluster = column,
            embedding = quote_identifier(&watch.embedding)
        );
        let rows = client.update(&query, Some(1), &[ids.into(), sizes.into()])?;
        Ok((cleared, rows.first().get::<bool>(1).map_err(spi)?.unwrap_or_default()))
    })?;
    if cleared > 0 {
        let table = watch.name();
        notice(
            Error::new(
                Kind::InvalidInput,
                format!(
                    "{} of {table} {} that collection \"{collection}\" does not have",
                    counted(cleared, "row"),
                    if cleared == 1 { "names a cluster" } else { "name clusters" }
                ),
            )
            .detail(match cleared {
                1 => format!("Its column \"{cluster}\" is set to NULL, so it counts as pending."),
                _ => format!("Their column \"{cluster}\" is set to NULL, so they count as pending."),
            })
            .hint(match (watch.queued, if cleared == 1 { "it" } else { "them" }) {
                (true, them) => format!("The background worker, or clip_backfill, groups {them}."),
                (false, them) => format!("CALL clip_backfill({}) groups {them}.", quote_literal(table)),
            }),
        );
    }
    if differ {
        let what = format!(
            "clusters of collection \"{collection}\" may count rows that changed while the table was not watched"
        );
        let way_out = format!("SELECT * FROM clip_recluster({});", quote_literal(collection));
        notice(Error::new(Kind::InvalidInput, what).hint(way_out));
    }
    Ok(cleared > 0)
}

fn notice(error: Error) {
    report(error).report(PgLogLevel::NOTICE);
}

/// Returns the number of rows with a cluster that is not among `ids`.
fn clear(client: &mut TableClient<'_, '_>, watch: &Watch, column: &str, ids: &[i64]) -> SqlResult<i64> {
    let query = format!(include_str!("sql/strange_groups.sql"), table = watch.table, cluster = column);
    let count = |client: &mut TableClient<'_, '_>| {
        let rows = client.update(&query, Some(1), &[ids.to_vec().into()])?;
        Ok::<_, ErrorReport>(rows.first().get::<i64>(1).map_err(spi)?.unwrap_or_default())
    };
    let strange = count(client)?;
    if strange == 0 {
        return Ok(0);
    }
    let clear = format!(include_str!("sql/clear_groups.sql"), table = watch.table, cluster = column);
    client.update(&clear, None, &[ids.to_vec().into()])?;
    match count(client)? {
        0 => Ok(strange),
        left => Err(sql_error(
            PgSqlErrorCode::ERRCODE_TRIGGERED_DATA_CHANGE_VIOLATION,
            format!("{left} of {} could not be taken out of unknown clusters", counted(strange, "row")),
        )
        .set_detail(format!("A trigger, a rule or a policy of {} keeps its rows from being updated.", watch.name()))
        .set_hint(format!("Set column {column} to NULL where it names no cluster of the collection."))),
    }
}

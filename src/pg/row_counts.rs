//! Counts of a table's rows, for a caller who may read them all and does not run its owner's code.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use pgrx::spi::quote_identifier;

use crate::pg::error::SqlResult;
use crate::pg::owners_table::OwnersTable;
use crate::pg::regclass::Regclass;
use crate::pg::spi::{get, spi};
use crate::pg::subtransaction::attempt;
use crate::pg::user_context::current_role;

type Counts = (Option<i64>, Option<i64>, Option<i64>);

#[pg_schema]
pub mod clip_search {
    use super::*;

    /// Counts, for clip_search.watch, as the table's owner: planning a query evaluates what the owner has put into index
    /// expressions. NULL where the caller may not read the table, or a policy decides what the caller sees.
    #[pg_extern(stable, parallel_unsafe, cost = 100000)]
    #[allow(clippy::type_complexity)]
    fn count_rows(
        relation: Option<Regclass>,
        sources: Option<Vec<Option<String>>>,
        embedding: Option<&str>,
        cluster: Option<&str>,
    ) -> Result<
        TableIterator<'static, (name!(rows, Option<i64>), name!(embedded, Option<i64>), name!(open, Option<i64>))>,
        ErrorReport,
    > {
        let none = (None, None, None);
        let (Some(Regclass(oid)), Some(sources), Some(embedding)) = (relation, sources, embedding) else {
            return Ok(TableIterator::once(none));
        };
        let sources: Vec<String> = sources.into_iter().flatten().collect();
        // Whatever the owner's code raises is no error of the view's, which shows other tables as well. A cancel is
        // passed on.
        Ok(TableIterator::once(attempt(|| count(oid, &sources, embedding, cluster)).unwrap_or(none)))
    }
}

fn count(oid: pg_sys::Oid, sources: &[String], embedding: &str, cluster: Option<&str>) -> SqlResult<Counts> {
    const NONE: Counts = (None, None, None);
    // Before the lock: a role that may not read the table holds up nobody.
    if sources.is_empty() || !may_select(oid)? {
        return Ok(NONE);
    }
    let Some(table) = OwnersTable::find(oid)? else { return Ok(NONE) };
    let is_table = [pg_sys::RELKIND_RELATION, pg_sys::RELKIND_PARTITIONED_TABLE].contains(&table.kind);
    if !is_table || !table.may_read(current_role(), &[])? || table.has_policies_for_caller() {
        return Ok(NONE);
    }
    let only = if table.kind == pg_sys::RELKIND_PARTITIONED_TABLE { "" } else { "ONLY " };
    let embedding = quote_identifier(embedding);
    let cluster = cluster.map(|cluster| format!(" OR {} IS NULL", quote_identifier(cluster))).unwrap_or_default();
    let source: Vec<String> =
        sources.iter().map(|source| format!("{} IS NOT NULL", quote_identifier(source))).collect();
    table.as_owner(|table| {
        let query = format!(
            include_str!("sql/count_rows.sql"),
            embedding = embedding,
            cluster = cluster,
            source = source.join(" OR "),
            table = format_args!("{only}{table}")
        );
        Spi::connect(|client| {
            let rows = client.select(&query, Some(1), &[]).map_err(spi)?;
            rows.into_iter().next().map_or(Ok(NONE), |row| Ok((get(&row, 1)?, get(&row, 2)?, get(&row, 3)?)))
        })
    })
}

fn may_select(oid: pg_sys::Oid) -> SqlResult<bool> {
    Spi::connect(|client| {
        let query = "SELECT pg_catalog.has_table_privilege($1, 'SELECT')";
        Ok(client
            .select(query, Some(1), &[oid.into()])
            .map_err(spi)?
            .first()
            .get::<bool>(1)
            .map_err(spi)?
            .unwrap_or(false))
    })
}

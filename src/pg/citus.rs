//! Tables of Citus, whose rows are in shards on several servers. The extension recognises Citus by its catalogue and
//! doesn't depend on it.
#![allow(unsafe_code)]

use pgrx::prelude::*;
use pgrx::spi::SpiClient;

use crate::pg::error::{SqlResult, sql_error};
use crate::pg::spi::{get, spi};

/// Refuses tables of Citus in functions that need the rows on this server.
pub fn refuse(client: &SpiClient<'_>, table: pg_sys::Oid, what: &str, detail: &str, hint: &str) -> SqlResult<()> {
    let catalogue = "SELECT 1 WHERE pg_catalog.to_regclass('pg_catalog.pg_dist_partition') IS NOT NULL";
    if client.select(catalogue, Some(1), &[]).map_err(spi)?.is_empty() {
        return Ok(());
    }
    let query = "SELECT pg_catalog.format('%I.%I', n.nspname, c.relname) FROM pg_catalog.pg_dist_partition AS d \
         JOIN pg_catalog.pg_class AS c ON c.oid OPERATOR(pg_catalog.=) d.logicalrelid::pg_catalog.oid \
         JOIN pg_catalog.pg_namespace AS n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace WHERE c.oid OPERATOR(pg_catalog.=) $1";
    let rows = client.select(query, Some(1), &[table.into()]).map_err(spi)?;
    let Some(row) = rows.into_iter().next() else { return Ok(()) };
    let name = get::<String>(&row, 1)?.unwrap_or_default();
    Err(sql_error(PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED, format!("{name} is a table of Citus, so {what}"))
        .set_detail(detail)
        .set_hint(hint))
}

/// Refuses to run on a worker of Citus: each worker would have its own groups, with the same ids as other workers'
/// groups. A function that a query on a distributed table calls may run on any worker.
pub fn refuse_worker(function: &str) -> SqlResult<()> {
    // SAFETY: a look-up in the system cache, with a name that ends in NUL.
    let catalogue =
        unsafe { pg_sys::get_relname_relid(c"pg_dist_local_group".as_ptr(), pg_sys::PG_CATALOG_NAMESPACE.into()) };
    if catalogue == pg_sys::Oid::INVALID {
        return Ok(());
    }
    let worker = Spi::connect(|client| {
        let query = "SELECT 1 FROM pg_catalog.pg_dist_local_group WHERE groupid OPERATOR(pg_catalog.>) 0";
        Ok::<_, pg_sys::panic::ErrorReport>(!client.select(query, Some(1), &[]).map_err(spi)?.is_empty())
    })?;
    if !worker {
        return Ok(());
    }
    Err(sql_error(PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED, format!("{function} was called on a worker of Citus"))
        .set_detail("Groups are kept on the coordinator; those of a worker would miss the photos of the others.")
        .set_hint("Have it evaluated on the coordinator: in VALUES, or over a materialized CTE (docs/citus.md)."))
}

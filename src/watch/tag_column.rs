//! clip_watch's work on the column of tags: checks or adds it, and stores the setting.

use clip::{Error, Kind};
use pgrx::prelude::*;
use pgrx::spi::{SpiClient, quote_identifier};

use crate::pg::catalog::{Column, Table};
use crate::pg::error::{SqlResult, report, sql_error, with_sqlstate};
use crate::pg::spi::spi;
use crate::pg::user_context::UserContext;
use crate::watch::arguments::{Arguments, Plan, check_nulls};
use crate::watch::columns::alter;
use crate::watch::setting::Watch;
use crate::watch::tags;

/// Checks the column, or adds it and returns its name.
pub fn settle_column(client: &mut SpiClient<'_>, table: &Table, plan: &Plan) -> SqlResult<Option<String>> {
    let Some(tags) = &plan.tags else { return Ok(None) };
    if plan.key.contains(tags) {
        return Err(report(
            Error::new(Kind::InvalidInput, format!("column \"{tags}\" of {} is part of its key", table.name))
                .detail("It is overwritten with each row's tags.")
                .hint("Name another; one that is not there is made."),
        ));
    }
    match table.column(client, tags)? {
        Some(column) => {
            check_type(table, tags, &column)?;
            check_nulls(client, table, tags, &column, plan)?;
            Ok(None)
        }
        None => {
            if tags.len() >= pg_sys::NAMEDATALEN as usize {
                let what = format!("column name \"{tags}\" has {} bytes", tags.len());
                return Err(sql_error(PgSqlErrorCode::ERRCODE_NAME_TOO_LONG, what)
                    .set_detail("PostgreSQL's names have 63 at most."));
            }
            alter(client, table, &format!("ADD COLUMN {} text[]", quote_identifier(tags)))?;
            Ok(Some(tags.clone()))
        }
    }
}

fn check_type(table: &Table, tags: &str, column: &Column) -> SqlResult<()> {
    if column.kind == pg_sys::TEXTARRAYOID && !column.generated {
        return Ok(());
    }
    let error = Error::new(
        Kind::InvalidInput,
        format!("column \"{tags}\" of {} is of type {}, not a plain text[]", table.name, column.shown),
    );
    Err(with_sqlstate(
        PgSqlErrorCode::ERRCODE_DATATYPE_MISMATCH,
        error.hint("Name another; one that is not there is made."),
    ))
}

/// Stores the setting. The caller has the extension's privileges.
pub fn store(client: &mut SpiClient<'_>, id: i64, plan: &Plan) -> SqlResult<()> {
    let known = plan.existing.as_ref().and_then(|known| known.tags.as_deref());
    if known == plan.tags.as_deref() {
        return Ok(());
    }
    let query = "UPDATE clip_search.watch_setting SET tags = $2 WHERE id = $1";
    client.update(query, None, &[id.into(), plan.tags.as_deref().into()]).map(drop).map_err(spi)
}

/// Refuses a column of tags that another watch uses, or that contains values, unless the caller agrees to overwrite
/// them.
pub fn check_contents(watch: &Watch, plan: &Plan, arguments: &Arguments<'_>, added: &[String]) -> SqlResult<()> {
    let known = plan.existing.as_ref().and_then(|known| known.tags.as_deref());
    let Some(column) = watch.tags.as_deref().filter(|tags| known != Some(*tags)) else { return Ok(()) };
    if watch.replaces.is_none() {
        tags::warn_of_no_cache();
    }
    let others = {
        let _user_context = UserContext::of_extension();
        let condition = "w.relation::oid = $1 AND w.id <> $2 AND $3 IN (w.embedding, w.cluster, w.image, w.text, pg_catalog.to_jsonb(w) ->> 'tags')";
        Spi::connect_mut(|client| {
            Watch::find(client, condition, &[watch.relation.into(), watch.id.into(), column.into()])
        })?
    };
    if let Some(other) = others.first() {
        return Err(report(
            Error::new(
                Kind::InvalidInput,
                format!(
                    "column \"{column}\" of {} belongs to the watch of column \"{}\"",
                    watch.name(),
                    other.embedding
                ),
            )
            .hint("Name another; one that is not there is made."),
        ));
    }
    if arguments.existing.is_some() || added.iter().any(|name| name == column) {
        return Ok(());
    }
    let is_used = watch.as_owner(|client| {
        let query = format!("SELECT 1 FROM {} WHERE {} IS NOT NULL", watch.table, quote_identifier(column));
        Ok(!client.update(&query, Some(1), &[])?.is_empty())
    })?;
    if !is_used {
        return Ok(());
    }
    Err(sql_error(
        PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
        format!("column \"{column}\" of {} contains values already", watch.name()),
    )
    .set_detail("Each is overwritten when its row is embedded.")
    .set_hint(format!(
        "Name another column; or say existing => 'keep', to keep them until then; or UPDATE {} SET {} = NULL first.",
        watch.name(),
        quote_identifier(column)
    )))
}

/// Reports that a column is no longer filled with tags.
pub fn tell_of_reset(plan: &Plan, table: &Table) {
    let known = plan.existing.as_ref().and_then(|known| known.tags.as_deref());
    if let (Some(tags), None) = (known, &plan.tags) {
        let hint = format!("ALTER TABLE {} DROP COLUMN {}; drops it.", table.name, quote_identifier(tags));
        report(
            Error::new(Kind::InvalidInput, format!("rows of {} get no tags any more", table.name))
                .detail(format!("Column \"{tags}\" stays as it is."))
                .hint(hint),
        )
        .report(PgLogLevel::NOTICE);
    }
}

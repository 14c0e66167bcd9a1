//! Queries for a watched column, embedded by the column's model: searches need no setting, and continue to work after
//! clip_reembed changes the model.

use pgrx::prelude::*;

use crate::model::loaded;
use crate::pg::catalog::qualified_name;
use crate::pg::error::{SqlResult, given, no_table, sql_error};
use crate::pg::regclass::Regclass;
use crate::pg::spi::spi;
use crate::pg::text::Text;
use crate::pg::user_context::UserContext;
use crate::pg::vector::Vector;
use crate::watch::setting::{Watch, table_of};

#[pg_extern(stable, parallel_restricted, cost = 10000)]
fn clip_embed_text_for(
    relation: Option<Regclass>,
    query: Option<Text<'_>>,
    embedding: default!(Option<Text<'_>>, "NULL"),
) -> SqlResult<Option<Vector>> {
    let embedding = embedding.map(Text::str);
    let model = model_of(table_of(relation)?, embedding)?;
    let Some(Text(query)) = query else { return Ok(None) };
    Ok(loaded::embed_texts(&model, &[Some(query)])?.pop().flatten())
}

#[pg_extern(stable, parallel_restricted, cost = 100000)]
fn clip_embed_image_for(
    relation: Option<Regclass>,
    query: Option<&[u8]>,
    embedding: default!(Option<Text<'_>>, "NULL"),
) -> SqlResult<Option<Vector>> {
    let embedding = embedding.map(Text::str);
    let model = model_of(table_of(relation)?, embedding)?;
    let Some(query) = query else { return Ok(None) };
    Ok(loaded::embed_images(&model, &[Some(query)])?.pop().flatten())
}

/// The model of a table's watched column, for a role that may read the table.
fn model_of(relation: pg_sys::Oid, embedding: Option<&str>) -> SqlResult<String> {
    // `Table::describe` is unsuitable: its statement may write, which a standby refuses.
    let table = qualified_name(relation).ok_or_else(|| no_table(relation))?;
    let may_read = Spi::connect(|client| {
        let query =
            "SELECT pg_catalog.has_table_privilege($1, 'SELECT') OR pg_catalog.has_any_column_privilege($1, 'SELECT')";
        client.select(query, Some(1), &[relation.into()]).map_err(spi)?.first().get::<bool>(1).map_err(spi)
    })?;
    if may_read != Some(true) {
        return Err(sql_error(
            PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
            format!("permission denied for table {table}"),
        )
        .set_hint(format!("Its owner can GRANT SELECT ON {table}.")));
    }
    let _user_context = UserContext::of_extension();
    let found = Spi::connect(|client| {
        // A partition has its parent's watch.
        let query = include_str!("sql/model_of.sql");
        let rows = client.select(query, None, &[relation.into(), embedding.into()]).map_err(spi)?;
        rows.map(|row| given("model", row.get::<String>(1).map_err(spi)?)).collect::<SqlResult<Vec<String>>>()
    })?;
    match found.as_slice() {
        [model] => Ok(model.clone()),
        [] => Err(Watch::none_of(&table, embedding)),
        _ => Err(sql_error(
            PgSqlErrorCode::ERRCODE_AMBIGUOUS_PARAMETER,
            format!("{} columns of the table are watched", found.len()),
        )
        .set_hint("Say which: embedding => …")),
    }
}

//! The checks of clip_watch: it refuses tables and columns that can't be watched, and changes that a watch doesn't
//! allow.

use clip::{Error, Kind};
use pgrx::prelude::*;
use pgrx::spi::{SpiClient, quote_identifier, quote_literal};

use crate::pg::catalog::{Column, Table};
use crate::pg::error::{SqlResult, different_dimensions, report, sql_error, with_sqlstate};
use crate::pg::spi::{get, spi};
use crate::pg::text::{non_utf8_encoding, non_utf8_name};
use crate::pg::user_context::{UserContext, as_extension};
use crate::pg::vector_column::Storage;
use crate::watch::setting::{Watch, check_place};

pub fn check_table(table: &Table, queued: bool) -> SqlResult<()> {
    table.check_owner()?;
    check_place(table)?;
    let refuse = |code, what: &str| Err(sql_error(code, format!("{} {what}", table.name)));
    if table.kind != "r" && table.kind != "p" {
        return refuse(PgSqlErrorCode::ERRCODE_WRONG_OBJECT_TYPE, "is not a table, so it can't be watched");
    }
    if non_utf8_encoding().is_some() && has_non_utf8_column(table)? {
        return Err(report(non_utf8_name("column")));
    }
    if table.persistence == "t" {
        return refuse(
            PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
            "is a temporary table, and a watch outlives the session",
        );
    }
    if queued && table.forces_policies {
        return Err(sql_error(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!("{} forces its policies on its owner", table.name),
        )
        .set_detail("The background worker reads and writes rows with the owner's rights, and must see them all.")
        .set_hint("ALTER TABLE … NO FORCE ROW LEVEL SECURITY, an owner with BYPASSRLS, or mode => 'immediate'."));
    }
    Ok(())
}

/// Whether a column has a non-ASCII name in a database whose encoding is not UTF-8.
fn has_non_utf8_column(table: &Table) -> SqlResult<bool> {
    let _user_context = UserContext::of_caller();
    Spi::connect_mut(|client| {
        let query = "SELECT 1 FROM pg_catalog.pg_attribute a WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped \
             AND a.attname::text ~ E'[^\\x01-\\x7f]'";
        Ok(!client.update(query, Some(1), &[table.oid.into()]).map_err(spi)?.is_empty())
    })
}

/// The columns of the primary key, or else of another key that identifies rows permanently.
pub fn key(client: &mut SpiClient<'_>, table: &Table) -> SqlResult<Vec<String>> {
    let query = include_str!("sql/unique_key.sql");
    let rows = client.update(query, Some(1), &[table.oid.into()]).map_err(spi)?;
    let key = rows.into_iter().next().map(|row| get::<Vec<Option<String>>>(&row, 1)).transpose()?.flatten();
    let key: Vec<String> = key.unwrap_or_default().into_iter().flatten().collect();
    if key.is_empty() {
        let query =
            "SELECT 1 FROM pg_catalog.pg_index i WHERE i.indrelid = $1 AND i.indisprimary AND NOT i.indimmediate";
        let deferrable = !client.update(query, Some(1), &[table.oid.into()]).map_err(spi)?.is_empty();
        let (what, why, way_out) = if deferrable {
            (
                format!("the primary key of {} is deferrable", table.name),
                "Rows that are yet to be embedded, or could not be, are noted by their key; two may have one for a while.",
                format!("Recreate it without DEFERRABLE, or a unique index on NOT NULL columns of {}.", table.name),
            )
        } else {
            (
                format!("{} has no primary key", table.name),
                "Rows that are yet to be embedded, or could not be, are noted by their key.",
                format!("ALTER TABLE {} ADD PRIMARY KEY (…), or a unique index on NOT NULL columns.", table.name),
            )
        };
        return Err(sql_error(PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE, what)
            .set_detail(why)
            .set_hint(way_out));
    }
    Ok(key)
}

/// The source columns: of images, and of texts.
pub fn sources(
    client: &mut SpiClient<'_>,
    table: &Table,
    source: &str,
    text_source: Option<&str>,
) -> SqlResult<(Option<String>, Option<String>)> {
    let mut kinds = Vec::new();
    for name in [Some(source), text_source].into_iter().flatten() {
        let column = table.known_column(client, name)?;
        if column.generated {
            return Err(sql_error(
                PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
                format!("column \"{name}\" of {} is generated", table.name),
            )
            .set_detail("PostgreSQL computes it after the trigger that would embed it.")
            .set_hint("Watch the column that it is made of, or have a trigger of your own make it."));
        }
        kinds.push(match column.base {
            pg_sys::BYTEAOID => true,
            pg_sys::TEXTOID | pg_sys::VARCHAROID => {
                if let Some(encoding) = non_utf8_encoding() {
                    return Err(report(
                        Error::new(
                            Kind::Unsupported,
                            format!("texts of a database of encoding {encoding} can't be embedded"),
                        )
                        .detail("They are read as UTF-8.")
                        .hint("Use a database of encoding UTF8."),
                    ));
                }
                false
            }
            _ => {
                return Err(sql_error(
                    PgSqlErrorCode::ERRCODE_DATATYPE_MISMATCH,
                    format!("column \"{name}\" of {} is of type {}, not bytea or text", table.name, column.shown),
                ));
            }
        });
    }
    match (kinds.as_slice(), text_source) {
        ([true], _) => Ok((Some(source.to_owned()), None)),
        ([false], _) => Ok((None, Some(source.to_owned()))),
        ([true, false], Some(text)) => Ok((Some(source.to_owned()), Some(text.to_owned()))),
        _ => Err(sql_error(PgSqlErrorCode::ERRCODE_DATATYPE_MISMATCH, "two sources are an image (bytea) and a text")
            .set_hint("source => the column with images, text_source => the one with texts")),
    }
}

pub fn existing(client: &mut SpiClient<'_>, oid: pg_sys::Oid, embedding: &str) -> SqlResult<Option<Watch>> {
    let _user_context = UserContext::of_extension();
    let condition = "w.embedding = $2 AND (w.relation::oid = $1 OR w.relation IN (SELECT pg_catalog.pg_partition_ancestors($1::oid) \
         UNION SELECT relid FROM pg_catalog.pg_partition_tree($1::oid)))";
    let mut found = Watch::find(client, condition, &[oid.into(), embedding.into()])?;
    if let Some(other) = found.iter().find(|watch| watch.relation != oid) {
        return Err(sql_error(
            PgSqlErrorCode::ERRCODE_DUPLICATE_OBJECT,
            format!("column \"{embedding}\" is watched by {} already", other.name()),
        )
        .set_hint("A partitioned table is watched as a whole, or partition by partition."));
    }
    Ok(found.pop())
}

/// Refuses the call if a column of the watch seems to have been renamed: a new column in its place would be empty, and
/// the groups would be lost.
pub fn check_not_renamed(client: &mut SpiClient<'_>, table: &Table, known: &Watch) -> SqlResult<()> {
    let wanted = [
        (Some(&known.embedding), vec!["vector".to_owned(), "halfvec".to_owned()], true),
        // Other bigint columns are common, so a renamed one is certain only if no column of the table was dropped.
        (known.cluster.as_ref(), vec!["int8".to_owned()], false),
    ];
    for (column, kinds, even_if_dropped) in wanted {
        let Some(column) = column else { continue };
        if table.column(client, column)?.is_some() {
            continue;
        }
        let query = include_str!("sql/renamed.sql");
        let arguments = [table.oid.into(), kinds.into(), even_if_dropped.into(), known.key.clone().into()];
        let rows = client.update(query, None, &arguments).map_err(spi)?;
        let found = rows.map(|row| Ok(get::<String>(&row, 1)?.unwrap_or_default())).collect::<SqlResult<Vec<_>>>()?;
        let taken = as_extension(|client| Watch::find(client, "w.relation::oid = $1", &[table.oid.into()]))?;
        let is_taken =
            |name: &String| taken.iter().any(|watch| watch.embedding == *name || watch.cluster.as_ref() == Some(name));
        let found: Vec<String> = found.into_iter().filter(|name| !is_taken(name)).collect();
        let Some(first) = found.first() else { continue };
        let name = quote_literal(&table.name);
        let renamed = |known: &str| quote_literal(if known == column { first } else { known });
        let source = known.image.as_deref().or(known.text.as_deref()).unwrap_or_default();
        let cluster = known.cluster.as_deref().map(|cluster| format!("cluster => {}, ", renamed(cluster)));
        let shown: Vec<String> = found.iter().map(|name| format!("\"{name}\"")).collect();
        return Err(sql_error(
            PgSqlErrorCode::ERRCODE_UNDEFINED_COLUMN,
            format!("watched table {} has no column \"{column}\"", table.name),
        )
        .set_detail(format!("It may have been renamed: {} is of its type, and not watched.", shown.join(", ")))
        .set_hint(format!(
            "SELECT clip_unwatch({name}, {}); SELECT clip_watch({name}, {}, embedding => {}, {}existing => 'keep'); goes on \
             with column {first} and the groups. If the column was dropped, the second call without it makes another.",
            quote_literal(&known.embedding),
            quote_literal(source),
            renamed(&known.embedding),
            cluster.unwrap_or_default()
        )));
    }
    Ok(())
}

/// Refuses a column of clusters that is part of the key, or that another watch writes.
pub fn check_cluster(table: &Table, embedding: &str, cluster: &str, key: &[String]) -> SqlResult<()> {
    let refuse = |what: String| {
        Err(report(
            Error::new(Kind::InvalidInput, format!("column \"{cluster}\" of {} {what}", table.name))
                .detail("It is overwritten with the id of each row's cluster.")
                .hint("Name another; one that is not there is made."),
        ))
    };
    if key.iter().any(|column| column == cluster) {
        return refuse("is part of its key".to_owned());
    }
    let others = {
        let _user_context = UserContext::of_extension();
        let condition = "w.relation::oid = $1 AND w.embedding <> $2 AND w.cluster = $3";
        Spi::connect_mut(|client| {
            Watch::find(client, condition, &[table.oid.into(), embedding.into(), cluster.into()])
        })?
    };
    match others.first() {
        Some(other) => refuse(format!("has the clusters of column \"{}\" already", other.embedding)),
        None => Ok(()),
    }
}

pub fn check_embedding(table: &Table, name: &str, column: &Column, dimensions: usize) -> SqlResult<()> {
    if Storage::of(column.kind).is_none() || column.generated || column.identity {
        let error = Error::new(
            Kind::InvalidInput,
            format!("column \"{name}\" of {} is of type {}, not a plain vector or halfvec", table.name, column.shown),
        );
        let error = match Storage::of(column.kind) {
            Some(_) if column.generated => error.hint(format!(
                "ALTER TABLE {} ALTER COLUMN {} DROP EXPRESSION, then clip_watch(…, existing => 'keep').",
                table.name,
                quote_identifier(name)
            )),
            None if Storage::of(column.base).is_some() => {
                error.detail("A domain's checks would run for every embedding that is written.").hint(format!(
                    "ALTER TABLE {} ALTER COLUMN {} TYPE vector({dimensions}).",
                    table.name,
                    quote_identifier(name)
                ))
            }
            _ => error,
        };
        return Err(with_sqlstate(PgSqlErrorCode::ERRCODE_DATATYPE_MISMATCH, error));
    }
    if column.modifier != -1 && column.modifier as usize != dimensions {
        return Err(different_dimensions(column.modifier, dimensions)
            .set_detail(format!("Column \"{name}\" of {} is of type {}.", table.name, column.shown)));
    }
    Ok(())
}

//! Moves a watched column to another model while the old embeddings remain in use.
//!
//! A second column, with its own cluster column and collection, is watched beside the first, and filled. When no row is
//! missing, one transaction swaps the two; it renames the columns and copies nothing (`swap`).

use clip::{Error, Kind};
use pgrx::prelude::*;
use pgrx::spi::quote_literal;

use crate::cluster::access::{Access, REEMBED_PREFIX};
use crate::cluster::tables::{self, Store};
use crate::model::loaded;
use crate::pg::catalog::{Lock, Table};
use crate::pg::error::{SqlResult, report, sql_error};
use crate::pg::regclass::Regclass;
use crate::pg::spi::{get, spi};
use crate::pg::text::Text;
use crate::pg::user_context::{UserContext, as_extension};
use crate::watch::arguments::Arguments;
use crate::watch::columns::is_half;
use crate::watch::define;
use crate::watch::setting::{Watch, table_of};
use crate::watch::swap::{check_dependents, finish, make_indexes};
use crate::watch::tags;

/// The number of names to try for the second column.
const NAMES: u32 = 100;

/// The steps of CALL clip_reembed, which commits between them (sql/watch.sql).
#[pg_schema]
pub mod clip_search {
    use super::*;

    /// Creates or finds the second column; returns its name.
    #[pg_extern(volatile, parallel_unsafe)]
    fn reembed_begin(
        relation: Option<Regclass>,
        model: Option<Text<'_>>,
        embedding: Option<Text<'_>>,
    ) -> SqlResult<String> {
        let (model, embedding) = (model.map(Text::str), embedding.map(Text::str));
        tables::check_writable(c"clip_reembed()");
        let oid = table_of(relation)?;
        let model = model.ok_or_else(|| {
            sql_error(PgSqlErrorCode::ERRCODE_NULL_VALUE_NOT_ALLOWED, "the model is NULL")
                .set_hint("SELECT name FROM clip_models() lists those there are.")
        })?;
        // Two concurrent calls create only one column, because both first take the lock that creating it needs.
        let watch = Watch::one_of_table(oid, embedding)?;
        if watch.is_distributed() {
            let what = format!("{} is a distributed table of Citus, whose columns can't be swapped", watch.name());
            return Err(sql_error(PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED, what)
                .set_detail("A column with the vectors of another model is filled beside the first, and stays there.")
                .set_hint(format!(
                    "clip_watch({}, …, embedding => 'new_column', model => {}), CALL clip_backfill, then let searches use that column.",
                    quote_literal(watch.name()),
                    quote_literal(model)
                )));
        }
        tables::check_may_commit("clip_reembed()")?;
        // Obstacles are reported before any session has to wait, and before words are embedded for minutes.
        if Watch::replacing(watch.id)?.is_none() {
            check_other_model(&watch, model)?;
            check_dependents(&watch)?;
            loaded::dimensions(model, watch.image.is_some())?;
            tags::prepare(&Watch { model: model.to_owned(), ..watch })?;
        }
        // Take the strongest lock now, because a column may be added: upgrading it later would deadlock with a
        // transaction that has read the table and is about to write it.
        Table::locked(oid, Lock::AccessExclusive)?;
        let watch = Watch::one_of_table(oid, embedding)?;
        if let Some(next) = Watch::replacing(watch.id)? {
            if next.model != model {
                return Err(sql_error(
                    PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                    format!("column \"{}\" is being embedded by model \"{}\" already", watch.embedding, next.model),
                )
                .set_hint(format!(
                    "Call clip_reembed with that model to go on, or clip_unwatch({}, {}) to give up.",
                    quote_literal(&Table::describe(oid)?.name),
                    quote_literal(&next.embedding)
                )));
            }
            make_indexes(&watch, &next)?;
            return Ok(next.embedding);
        }
        check_other_model(&watch, model)?;
        check_dependents(&watch)?;
        let name = free_name(&watch)?;
        let (cluster, tags) = (format!("{name}_cluster"), format!("{name}_tags"));
        let threshold = as_extension(|client| {
            let query = "SELECT threshold FROM clip_search.collection_setting WHERE name = $1";
            let rows = client.update(query, Some(1), &[watch.collection.as_deref().into()]).map_err(spi)?;
            rows.into_iter().next().map(|row| get::<f64>(&row, 1)).transpose()
        })?;
        let half = {
            let table = Table::describe(oid)?;
            let _user_context = UserContext::of_caller();
            Spi::connect_mut(|client| is_half(client, &table, &watch.embedding))?
        };
        let next = define::watch(
            oid,
            &Arguments {
                source: watch.image.as_deref().or(watch.text.as_deref()),
                text_source: watch.image.as_deref().and(watch.text.as_deref()),
                text_weight: watch.image.as_ref().and(watch.text.as_ref()).map(|_| watch.text_weight),
                embedding: &name,
                cluster: watch.cluster.as_deref().map(|_| cluster.as_str()),
                model: Some(model),
                collection: watch.cluster.as_deref().map(|_| name.as_str()),
                queued: Some(watch.queued),
                skip: Some(watch.skip),
                threshold: threshold.flatten(),
                half,
                replaces: Some(watch.id),
                tags: watch.tags.as_deref().map(|_| tags.as_str()),
                ..Arguments::default()
            },
        )?;
        make_indexes(&watch, &next)?;
        Ok(next.embedding)
    }

    /// Whether the second column still has to be filled; false if another session has swapped the columns in the
    /// meantime. No session swaps them before this transaction ends.
    #[pg_extern(volatile, strict, parallel_unsafe)]
    fn reembed_goes_on(relation: Regclass, embedding: Text<'_>, model: Text<'_>) -> SqlResult<bool> {
        tables::check_writable(c"clip_reembed()");
        let Text(embedding) = embedding;
        let Text(model) = model;
        let Regclass(oid) = relation;
        let table = Table::locked(oid, Lock::AccessShare)?;
        let watches = watches(oid)?;
        if watches.iter().any(|watch| watch.embedding == embedding) {
            return Ok(true);
        }
        if watches.iter().any(|watch| is_beside(watch.id, embedding) && watch.model == model) {
            return Ok(false);
        }
        Err(sql_error(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!("column \"{embedding}\" of {} is not watched any more", table.name),
        )
        .set_detail("Another session has called clip_unwatch while clip_reembed filled it."))
    }

    /// Replaces the first column by the second; false if too many rows have no embedding yet, or if another session has
    /// swapped the columns already.
    #[pg_extern(volatile, strict, parallel_unsafe, cost = 1000000)]
    fn reembed_finish(relation: Regclass, embedding: Text<'_>) -> SqlResult<bool> {
        tables::check_writable(c"clip_reembed()");
        let Text(embedding) = embedding;
        let Regclass(oid) = relation;
        Table::locked(oid, Lock::AccessExclusive)?;
        // Another session may have swapped the columns; clip_search.reembed_goes_on finds out.
        let Some(next) = watches(oid)?.into_iter().find(|watch| watch.embedding == embedding) else { return Ok(false) };
        let watch = next.replaces.map(Watch::by_id).transpose()?.flatten().ok_or_else(|| {
            report(Error::new(Kind::InvalidInput, format!("column \"{embedding}\" is not to replace another")))
        })?;
        finish(&watch, &next)
    }
}

fn check_other_model(watch: &Watch, model: &str) -> SqlResult<()> {
    if watch.model != model {
        return Ok(());
    }
    Err(report(
        Error::new(
            Kind::InvalidInput,
            format!("column \"{}\" holds vectors of model \"{model}\" already", watch.embedding),
        )
        .hint(format!(
            "Name another model. To compute the vectors again by this one: SELECT clip_watch({table}, embedding => {}, \
             existing => 'replace'); CALL clip_backfill({table});",
            quote_literal(&watch.embedding),
            table = quote_literal(watch.name())
        )),
    ))
}

/// A name for the second column and its collection that neither a column of the table nor any collection has. In a
/// database from before 0.3.0, any role may have created a collection under the usual name.
fn free_name(watch: &Watch) -> SqlResult<String> {
    let usual = column_beside(watch.id);
    let store = Store::open_to_read();
    let taken = |name: &str| -> SqlResult<bool> {
        let table = Table::describe(watch.relation)?;
        let is_column = {
            let _user_context = UserContext::of_caller();
            Spi::connect_mut(|client| {
                Ok::<_, pg_sys::panic::ErrorReport>(
                    table.column(client, name)?.is_some()
                        || table.column(client, &format!("{name}_cluster"))?.is_some()
                        || table.column(client, &format!("{name}_tags"))?.is_some(),
                )
            })?
        };
        Ok(is_column || (watch.cluster.is_some() && Access::find(&store, name).exists()))
    };
    for number in 1..=NAMES {
        let name = if number == 1 { usual.clone() } else { format!("{usual}_{number}") };
        if !taken(&name)? {
            return Ok(name);
        }
    }
    Err(sql_error(
        PgSqlErrorCode::ERRCODE_DUPLICATE_COLUMN,
        format!("columns or collections \"{usual}\" to \"{usual}_{NAMES}\" exist already"),
    )
    .set_hint("Rename or drop one of the columns, or a collection."))
}

fn column_beside(watch: i64) -> String {
    format!("{REEMBED_PREFIX}{watch}")
}

/// Whether a column has a name that [`free_name`] may have given it.
fn is_beside(watch: i64, embedding: &str) -> bool {
    let rest = embedding.strip_prefix(&column_beside(watch));
    rest.is_some_and(|rest| {
        rest.is_empty()
            || rest
                .strip_prefix('_')
                .is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
    })
}

/// All watches of a table, including those whose columns will replace others.
fn watches(relation: pg_sys::Oid) -> SqlResult<Vec<Watch>> {
    as_extension(|client| Watch::find(client, "w.relation::oid = $1", &[relation.into()]))
}

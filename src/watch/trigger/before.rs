//! The part of the trigger that runs before a row is written: it computes the embedding, or sets it to NULL for the
//! worker.
#![allow(unsafe_code)]

use pgrx::pg_sys;
use pgrx::prelude::*;

use crate::cluster::pending::join;
use crate::model::loaded;
use crate::pg::error::{SqlResult, different_dimensions, report, sql_error};
use crate::pg::subtransaction::Failure;
use crate::pg::text::utf8;
use crate::pg::transaction::RollbackList;
use crate::pg::vector::Vector;
use crate::watch::source::{self, Source};
use crate::watch::tags;
use crate::watch::trigger::moves::{is_moved_here, note_update};
use crate::watch::trigger::plan::Plan;
use crate::watch::trigger::row::{Tuple, same, same_value, unchanged};

thread_local! {
    /// The reasons why rows have no embedding, by a hash of their source.
    static FAILURES: RollbackList<(u64, Failure)> = RollbackList::new();
}

/// The reason why the row that was just written has no embedding, if known.
pub(super) fn take_failure(plan: &Plan, new: &Tuple) -> Option<Failure> {
    if FAILURES.with(RollbackList::is_empty) {
        return None;
    }
    let hash = new.source(plan);
    FAILURES.with(|failures| failures.take(|known| known.0 == hash)).map(|known| known.1)
}

pub(super) fn before_insert(plan: &Plan, new: &Tuple) -> SqlResult<pg_sys::HeapTuple> {
    if is_moved_here(plan, new) {
        return Ok(new.tuple);
    }
    tagged(plan, new, written(plan, new)?)
}

pub(super) fn before_update(plan: &Plan, table: pg_sys::Oid, old: &Tuple, new: &Tuple) -> SqlResult<pg_sys::HeapTuple> {
    let mut changed = !unchanged(plan, old, new);
    let result = if changed {
        tagged(plan, new, written(plan, new)?)?
    } else {
        check_model(plan, old, new)?;
        let regrouped = regrouped(plan, old, new)?;
        changed = regrouped.is_some();
        retagged(plan, old, new, regrouped.unwrap_or(new.tuple))?
    };
    // SAFETY: the relation is open while the trigger runs.
    let partition = unsafe { pg_sys::get_rel_relispartition(table) };
    if partition {
        note_update(plan, table, old, &Tuple { tuple: result, shape: new.shape }, changed)?;
    }
    Ok(result)
}

/// The row to store: with the embedding of its source and its cluster, or without both.
fn written(plan: &Plan, new: &Tuple) -> SqlResult<pg_sys::HeapTuple> {
    let watch = &plan.watch;
    if watch.queued || !new.has_source(plan) {
        return Ok(new.with(plan, None, None));
    }
    let outcome = new.bytes(plan.text).map(|bytes| utf8("text", bytes)).transpose().and_then(|text| {
        let source = Source { image: new.bytes(plan.image), text };
        source::embed(watch, &[source])?.pop().unwrap_or(Ok(None))
    });
    match outcome {
        Ok(None) => Ok(new.with(plan, None, None)),
        Ok(Some(vector)) => {
            if let Some(dimensions) = plan.dimensions.filter(|&dimensions| dimensions != vector.0.len()) {
                return Err(different_dimensions(dimensions, vector.0.len()).set_detail(format!(
                        "Column \"{}\" of {} is for {dimensions}, and has been altered since clip_watch was called; \"{}\" makes the other.",
                        watch.embedding,
                        watch.name(),
                        watch.model
                    )).set_hint(format!(
                        "ALTER TABLE … ALTER COLUMN … TYPE vector({}) USING NULL, then CALL clip_backfill, which fills it.",
                        vector.0.len()
                    )));
            }
            let vector = plan.storage.round(vector);
            let cluster = match &plan.collection {
                Some(collection) if plan.cluster.is_some() => Some(join(collection, &vector.0, plan.watch.owner)?),
                _ => None,
            };
            Ok(new.with(plan, Some(vector), cluster))
        }
        Err(error) if watch.skip => {
            let failure = Failure::from(&error);
            let hash = new.source(plan);
            FAILURES.with(|failures| failures.push((hash, failure)));
            Ok(new.with(plan, None, None))
        }
        Err(error) => Err(report(error)),
    }
}

/// The row with the tags of its embedding.
fn tagged(plan: &Plan, new: &Tuple, tuple: pg_sys::HeapTuple) -> SqlResult<pg_sys::HeapTuple> {
    let Some(column) = plan.tags else { return Ok(tuple) };
    let row = Tuple { tuple, shape: new.shape };
    let tags = row.vector(plan).map(|vector| tags::of(&plan.watch.model, &vector)).transpose()?;
    Ok(row.with_tags(column, tags))
}

/// As `tagged`, for a row whose embedding the user has changed but not its source. Tags that the user has changed, or
/// the worker together with the embedding, are left alone.
fn retagged(plan: &Plan, old: &Tuple, new: &Tuple, tuple: pg_sys::HeapTuple) -> SqlResult<pg_sys::HeapTuple> {
    let Some(column) = plan.tags else { return Ok(tuple) };
    let is_same = |column| same(old.datum(column), new.datum(column));
    if is_same(plan.embedding) || !is_same(column) { Ok(tuple) } else { tagged(plan, new, tuple) }
}

/// If the user has changed a member's embedding but not its source, the member joins the group of the new embedding, or
/// no group if it is NULL. A group that the user has changed is left alone.
fn regrouped(plan: &Plan, old: &Tuple, new: &Tuple) -> SqlResult<Option<pg_sys::HeapTuple>> {
    if let Some(cluster) = plan.assigned {
        let is_same = same(old.datum(plan.embedding), new.datum(plan.embedding));
        // The coordinator will assign the row again.
        return Ok(match is_same || new.datum(cluster).is_none() {
            true => None,
            false => Some(new.with(plan, new.vector(plan).map(Vector), None)),
        });
    }
    let (Some(member), Some(cluster)) = (old.member(plan), plan.cluster) else { return Ok(None) };
    if same(old.datum(plan.embedding), new.datum(plan.embedding)) || !same_value(old, new, cluster) {
        return Ok(None);
    }
    let Some(vector) = new.vector(plan) else { return Ok(Some(new.with(plan, None, None))) };
    let cluster = join(&member.collection, &vector, plan.watch.owner)?;
    Ok(Some(new.with(plan, Some(Vector(vector)), Some(cluster))))
}

/// Refuses an embedding that the user has written if it is known to come from another model than the column's.
fn check_model(plan: &Plan, old: &Tuple, new: &Tuple) -> SqlResult<()> {
    if same(old.datum(plan.embedding), new.datum(plan.embedding)) {
        return Ok(());
    }
    let Some(vector) = new.vector(plan) else { return Ok(()) };
    match loaded::model_of(&vector) {
        Some(model) if loaded::base_name(&model) != loaded::base_name(&plan.watch.model) => Err(sql_error(
            PgSqlErrorCode::ERRCODE_DATA_EXCEPTION,
            format!(
                "column \"{}\" holds vectors of model \"{}\", not of \"{model}\"",
                plan.watch.embedding, plan.watch.model
            ),
        )
        .set_detail(format!("This vector is what \"{model}\" has returned in this session."))
        .set_hint("Vectors of different models don't mix: CALL clip_reembed(table, model) changes the model.")),
        _ => Ok(()),
    }
}

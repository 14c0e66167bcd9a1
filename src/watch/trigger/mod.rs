//! The trigger of watched tables.
//!
//! A BEFORE trigger sets the row's embedding: it embeds the source, or sets NULL for the worker to replace. Every step
//! that requires a written row waits for the AFTER trigger, because ON CONFLICT or another trigger may still suppress
//! the insertion or turn an update into a move to another partition. The row therefore joins a cluster before it is
//! written, and the AFTER trigger confirms this; a membership that is not confirmed by the end of the transaction is
//! undone. The old row leaves its cluster in the AFTER trigger.
//!
//! The trigger does not consider which columns an UPDATE names, only whether the source has changed.
#![allow(unsafe_code)]

pub mod after;
pub mod before;
mod departures;
pub mod install;
pub mod moves;
pub mod plan;
pub mod row;

use std::ffi::CStr;

use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use pgrx::trigger_support::{PgTrigger, TriggerEvent};

use crate::pg::error::{SqlResult, sql_error};
use crate::pg::restore;
use crate::watch::partitions::before_truncate;
use crate::watch::trigger::after::{after_delete, after_insert, after_truncate, after_update};
use crate::watch::trigger::before::{before_insert, before_update};
use crate::watch::trigger::moves::before_delete;
use crate::watch::trigger::plan::plan;
use crate::watch::trigger::row::Tuple;

#[unsafe(no_mangle)]
#[doc(hidden)]
pub extern "C" fn pg_finfo_clip_watch_row() -> &'static pg_sys::Pg_finfo_record {
    const RECORD: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
    &RECORD
}

/// `clip_watch_row('id')`, declared in sql/watch.sql.
///
/// # Safety
/// Only PostgreSQL may call it, as a trigger function.
#[unsafe(no_mangle)]
#[pg_guard]
pub unsafe extern "C-unwind" fn clip_watch_row(call: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: PostgreSQL passes the data of a call; `from_fcinfo` checks that it is the call of a trigger.
    let outcome = unsafe {
        match call.as_ref().map(|call| PgTrigger::from_fcinfo(call)) {
            Some(Ok(trigger)) => run(&*(*call).context.cast::<pg_sys::TriggerData>(), &trigger.event()),
            _ => Err(out_of_place("clip_watch_row() is called by triggers only")),
        }
    };
    match outcome {
        Ok(tuple) => pg_sys::Datum::from(tuple),
        Err(report) => {
            report.report(PgLogLevel::ERROR);
            unreachable!("an ERROR does not return")
        }
    }
}

fn out_of_place(what: &str) -> ErrorReport {
    sql_error(PgSqlErrorCode::ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED, what)
        .set_hint("clip_watch makes the triggers.")
}

/// # Safety
/// The data must belong to a trigger that is being called.
unsafe fn run(data: &pg_sys::TriggerData, event: &TriggerEvent) -> SqlResult<pg_sys::HeapTuple> {
    // SAFETY: by the contract; the argument, if there is one, is a string.
    let (id, settings, table, shape) = unsafe {
        let trigger = &*data.tg_trigger;
        let settings =
            (trigger.tgnargs == 2).then(|| CStr::from_ptr(*trigger.tgargs.add(1)).to_string_lossy().into_owned());
        // The second argument has the settings for shards, which the event trigger on CREATE TRIGGER has stored.
        let argument = matches!(trigger.tgnargs, 1 | 2).then(|| CStr::from_ptr(*trigger.tgargs).to_string_lossy());
        let id = argument.and_then(|argument| argument.parse::<i64>().ok());
        (id, settings, (*data.tg_relation).rd_id, (*data.tg_relation).rd_att)
    };
    let id = id.ok_or_else(|| out_of_place("clip_watch_row() takes the number of a watch"))?;
    // SAFETY: the trigger's relation is open.
    if event.fired_for_row() && unsafe { restore::loads_created_table(data.tg_relation) } {
        return Ok(if event.fired_before() { data.tg_trigtuple } else { std::ptr::null_mut() });
    }
    let mut table = table;
    if event.fired_by_truncate()
        && let Some(shard) = departures::kept_shard(table)?
    {
        // The watched table has become this shard. Citus creates no TRUNCATE trigger on it.
        table = shard;
    } else if event.fired_by_truncate() && departures::is_citus_table(table)? {
        if let Some(settings) = settings.filter(|_| event.fired_before()) {
            departures::note_all(table, &settings)?;
        }
        return Ok(std::ptr::null_mut());
    } else if event.fired_by_truncate() && departures::is_left_over(id, table)? {
        return Ok(std::ptr::null_mut());
    }
    let plan = plan(id, table, shape)?;
    let (first, second) = (Tuple { tuple: data.tg_trigtuple, shape }, Tuple { tuple: data.tg_newtuple, shape });
    match (event.fired_for_row(), event.fired_before()) {
        (true, true) if event.fired_by_insert() => before_insert(&plan, &first),
        (true, true) if event.fired_by_update() => before_update(&plan, table, &first, &second),
        (true, true) => {
            before_delete(&plan, table, &first);
            Ok(first.tuple)
        }
        (true, false) => {
            if event.fired_by_insert() {
                after_insert(&plan, &first)?;
            } else if event.fired_by_update() {
                after_update(&plan, &first, &second)?;
            } else {
                after_delete(&plan, &first)?;
            }
            Ok(std::ptr::null_mut())
        }
        (false, _) if !event.fired_by_truncate() => {
            Err(out_of_place("clip_watch_row() is called for each row, and for a statement by TRUNCATE only"))
        }
        (false, true) => {
            before_truncate(&plan.watch, table)?;
            Ok(std::ptr::null_mut())
        }
        (false, false) => {
            after_truncate(&plan)?;
            Ok(std::ptr::null_mut())
        }
    }
}

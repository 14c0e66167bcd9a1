//! The worker of one database: its process from start to end.
#![allow(unsafe_code)]

use std::time::{Duration, Instant};

use pgrx::bgworkers::BackgroundWorker;
use pgrx::prelude::*;

use crate::guc;
use crate::pg::hard_limit::{self, has_expired};
use crate::watch::shared_memory::{SHARED, Stuck, now, set_latch, set_limit, slot};
use crate::watch::worker::process::{
    attach_signals, database_is_being_dropped_or_copied, exit_without_postmaster, reload, wait,
};
use crate::watch::worker::round::Worker;

/// How long a worker continues while other databases wait for a worker. Loading a model may take the first seconds.
const TURN: Duration = Duration::from_secs(30);

/// Embeds the queued rows of one database.
///
/// # Safety
/// Only the postmaster may call it, to start a background worker at the launcher's request, with the database's oid.
#[unsafe(no_mangle)]
#[pg_guard]
pub unsafe extern "C-unwind" fn clip_search_worker(database: pg_sys::Datum) {
    let database = database.value() as u32;
    attach_signals();
    BackgroundWorker::connect_worker_to_spi_by_oid(Some(pg_sys::Oid::from(database)), None);
    // SAFETY: settings of this process only; they override the database's settings for sessions.
    unsafe {
        for (name, value) in [
            (c"search_path", c"pg_catalog, pg_temp"),
            (c"statement_timeout", c"0"),
            (c"idle_in_transaction_session_timeout", c"0"),
            // Give up on a table that stays locked longer than this; the worker tries it again later.
            (c"lock_timeout", c"5s"),
            (c"default_transaction_isolation", c"read committed"),
            (c"default_transaction_read_only", c"off"),
            (c"synchronous_commit", c"local"),
            #[cfg(any(feature = "pg17", feature = "pg18"))]
            (c"transaction_timeout", c"0"),
        ] {
            pg_sys::SetConfigOption(
                name.as_ptr(),
                value.as_ptr(),
                pg_sys::GucContext::PGC_SUSET,
                pg_sys::GucSource::PGC_S_OVERRIDE,
            );
        }
        pg_sys::before_shmem_exit(Some(at_exit), pg_sys::Datum::from(database as usize));
        let mut shared = SHARED.exclusive();
        if let Some(slot) = slot(&mut shared.slots, database) {
            slot.worker = pg_sys::MyProcPid;
            slot.due = 0;
            slot.in_hand = 0;
            slot.limit = 0;
        }
    }
    hard_limit::become_worker(set_limit);
    let mut worker = Worker::new(database);
    let mut fails = 0;
    let begun = Instant::now();
    loop {
        reload();
        if database_is_being_dropped_or_copied(database) || !guc::worker() {
            set_wanted(database, true); // so that the launcher starts a worker again
            return;
        }
        set_wanted(database, false);
        let rest = match worker.round() {
            Ok(Some(rest)) => {
                fails = 0;
                rest
            }
            Ok(None) => {
                let mut shared = SHARED.exclusive();
                if let Some(slot) = slot(&mut shared.slots, database) {
                    slot.ended_well = true;
                }
                return;
            }
            Err(failure) => {
                fails += 1;
                pgrx::log!("clip_search: the worker continues after an error: {}", failure.message);
                let rest = Duration::from_secs(1 << fails.min(5));
                worker.due = Some(rest);
                rest
            }
        };
        if is_crowded() && (!rest.is_zero() || begun.elapsed() >= TURN) {
            // The launcher starts another worker here after serving the other databases. If the queue is empty, it
            // waits until a row is queued.
            let mut shared = SHARED.exclusive();
            if let Some(slot) = slot(&mut shared.slots, database) {
                slot.due = worker.due.map_or(0, |due| now() + due.as_micros() as i64);
                slot.ended_well = true;
            }
            return;
        }
        exit_without_postmaster();
        if !rest.is_zero() {
            // SAFETY: updates pg_stat_activity; a null text means no text.
            unsafe { pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_IDLE, std::ptr::null()) };
            // Check every second, so that DROP DATABASE does not wait for long.
            let until = Instant::now() + rest;
            while Instant::now() < until
                && !is_set(database)
                && !database_is_being_dropped_or_copied(database)
                && guc::worker()
                && !is_crowded()
            {
                wait((until - Instant::now()).min(Duration::from_secs(1)));
                reload();
            }
        }
    }
}

fn set_wanted(database: u32, wanted: bool) {
    let mut shared = SHARED.exclusive();
    if let Some(slot) = slot(&mut shared.slots, database) {
        slot.wanted = wanted;
    }
}

fn is_crowded() -> bool {
    SHARED.share().crowded
}

fn is_set(database: u32) -> bool {
    SHARED.share().slots.iter().any(|slot| slot.database == database && slot.wanted)
}

/// Notifies the launcher, however the process ended; the launcher starts another worker if necessary.
#[pg_guard]
unsafe extern "C-unwind" fn at_exit(code: i32, database: pg_sys::Datum) {
    let mut shared = SHARED.exclusive();
    let database = database.value() as u32;
    // SAFETY: a variable that is set at the start of the process.
    let me = unsafe { pg_sys::MyProcPid };
    let mut ended_by = 0;
    // This worker was replaced by another.
    if let Some(slot) = shared.slots.iter_mut().find(|slot| slot.database == database && slot.worker != me)
        && let Some(stuck) = slot.stuck.iter_mut().find(|stuck| stuck.worker == me)
    {
        *stuck = Stuck::default();
        // The owner's rows no longer have to wait.
        slot.wanted = true;
        let processes = [slot.worker, shared.launcher];
        drop(shared);
        processes.into_iter().for_each(set_latch);
        return;
    }
    if let Some(slot) = shared.slots.iter_mut().find(|slot| slot.database == database) {
        (slot.worker, slot.limit) = (0, 0);
        slot.wanted |= code != 0;
        if has_expired() {
            ended_by = slot.in_hand;
            // Only this table has to wait, not the rows of other tables: the next worker starts without a pause.
            slot.ended_well = true;
        }
        slot.suspect();
    }
    let launcher = shared.launcher;
    drop(shared);
    set_latch(launcher);
    if ended_by != 0 {
        pgrx::log!(
            "clip_search: the worker of database {database} ended itself, since rows of watch {ended_by} took longer than \
             clip_search.worker_timeout and ignored the cancel; other tables come first for a while"
        );
    }
}

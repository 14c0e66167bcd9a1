//! The launcher, which starts workers in the databases that have work for them.
#![allow(unsafe_code)]

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use pgrx::bgworkers::{
    BackgroundWorker, BackgroundWorkerBuilder, BackgroundWorkerStatus, BgWorkerStartTime, DynamicBackgroundWorker,
};
use pgrx::prelude::*;

use crate::guc;
use crate::watch::shared_memory::{self, DATABASES, SHARED, Slot, now, slot};
use crate::watch::worker::NAP;
use crate::watch::worker::process::{attach_signals, database_is_being_dropped_or_copied, reload, transaction};

/// The time between two checks of all databases: a database may have been restored, or copied from another, with queued
/// rows.
const RESCAN: Duration = Duration::from_secs(600);

/// The delay before a worker that has ended is restarted.
const PAUSE: Duration = Duration::from_secs(5);

/// Called when the library is loaded. It does nothing except in a postmaster that preloads the library.
pub fn register() {
    if !shared_memory::register() {
        return;
    }
    BackgroundWorkerBuilder::new("clip_search launcher")
        .set_library("clip_search")
        .set_function("clip_search_launcher")
        .set_start_time(BgWorkerStartTime::RecoveryFinished)
        .set_restart_time(Some(PAUSE))
        .enable_spi_access()
        .load();
}

/// Starts workers in databases that need them.
///
/// # Safety
/// The postmaster starts it as a background worker.
#[unsafe(no_mangle)]
#[pg_guard]
pub unsafe extern "C-unwind" fn clip_search_launcher(_nothing: pg_sys::Datum) {
    attach_signals();
    // No database: it reads shared catalogues only.
    BackgroundWorker::connect_worker_to_spi(None, None);
    {
        let mut shared = SHARED.exclusive();
        // SAFETY: a variable that is set at the start of the process.
        shared.launcher = unsafe { pg_sys::MyProcPid };
        shared.slots.iter_mut().for_each(|slot| slot.worker = 0);
        shared.crowded = false;
    }
    let mut unseen: Vec<u32> = databases().unwrap_or_default();
    let mut workers: HashMap<u32, DynamicBackgroundWorker> = HashMap::new();
    // Those that can't be ended, which others have taken over from.
    let mut stuck: Vec<DynamicBackgroundWorker> = Vec::new();
    // When each database was given a worker last, those whose last one has not ended at peace, and when one could not be had.
    let mut served: HashMap<u32, Instant> = HashMap::new();
    let mut ended: HashSet<u32> = HashSet::new();
    let mut refused: HashMap<u32, Instant> = HashMap::new();
    let mut complained: Option<Instant> = None;
    let mut scanned = Instant::now();
    loop {
        reload();
        if scanned.elapsed() >= RESCAN {
            scanned = Instant::now();
            unseen = databases().unwrap_or_default();
            unseen.retain(|database| !workers.contains_key(database));
        }
        stuck.retain(is_running);
        for database in set_stuck_aside(most_stuck().saturating_sub(stuck.len())) {
            stuck.extend(workers.remove(&database));
            // The next is started at once.
            ended.remove(&database);
        }
        workers.retain(|database, worker| {
            let runs = is_running(worker);
            if !runs {
                let mut shared = SHARED.exclusive();
                let slot = shared.slots.iter_mut().find(|slot| slot.database == *database);
                if slot.as_ref().is_some_and(|slot| slot.at_peace) {
                    ended.remove(database);
                } else {
                    ended.insert(*database);
                }
                if let Some(slot) = slot {
                    slot.worker = 0;
                    // One that has nothing more to do says so itself.
                    slot.database = if slot.is_free() { 0 } else { slot.database };
                }
                // Its slot is free.
                refused.clear();
            }
            runs
        });
        let (mut wanted, mut soonest) = {
            let shared = SHARED.share();
            let slots = shared.slots.iter().filter(|slot| slot.database != 0);
            let due = slots.clone().filter(|slot| slot.due != 0 && !slot.is_wanted()).map(|slot| slot.due).min();
            let soonest = due.map_or(NAP, |due| Duration::from_micros((due - now()).max(0) as u64).min(NAP));
            let has_room = stuck.len() < most_stuck();
            let until = slots.clone().filter(|_| has_room).filter_map(Slot::stuck_at).min();
            let soonest =
                until.map_or(soonest, |at| soonest.min(Duration::from_micros((at - now()).max(0) as u64 + 1000)));
            (slots.filter(|slot| slot.is_wanted()).map(|slot| slot.database).collect::<Vec<u32>>(), soonest)
        };
        if !guc::worker() {
            wanted.clear();
            soonest = NAP;
        }
        // The database that has waited longest comes first.
        wanted.sort_by_key(|database| served.get(database).copied());
        // Databases are checked one after another.
        let paused = |since: Option<&Instant>| since.and_then(|since| PAUSE.checked_sub(since.elapsed()));
        let looking = workers.keys().any(|database| paused(served.get(database)).is_some());
        if wanted.is_empty() && !looking && guc::worker() {
            wanted.extend(unseen.pop());
        }
        let mut crowded = false;
        for database in wanted {
            if workers.contains_key(&database) {
                continue;
            }
            if let Some(left) = paused(refused.get(&database)) {
                crowded = true;
                soonest = soonest.min(left);
                continue;
            }
            if let Some(left) = paused(served.get(&database).filter(|_| ended.contains(&database))) {
                soonest = soonest.min(left);
                continue;
            }
            if database_is_being_dropped_or_copied(database) {
                soonest = soonest.min(Duration::from_secs(1));
                continue;
            }
            if !databases().is_some_and(|all| all.contains(&database)) {
                let mut shared = SHARED.exclusive();
                shared
                    .slots
                    .iter_mut()
                    .filter(|slot| slot.database == database)
                    .for_each(|slot| *slot = Slot::default());
                ended.remove(&database);
                served.remove(&database);
                continue;
            }
            let place = {
                let mut shared = SHARED.exclusive();
                slot(&mut shared.slots, database).map(|slot| (slot.wanted, slot.at_peace) = (true, false)).is_some()
            };
            // SAFETY: a variable that is set at the start of the process.
            let me = unsafe { pg_sys::MyProcPid };
            let started = BackgroundWorkerBuilder::new(&format!("clip_search worker for database {database}"))
                .set_type("clip_search worker")
                .set_library("clip_search")
                .set_function("clip_search_worker")
                .set_argument(pg_sys::Oid::from(database).into_datum())
                .set_start_time(BgWorkerStartTime::RecoveryFinished)
                .set_restart_time(None)
                .set_notify_pid(me)
                .enable_spi_access();
            let why = match place.then(|| started.load_dynamic()) {
                Some(Ok(worker)) => {
                    workers.insert(database, worker);
                    served.insert(database, Instant::now());
                    continue;
                }
                Some(Err(_)) => "max_worker_processes is too low".to_owned(),
                None => format!("{DATABASES} databases have one, and no more can"),
            };
            crowded = true;
            refused.insert(database, Instant::now());
            soonest = soonest.min(PAUSE);
            if complained.is_none_or(|since| since.elapsed() >= RESCAN) {
                complained = Some(Instant::now());
                pgrx::warning!(
                    "clip_search: no worker for database {database} could be started, so databases take turns: {why}"
                );
            }
        }
        SHARED.exclusive().crowded = crowded;
        if !unseen.is_empty() {
            soonest = soonest.min(Duration::from_millis(100));
        }
        BackgroundWorker::wait_latch(Some(soonest));
    }
}

fn is_running(worker: &DynamicBackgroundWorker) -> bool {
    matches!(worker.pid(), Ok(_) | Err(BackgroundWorkerStatus::NotYetStarted))
}

/// How many workers of the server may be stuck while others take over from them: other extensions need processes as well.
fn most_stuck() -> usize {
    // SAFETY: a setting that is fixed at the server's start.
    let processes = unsafe { (&raw const pg_sys::max_worker_processes).read() };
    (processes / 4).max(1) as usize
}

/// Sets workers aside that are stuck in code that can't be interrupted, up to so many. Returns their databases.
fn set_stuck_aside(most: usize) -> Vec<u32> {
    let mut found = Vec::new();
    {
        let mut shared = SHARED.exclusive();
        let slots = shared.slots.iter_mut();
        for slot in slots.filter(|slot| slot.stuck_at().is_some_and(|at| at <= now())).take(most) {
            found.extend(slot.set_aside().map(|(worker, watch)| (slot.database, worker, watch)));
        }
    }
    for (database, worker, watch) in &found {
        pgrx::warning!(
            "clip_search: worker {worker} of database {database} can't be ended: code of the owner of watch {watch}'s table \
             is not interruptible; another worker takes over for the other owners"
        );
    }
    found.into_iter().map(|(database, ..)| database).collect()
}

/// The databases that one can connect to.
fn databases() -> Option<Vec<u32>> {
    transaction(|| {
        let mut found = Vec::new();
        // SAFETY: a scan of a catalogue that is shared by all databases, inside a transaction; each tuple is used only
        // until the next is fetched.
        unsafe {
            let table = pg_sys::table_open(pg_sys::DatabaseRelationId, pg_sys::AccessShareLock as i32);
            let scan = pg_sys::table_beginscan_catalog(table, 0, std::ptr::null_mut());
            loop {
                let tuple = pg_sys::heap_getnext(scan, pg_sys::ScanDirection::ForwardScanDirection);
                if tuple.is_null() {
                    break;
                }
                let row = &*pg_sys::heap_tuple_get_struct::<pg_sys::FormData_pg_database>(tuple);
                if row.datallowconn && row.datconnlimit != -2 {
                    found.push(row.oid.to_u32());
                }
            }
            pg_sys::table_endscan(scan);
            pg_sys::table_close(table, pg_sys::AccessShareLock as i32);
        }
        Ok(found)
    })
    .ok()
}

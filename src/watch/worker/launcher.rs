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
use crate::watch::worker::process::{attach_signals, database_is_being_dropped_or_copied, reload, transaction, wait};

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
/// Only the postmaster may call it, to start a background worker.
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
    let mut launcher = Launcher {
        unseen: databases().unwrap_or_default(),
        scanned: Instant::now(),
        workers: HashMap::new(),
        stuck: Vec::new(),
        served: HashMap::new(),
        failed: HashSet::new(),
        refused: HashMap::new(),
        warned: None,
    };
    loop {
        reload();
        let delay = launcher.round();
        wait(delay);
    }
}

/// What the launcher knows of the server's databases, by their oids.
struct Launcher {
    /// Databases whose queues no worker has checked since `scanned`.
    unseen: Vec<u32>,
    scanned: Instant,
    workers: HashMap<u32, DynamicBackgroundWorker>,
    /// Workers that can't be ended and were replaced.
    stuck: Vec<DynamicBackgroundWorker>,
    /// When each database's latest worker was started.
    served: HashMap<u32, Instant>,
    /// Databases whose latest worker ended by an error.
    failed: HashSet<u32>,
    /// When a database's worker could not be started.
    refused: HashMap<u32, Instant>,
    /// When the warning about refused workers was last written.
    warned: Option<Instant>,
}

/// The result of an attempt to start a worker.
enum Start {
    Done,
    /// Try again after this time.
    Later(Duration),
    /// The server has no room for another worker; try again after this time.
    NoRoom(Duration),
}

impl Launcher {
    /// Starts the workers that are needed now. Returns the time until the next round; a latch may end it early.
    fn round(&mut self) -> Duration {
        if self.scanned.elapsed() >= RESCAN {
            self.scanned = Instant::now();
            self.unseen = databases().unwrap_or_default();
            self.unseen.retain(|database| !self.workers.contains_key(database));
        }
        self.replace_stuck();
        self.forget_ended();
        let (wanted, mut delay) = self.wanted();
        let mut crowded = false;
        for database in wanted {
            match self.start(database) {
                Start::Done => {}
                Start::Later(left) => delay = delay.min(left),
                Start::NoRoom(left) => {
                    crowded = true;
                    delay = delay.min(left);
                }
            }
        }
        SHARED.exclusive().crowded = crowded;
        if self.unseen.is_empty() { delay } else { delay.min(Duration::from_millis(100)) }
    }

    fn replace_stuck(&mut self) {
        self.stuck.retain(is_running);
        for database in set_stuck_aside(most_stuck().saturating_sub(self.stuck.len())) {
            self.stuck.extend(self.workers.remove(&database));
            // The replacement starts without a pause.
            self.failed.remove(&database);
        }
    }

    fn forget_ended(&mut self) {
        let Self { workers, failed, refused, .. } = self;
        workers.retain(|database, worker| {
            if is_running(worker) {
                return true;
            }
            let mut shared = SHARED.exclusive();
            let slot = shared.slots.iter_mut().find(|slot| slot.database == *database);
            if slot.as_ref().is_some_and(|slot| slot.ended_well) {
                failed.remove(database);
            } else {
                failed.insert(*database);
            }
            if let Some(slot) = slot {
                slot.worker = 0;
                // The worker itself has recorded in the slot whether there is more work.
                slot.database = if slot.is_free() { 0 } else { slot.database };
            }
            // The server has room for another worker.
            refused.clear();
            false
        });
    }

    /// The databases that need a worker, the one that has waited longest first, and the time until that may change.
    fn wanted(&mut self) -> (Vec<u32>, Duration) {
        if !guc::worker() {
            return (Vec::new(), NAP);
        }
        let (mut wanted, delay) = {
            let shared = SHARED.share();
            let slots = shared.slots.iter().filter(|slot| slot.database != 0);
            let due = slots.clone().filter(|slot| slot.due != 0 && !slot.is_wanted()).map(|slot| slot.due).min();
            let delay = due.map_or(NAP, |due| Duration::from_micros((due - now()).max(0) as u64).min(NAP));
            let has_room = self.stuck.len() < most_stuck();
            let until = slots.clone().filter(|_| has_room).filter_map(Slot::stuck_at).min();
            let delay = until.map_or(delay, |at| delay.min(Duration::from_micros((at - now()).max(0) as u64 + 1000)));
            (slots.filter(|slot| slot.is_wanted()).map(|slot| slot.database).collect::<Vec<u32>>(), delay)
        };
        wanted.sort_by_key(|database| self.served.get(database).copied());
        // Databases are checked one after another.
        let checking = self.workers.keys().any(|database| left_of_pause(self.served.get(database)).is_some());
        if wanted.is_empty() && !checking {
            wanted.extend(self.unseen.pop());
        }
        (wanted, delay)
    }

    fn start(&mut self, database: u32) -> Start {
        if self.workers.contains_key(&database) {
            return Start::Done;
        }
        if let Some(left) = left_of_pause(self.refused.get(&database)) {
            return Start::NoRoom(left);
        }
        if let Some(left) = left_of_pause(self.served.get(&database).filter(|_| self.failed.contains(&database))) {
            return Start::Later(left);
        }
        if database_is_being_dropped_or_copied(database) {
            return Start::Later(Duration::from_secs(1));
        }
        if !databases().is_some_and(|all| all.contains(&database)) {
            let mut shared = SHARED.exclusive();
            let slots = shared.slots.iter_mut();
            slots.filter(|slot| slot.database == database).for_each(|slot| *slot = Slot::default());
            self.failed.remove(&database);
            self.served.remove(&database);
            return Start::Done;
        }
        match start_worker(database) {
            Ok(worker) => {
                self.workers.insert(database, worker);
                self.served.insert(database, Instant::now());
                Start::Done
            }
            Err(why) => {
                self.refused.insert(database, Instant::now());
                if self.warned.is_none_or(|since| since.elapsed() >= RESCAN) {
                    self.warned = Some(Instant::now());
                    pgrx::warning!(
                        "clip_search: no worker for database {database} could be started, so databases take turns: {why}"
                    );
                }
                Start::NoRoom(PAUSE)
            }
        }
    }
}

fn left_of_pause(since: Option<&Instant>) -> Option<Duration> {
    since.and_then(|since| PAUSE.checked_sub(since.elapsed()))
}

/// Takes a slot for the database and starts its worker; the error is the reason why it can't.
fn start_worker(database: u32) -> Result<DynamicBackgroundWorker, String> {
    {
        let mut shared = SHARED.exclusive();
        let Some(slot) = slot(&mut shared.slots, database) else {
            return Err(format!("{DATABASES} databases have one, and no more can"));
        };
        (slot.wanted, slot.ended_well) = (true, false);
    }
    // SAFETY: a variable that is set at the start of the process.
    let me = unsafe { pg_sys::MyProcPid };
    BackgroundWorkerBuilder::new(&format!("clip_search worker for database {database}"))
        .set_type("clip_search worker")
        .set_library("clip_search")
        .set_function("clip_search_worker")
        .set_argument(pg_sys::Oid::from(database).into_datum())
        .set_start_time(BgWorkerStartTime::RecoveryFinished)
        .set_restart_time(None)
        .set_notify_pid(me)
        .enable_spi_access()
        .load_dynamic()
        .map_err(|_| "max_worker_processes is too low".to_owned())
}

fn is_running(worker: &DynamicBackgroundWorker) -> bool {
    matches!(worker.pid(), Ok(_) | Err(BackgroundWorkerStatus::NotYetStarted))
}

/// The maximum number of stuck workers that are replaced on the server: other extensions need processes as well.
fn most_stuck() -> usize {
    // SAFETY: a setting that is fixed at the server's start.
    let processes = unsafe { (&raw const pg_sys::max_worker_processes).read() };
    (processes / 4).max(1) as usize
}

/// Sets up to `most` workers aside that are stuck in code that can't be interrupted. Returns their databases.
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

/// The databases that accept connections.
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

//! The background worker, which embeds what is queued.
//!
//! One launcher for the server starts a worker in each database that has something for it. At the server's start it
//! looks into all of them; from then on a transaction that queues rows tells it, by shared memory. A worker ends when
//! its database has no queued watch any more, and when somebody wants to drop, rename or copy the database. Where there
//! are more databases than max_worker_processes leaves workers for, they take turns. It connects as the superuser that
//! the server was made with, and lends those rights to nobody: what touches a watched table runs as the table's owner
//! (`rights`).
#![allow(unsafe_code)]

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pgrx::bgworkers::{
    BackgroundWorker, BackgroundWorkerBuilder, BackgroundWorkerStatus, BgWorkerStartTime, DynamicBackgroundWorker,
    SignalWakeFlags,
};
use pgrx::lwlock::PgLwLock;
use pgrx::pg_shmem_init;
use pgrx::prelude::*;
use pgrx::shmem::PGRXSharedMemory;

use crate::guc;
use crate::pg::error::SqlResult;
use crate::pg::user_context::{Failure, Rights, catch, stop_clock};
use crate::watch::define::{Watch, spi};
use crate::watch::queue::{self, Patience};

/// Workers at a time; max_worker_processes is 8 by default.
const DATABASES: usize = 64;
/// Between two looks at the queue, should a message have been lost.
const NAP: Duration = Duration::from_secs(5);
/// Between two looks into all databases: one may have been restored, or copied from another, with rows that are queued.
const RESCAN: Duration = Duration::from_secs(600);
/// Before a worker that has ended is started again.
const PAUSE: Duration = Duration::from_secs(5);
/// How long a watch rests whose model can't be used, or whose triggers take too long, and the longest.
const FIRST_REST: Duration = Duration::from_secs(1);
const LONGEST_REST: Duration = Duration::from_secs(60);
/// How long a worker goes on while other databases wait for one: loading a model may take the first seconds.
const TURN: Duration = Duration::from_secs(30);
/// The least time between two messages about the progress.
const REPORT: Duration = Duration::from_secs(1);

pub use crate::watch::trigger::wake_at_commit;

#[derive(Clone, Copy, Default)]
struct Slot {
    /// 0: free.
    database: u32,
    /// The worker's process, once it is connected.
    worker: i32,
    /// There is something to do that no worker has seen yet.
    wanted: bool,
    /// The last worker ended since it had nothing to do, and not by an error or for somebody else's sake.
    at_peace: bool,
    /// When there will be something to do again, though no worker waits for it: 0, or PostgreSQL's time.
    due: pg_sys::TimestampTz,
}

impl Slot {
    fn is_wanted(&self) -> bool {
        self.wanted || (self.due != 0 && self.due <= now())
    }
}

fn now() -> pg_sys::TimestampTz {
    // SAFETY: reads the clock.
    unsafe { pg_sys::GetCurrentTimestamp() }
}

#[derive(Clone, Copy)]
struct Shared {
    launcher: i32,
    /// Databases wait for a worker, and no more can be started.
    crowded: bool,
    slots: [Slot; DATABASES],
}

impl Default for Shared {
    fn default() -> Self {
        Self { launcher: 0, crowded: false, slots: [Slot::default(); DATABASES] }
    }
}

// SAFETY: plain numbers.
unsafe impl PGRXSharedMemory for Shared {}

// SAFETY: initialised by `register` before anything reads it; see `is_preloaded`.
static SHARED: PgLwLock<Shared> = unsafe { PgLwLock::new(c"clip_search workers") };
static PRELOADED: AtomicBool = AtomicBool::new(false);

/// Whether the server has loaded the library at its start, and so has a launcher.
pub fn is_preloaded() -> bool {
    PRELOADED.load(Ordering::Relaxed)
}

/// Called when the library is loaded. Does nothing but in a postmaster.
pub fn register() {
    // SAFETY: a flag that only this thread writes.
    if !unsafe { pg_sys::process_shared_preload_libraries_in_progress } {
        return;
    }
    PRELOADED.store(true, Ordering::Relaxed);
    pg_shmem_init!(SHARED);
    BackgroundWorkerBuilder::new("clip_search launcher")
        .set_library("clip_search")
        .set_function("clip_search_launcher")
        .set_start_time(BgWorkerStartTime::RecoveryFinished)
        .set_restart_time(Some(PAUSE))
        .enable_spi_access()
        .load();
}

/// Tells the worker of this database, or the launcher, that there is something to do.
pub fn wake() {
    if !is_preloaded() {
        return;
    }
    // SAFETY: a variable that is set at the start of the process.
    let database = unsafe { (&raw const pg_sys::MyDatabaseId).read() }.to_u32();
    let process = {
        let mut shared = SHARED.exclusive();
        let launcher = shared.launcher;
        match slot(&mut shared.slots, database) {
            Some(slot) => {
                slot.wanted = true;
                if slot.worker != 0 { slot.worker } else { launcher }
            }
            None => launcher,
        }
    };
    set_latch(process);
}

/// The place of a database, a free one if it has none.
fn slot(slots: &mut [Slot; DATABASES], database: u32) -> Option<&mut Slot> {
    let place = slots.iter().position(|slot| slot.database == database);
    let place = place.or_else(|| slots.iter().position(|slot| slot.database == 0))?;
    slots[place].database = database;
    Some(&mut slots[place])
}

fn set_latch(process: i32) {
    if process == 0 {
        return;
    }
    // SAFETY: the look-up returns an entry of shared memory or null; setting the latch of a process that has just ended
    // wakes whoever has its place, which harms nobody.
    unsafe {
        let found = pg_sys::BackendPidGetProc(process);
        if !found.is_null() {
            pg_sys::SetLatch(&raw mut (*found).procLatch);
        }
    }
}

/// Runs a transaction; an error undoes it and comes back.
fn transaction<T>(f: impl FnOnce() -> SqlResult<T>) -> Result<T, Failure> {
    // SAFETY: as PostgreSQL's own workers do around each piece of work.
    unsafe {
        pg_sys::SetCurrentStatementStartTimestamp();
        pg_sys::StartTransactionCommand();
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        let outcome = catch(f);
        stop_clock();
        match &outcome {
            Ok(_) => {
                pg_sys::PopActiveSnapshot();
                // What fails at the commit is undone like the rest.
                if let Err(failure) = catch(|| {
                    pg_sys::CommitTransactionCommand();
                    Ok(())
                }) {
                    pg_sys::AbortCurrentTransaction();
                    return Err(failure);
                }
            }
            Err(_) => pg_sys::AbortCurrentTransaction(),
        }
        outcome
    }
}

unsafe extern "C-unwind" {
    // Declared anew, since pgrx wraps them in functions of Rust, which a signal handler must not be.
    #[link_name = "die"]
    fn die(signal: i32);
    #[link_name = "StatementCancelHandler"]
    fn cancel(signal: i32);
}

fn attach_signals() {
    // SAFETY: PostgreSQL's own handlers: the process ends, or what it does is cancelled, at the next point where
    // interrupts are served.
    unsafe {
        #[cfg(not(feature = "pg18"))]
        let set = pg_sys::pqsignal;
        #[cfg(feature = "pg18")]
        let set = pg_sys::pqsignal_be;
        set(pg_sys::SIGTERM as i32, Some(die));
        set(pg_sys::SIGINT as i32, Some(cancel));
    }
    BackgroundWorker::attach_signal_handlers(SignalWakeFlags::SIGHUP);
}

fn reload() {
    if BackgroundWorker::sighup_received() {
        // SAFETY: as every process of the server does after SIGHUP.
        unsafe { pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP) };
    }
}

// ---------------------------------------------------------------- launcher

/// Starts workers where they are wanted.
///
/// # Safety
/// The postmaster starts it as a background worker.
#[unsafe(no_mangle)]
#[pg_guard]
pub unsafe extern "C-unwind" fn clip_search_launcher(_nothing: pg_sys::Datum) {
    attach_signals();
    // No database: it reads what all share.
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
        workers.retain(|database, worker| {
            let runs = matches!(worker.pid(), Ok(_) | Err(BackgroundWorkerStatus::NotYetStarted));
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
                    slot.database = if slot.wanted || slot.due != 0 { slot.database } else { 0 };
                }
                // Its place is free.
                refused.clear();
            }
            runs
        });
        let (mut wanted, mut soonest) = {
            let shared = SHARED.share();
            let slots = shared.slots.iter().filter(|slot| slot.database != 0);
            let due = slots.clone().filter(|slot| slot.due != 0 && !slot.is_wanted()).map(|slot| slot.due).min();
            let soonest = due.map_or(NAP, |due| Duration::from_micros((due - now()).max(0) as u64).min(NAP));
            (slots.filter(|slot| slot.is_wanted()).map(|slot| slot.database).collect::<Vec<u32>>(), soonest)
        };
        if !guc::worker() {
            wanted.clear();
            soonest = NAP;
        }
        // Whoever has waited the longest comes first.
        wanted.sort_by_key(|database| served.get(database).copied());
        // Databases are looked into one after the other.
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
            if is_database_wanted(database) {
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
            match place.then(|| started.load_dynamic()) {
                Some(Ok(worker)) => {
                    workers.insert(database, worker);
                    served.insert(database, Instant::now());
                }
                _ => {
                    crowded = true;
                    refused.insert(database, Instant::now());
                    soonest = soonest.min(PAUSE);
                    if complained.is_none_or(|since| since.elapsed() >= RESCAN) {
                        complained = Some(Instant::now());
                        pgrx::warning!(
                            "clip_search: no worker for database {database} could be started, so databases take turns: \
                             max_worker_processes is too low"
                        );
                    }
                }
            }
        }
        SHARED.exclusive().crowded = crowded;
        if !unseen.is_empty() {
            soonest = soonest.min(Duration::from_millis(100));
        }
        BackgroundWorker::wait_latch(Some(soonest));
    }
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

// ---------------------------------------------------------------- worker

/// Embeds what is queued in one database.
///
/// # Safety
/// The launcher has the postmaster start it as a background worker, with the database's oid.
#[unsafe(no_mangle)]
#[pg_guard]
pub unsafe extern "C-unwind" fn clip_search_worker(database: pg_sys::Datum) {
    let database = database.value() as u32;
    attach_signals();
    BackgroundWorker::connect_worker_to_spi_by_oid(Some(pg_sys::Oid::from(database)), None);
    // SAFETY: settings of this process alone, whatever the database has set for its sessions.
    unsafe {
        for (name, value) in [
            (c"search_path", c"pg_catalog, pg_temp"),
            (c"statement_timeout", c"0"),
            (c"idle_in_transaction_session_timeout", c"0"),
            // Who holds a table for longer is let have it; the worker comes back.
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
        }
    }
    let mut worker = Worker::default();
    let mut fails = 0;
    let begun = Instant::now();
    loop {
        reload();
        if is_database_wanted(database) || !guc::worker() {
            set_wanted(database, true); // the launcher comes back to it
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
                    slot.at_peace = true;
                }
                return;
            }
            Err(failure) => {
                fails += 1;
                pgrx::log!("clip_search: the worker goes on after an error: {}", failure.message);
                let rest = Duration::from_secs(1 << fails.min(5));
                worker.due = Some(rest);
                rest
            }
        };
        if is_crowded() && (!rest.is_zero() || begun.elapsed() >= TURN) {
            // The launcher comes back to it in time, after the others; where nothing is queued, when something is.
            let mut shared = SHARED.exclusive();
            if let Some(slot) = slot(&mut shared.slots, database) {
                slot.due = worker.due.map_or(0, |due| now() + due.as_micros() as i64);
                slot.at_peace = true;
            }
            return;
        }
        if !rest.is_zero() {
            // SAFETY: tells pg_stat_activity; a null text is none.
            unsafe { pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_IDLE, std::ptr::null()) };
            // So often that whoever wants to drop the database does not wait.
            let until = Instant::now() + rest;
            while Instant::now() < until
                && !is_set(database)
                && !is_database_wanted(database)
                && guc::worker()
                && !is_crowded()
            {
                BackgroundWorker::wait_latch(Some((until - Instant::now()).min(Duration::from_secs(1))));
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

/// Whatever ended it, the launcher learns of it and starts another if need be.
#[pg_guard]
unsafe extern "C-unwind" fn at_exit(code: i32, database: pg_sys::Datum) {
    let mut shared = SHARED.exclusive();
    let database = database.value() as u32;
    if let Some(slot) = shared.slots.iter_mut().find(|slot| slot.database == database) {
        slot.worker = 0;
        slot.wanted |= code != 0;
    }
    let launcher = shared.launcher;
    drop(shared);
    set_latch(launcher);
}

/// Whether somebody wants to drop, rename or copy the database, which this process keeps from it.
fn is_database_wanted(database: u32) -> bool {
    let tag = pg_sys::LOCKTAG {
        locktag_field1: 0,
        locktag_field2: pg_sys::DatabaseRelationId.to_u32(),
        locktag_field3: database,
        locktag_field4: 0,
        locktag_type: pg_sys::LockTagType::LOCKTAG_OBJECT as u8,
        locktag_lockmethodid: pg_sys::DEFAULT_LOCKMETHOD as u8,
    };
    // The lock that a new connection takes for a moment; it is not to be had while one of those commands runs.
    let mode = pg_sys::RowExclusiveLock as i32;
    transaction(|| {
        // SAFETY: the tag is copied, and the lock given back at once.
        let free = unsafe {
            let result = pg_sys::LockAcquire(&raw const tag, mode, false, true);
            let free = result != pg_sys::LockAcquireResult::LOCKACQUIRE_NOT_AVAIL;
            if free {
                pg_sys::LockRelease(&raw const tag, mode, false);
            }
            free
        };
        Ok(!free)
    })
    .unwrap_or(false)
}

#[derive(Default)]
struct Worker {
    /// Watches whose model can't be used: until when they rest, and how long that was.
    resting: HashMap<i64, (Instant, Duration)>,
    /// Embedded and failed since the last message, by watch.
    news: HashMap<i64, (i64, i64)>,
    told: Option<Instant>,
    /// What counting the queue took last.
    counted: Duration,
    /// How long until there is something to do; None: until something is queued.
    due: Option<Duration>,
}

impl Worker {
    /// Sees to some entries; how long to rest then. None: nothing is left to watch in this database.
    fn round(&mut self) -> Result<Option<Duration>, Failure> {
        let watches = transaction(|| {
            // SAFETY: catalogue look-ups by constant names.
            let there = unsafe {
                pg_sys::get_extension_oid(c"clip_search".as_ptr(), true) != pg_sys::Oid::INVALID
                    && pg_sys::get_namespace_oid(c"clip_search".as_ptr(), true) != pg_sys::Oid::INVALID
                    && pg_sys::get_relname_relid(
                        c"watch_live".as_ptr(),
                        pg_sys::get_namespace_oid(c"clip_search".as_ptr(), false),
                    ) != pg_sys::Oid::INVALID
            };
            if there { Watch::for_worker() } else { Ok(Vec::new()) }
        })?;
        if watches.is_empty() {
            return Ok(None);
        }
        let now = Instant::now();
        self.resting.retain(|id, _| watches.iter().any(|watch| watch.id == *id));
        let ready: Vec<i64> = watches
            .iter()
            .map(|watch| watch.id)
            .filter(|id| self.resting.get(id).is_none_or(|(until, _)| *until <= now))
            .collect();
        let claimed = transaction(|| {
            let given_up = queue::give_up(&ready)?;
            if given_up > 0 {
                pgrx::log!("clip_search: {given_up} rows are given up, see clip_search.failure");
            }
            queue::claim(&ready, guc::worker_batch(), None)
        })?;
        let Some((id, entries)) = claimed else {
            self.tell(&watches, true)?;
            return self.next(&ready).map(Some);
        };
        self.due = Some(Duration::ZERO);
        let name = watches.iter().find(|watch| watch.id == id).map_or("", Watch::name);
        let activity = std::ffi::CString::new(format!("clip_search: embedding {} rows of {name}", entries.len()))
            .unwrap_or_default();
        // SAFETY: the text is copied.
        unsafe { pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_RUNNING, activity.as_ptr()) };
        let outcome = transaction(|| queue::work(&entries, Patience::Some));
        let failure = match outcome {
            Ok(mut outcome) => {
                let done = outcome.done.remove(&id).unwrap_or_default();
                let news = self.news.entry(id).or_default();
                *news = (news.0 + done.0, news.1 + done.1);
                outcome.stuck.remove(&id)
            }
            Err(failure) => Some(failure),
        };
        match failure {
            None => drop(self.resting.remove(&id)),
            Some(failure) => {
                // Others' rows come first for a while.
                let rest = self.resting.get(&id).map_or(FIRST_REST, |(_, rest)| (*rest * 2).min(LONGEST_REST));
                self.resting.insert(id, (Instant::now() + rest, rest));
                pgrx::warning!(
                    "clip_search: rows of {name} can't be embedded, trying again in {} s: {}",
                    rest.as_secs(),
                    failure.message
                );
            }
        }
        self.tell(&watches, false)?;
        Ok(Some(Duration::ZERO))
    }

    /// How long until the next entry is due, or a watch has rested.
    fn next(&mut self, ready: &[i64]) -> Result<Duration, Failure> {
        let due = transaction(|| {
            let _rights = Rights::of_extension();
            Spi::connect_mut(|client| {
                let query = "SELECT (EXTRACT(epoch FROM min(due) - clock_timestamp()) * 1000)::bigint \
                     FROM clip_search.watch_queue WHERE watch = ANY ($1)";
                client.update(query, Some(1), &[ready.to_vec().into()]).map_err(spi)?.first().get::<i64>(1).map_err(spi)
            })
        })?;
        let due = due.map(|due| Duration::from_millis(u64::try_from(due).unwrap_or(0)));
        let now = Instant::now();
        let rested = self.resting.values().map(|(until, _)| until.saturating_duration_since(now));
        self.due = rested.chain(due).min();
        Ok(self.due.map_or(NAP, |due| due.clamp(Duration::from_millis(10), NAP)))
    }

    /// NOTIFY clip_search, with what has been done and what is left: once a second, and when the queue is empty. Counting
    /// may take a twentieth of the time.
    fn tell(&mut self, watches: &[Watch], now: bool) -> Result<(), Failure> {
        let pause = REPORT.max(self.counted * 20);
        if self.news.is_empty() || (!now && self.told.is_some_and(|told| told.elapsed() < pause)) {
            return Ok(());
        }
        let news = std::mem::take(&mut self.news);
        let start = Instant::now();
        transaction(|| {
            let _rights = Rights::of_extension();
            Spi::connect_mut(|client| {
                for watch in watches {
                    let Some((embedded, failed)) = news.get(&watch.id) else { continue };
                    let query = "SELECT pg_notify('clip_search', json_build_object('table', $1::oid::regclass::text, 'embedding', $2::text, \
                         'embedded', $3::bigint, 'failed', $4::bigint, \
                         'queued', (SELECT count(*) FROM clip_search.watch_queue q WHERE q.watch = $5))::text)";
                    let arguments = [
                        watch.relation.into(),
                        watch.embedding.as_str().into(),
                        (*embedded).into(),
                        (*failed).into(),
                        watch.id.into(),
                    ];
                    client.update(query, None, &arguments).map_err(spi)?;
                }
                Ok(())
            })
        })?;
        self.counted = start.elapsed();
        self.told = Some(Instant::now());
        Ok(())
    }
}

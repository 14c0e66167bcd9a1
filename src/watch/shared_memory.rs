//! The shared memory of launcher, workers and backends, through which a transaction that queues rows wakes the worker
//! of its database.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicBool, Ordering};

use pgrx::lwlock::PgLwLock;
use pgrx::pg_shmem_init;
use pgrx::prelude::*;
use pgrx::shmem::PGRXSharedMemory;

use crate::pg::transaction;

/// Maximum number of databases with a worker; further databases take turns with them, as when max_worker_processes (8
/// by default) is reached.
pub const DATABASES: usize = 64;
/// Maximum number of a database's watches that come last because they have ended a worker; a new one replaces the one
/// that expires first.
const SUSPECTS: usize = 8;
/// Maximum number of stuck workers of a database ([`Stuck`]).
const STUCK: usize = 2;
/// How long after its limit a worker counts as stuck, in microseconds.
const PATIENCE: i64 = 1_000_000;
/// How long a watch is suspected, in microseconds, which is PostgreSQL's unit of time: the first time, and at most.
const FIRST_SUSPICION: i64 = 5_000_000;
const LONGEST_SUSPICION: i64 = 3_600_000_000;

#[derive(Clone, Copy, Default)]
pub struct Slot {
    /// 0 if the slot is free.
    pub database: u32,
    /// The process id of the worker, once it is connected.
    pub worker: i32,
    /// Whether there is work that no worker has seen yet.
    pub wanted: bool,
    /// Whether the next worker may start without a pause: the last one had no work, made room for another database's
    /// worker, or was ended by the time limit for an owner's code.
    pub ended_well: bool,
    /// The watch whose rows the worker is embedding; 0: none.
    pub in_hand: i64,
    /// The owner of that watch's table.
    pub owner: pg_sys::Oid,
    /// When the owner's code that the worker is running should have ended; 0 if it runs none.
    pub limit: pg_sys::TimestampTz,
    /// Workers that can't be ended and were replaced.
    pub stuck: [Stuck; STUCK],
    /// Watches whose rows have ended a worker.
    pub suspects: [Suspect; SUSPECTS],
    /// When the next work is due, if the worker ended before it was due; otherwise 0. A PostgreSQL timestamp.
    pub due: pg_sys::TimestampTz,
}

/// A worker that runs code of a table's owner which PostgreSQL can't interrupt. The worker ends when that code does.
/// Until then another worker serves the other owners. This owner's queued rows wait, because the owner's code could
/// block the other worker as well.
#[derive(Clone, Copy, Default)]
pub struct Stuck {
    /// 0 if there is none.
    pub worker: i32,
    pub owner: pg_sys::Oid,
}

/// A watch whose rows have ended a worker. It comes last for a while: the first time for 5 s, then for four times as
/// long each time, up to an hour.
#[derive(Clone, Copy, Default)]
pub struct Suspect {
    /// 0 if there is none.
    pub watch: i64,
    pub until: pg_sys::TimestampTz,
    rest: i64,
}

impl Slot {
    /// Records the watch whose rows the worker was embedding when it ended.
    pub fn suspect(&mut self) {
        if self.in_hand == 0 {
            return;
        }
        let known = self.suspects.iter().position(|suspect| suspect.watch == self.in_hand);
        let soonest = (0..SUSPECTS).min_by_key(|&place| self.suspects[place].until).unwrap_or(0);
        let suspect = &mut self.suspects[known.unwrap_or(soonest)];
        let rest = if known.is_some() { (suspect.rest * 4).min(LONGEST_SUSPICION) } else { FIRST_SUSPICION };
        *suspect = Suspect { watch: self.in_hand, until: now() + rest, rest };
        self.in_hand = 0;
    }

    /// When the worker will count as stuck; None if it can't be replaced.
    pub fn stuck_at(&self) -> Option<pg_sys::TimestampTz> {
        let has_room = self.stuck.iter().any(|stuck| stuck.worker == 0);
        (self.worker != 0 && self.limit != 0 && has_room).then(|| self.limit + PATIENCE)
    }

    /// Moves the worker to the list of stuck workers. Returns its process id and the watch whose rows it is embedding.
    pub fn set_aside(&mut self) -> Option<(i32, i64)> {
        let place = self.stuck.iter_mut().find(|stuck| stuck.worker == 0)?;
        *place = Stuck { worker: self.worker, owner: self.owner };
        let found = (self.worker, self.in_hand);
        self.suspect();
        (self.worker, self.limit, self.wanted) = (0, 0, true);
        Some(found)
    }

    /// Whether the slot contains nothing that is needed after its worker has ended.
    pub fn is_free(&self) -> bool {
        !self.wanted && self.due == 0 && self.stuck.iter().all(|stuck| stuck.worker == 0)
    }

    pub fn is_wanted(&self) -> bool {
        self.wanted || (self.due != 0 && self.due <= now())
    }
}

pub fn now() -> pg_sys::TimestampTz {
    // SAFETY: reads the clock.
    unsafe { pg_sys::GetCurrentTimestamp() }
}

/// This database's slot, if this process is its current worker. A worker that was replaced must not change its
/// successor's values.
fn of_worker(shared: &mut Shared, database: u32) -> Option<&mut Slot> {
    // SAFETY: a variable that is set at the start of the process.
    let me = unsafe { pg_sys::MyProcPid };
    shared.slots.iter_mut().find(|slot| slot.database == database && slot.worker == me)
}

/// Records the watch whose rows this worker is embedding, and the owner of its table.
pub fn set_in_hand(database: u32, watch: i64, owner: pg_sys::Oid) {
    if let Some(slot) = of_worker(&mut SHARED.exclusive(), database) {
        (slot.in_hand, slot.owner) = (watch, owner);
    }
}

/// Records that the worker has finished these rows, so their watch is no longer suspected.
pub fn set_done(database: u32) {
    if let Some(slot) = of_worker(&mut SHARED.exclusive(), database) {
        let ended = std::mem::take(&mut slot.in_hand);
        slot.suspects
            .iter_mut()
            .filter(|suspect| suspect.watch == ended)
            .for_each(|suspect| *suspect = Suspect::default());
    }
}

/// Records when the owner's code that this worker is running should have ended; 0 if it runs none.
pub fn set_limit(limit: pg_sys::TimestampTz) {
    // SAFETY: a variable that is set at the start of the process.
    let database = unsafe { (&raw const pg_sys::MyDatabaseId).read() }.to_u32();
    if let Some(slot) = of_worker(&mut SHARED.exclusive(), database) {
        slot.limit = limit;
    }
}

/// The owners whose code keeps a replaced worker of this database from ending.
pub fn stuck_owners(database: u32) -> Vec<pg_sys::Oid> {
    let shared = SHARED.share();
    let slot = shared.slots.iter().find(|slot| slot.database == database);
    let stuck = slot.map(|slot| slot.stuck).unwrap_or_default();
    stuck.iter().filter(|stuck| stuck.worker != 0).map(|stuck| stuck.owner).collect()
}

/// The suspected watches of this database, which come last, and until when.
pub fn suspects(database: u32) -> Vec<(i64, pg_sys::TimestampTz)> {
    let shared = SHARED.share();
    let slot = shared.slots.iter().find(|slot| slot.database == database);
    let suspects = slot.map(|slot| slot.suspects).unwrap_or_default();
    suspects.iter().filter(|suspect| suspect.watch != 0).map(|suspect| (suspect.watch, suspect.until)).collect()
}

#[derive(Clone, Copy)]
pub struct Shared {
    pub launcher: i32,
    /// Whether databases wait for a worker although no further worker can be started.
    pub crowded: bool,
    pub slots: [Slot; DATABASES],
}

impl Default for Shared {
    fn default() -> Self {
        Self { launcher: 0, crowded: false, slots: [Slot::default(); DATABASES] }
    }
}

// SAFETY: plain numbers.
unsafe impl PGRXSharedMemory for Shared {}

// SAFETY: initialised by `register` before anything reads it; see `is_preloaded`.
pub static SHARED: PgLwLock<Shared> = unsafe { PgLwLock::new(c"clip_search workers") };
static PRELOADED: AtomicBool = AtomicBool::new(false);

/// Whether the server has loaded the library at its start, and so has a launcher.
pub fn is_preloaded() -> bool {
    PRELOADED.load(Ordering::Relaxed)
}

/// Sets up the shared memory; returns false except in a postmaster that preloads the library.
pub fn register() -> bool {
    // SAFETY: a flag that only this thread writes.
    if !unsafe { pg_sys::process_shared_preload_libraries_in_progress } {
        return false;
    }
    PRELOADED.store(true, Ordering::Relaxed);
    pg_shmem_init!(SHARED);
    true
}

/// Wakes the worker when this transaction commits.
pub fn wake_at_commit() {
    transaction::after_commit(wake);
}

/// Notifies the worker of this database, or the launcher, of new work.
fn wake() {
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

/// The slot of a database, or a free slot if it has none.
pub fn slot(slots: &mut [Slot; DATABASES], database: u32) -> Option<&mut Slot> {
    let place = slots.iter().position(|slot| slot.database == database);
    let place = place.or_else(|| {
        let free = slots.iter().position(|slot| slot.database == 0)?;
        slots[free] = Slot { database, ..Slot::default() };
        Some(free)
    })?;
    Some(&mut slots[place])
}

pub fn set_latch(process: i32) {
    if process == 0 {
        return;
    }
    // SAFETY: the look-up returns an entry of shared memory or null; setting the latch of a process that has just ended
    // wakes the process that now has its slot, which is harmless.
    unsafe {
        let found = pg_sys::BackendPidGetProc(process);
        if !found.is_null() {
            pg_sys::SetLatch(&raw mut (*found).procLatch);
        }
    }
}

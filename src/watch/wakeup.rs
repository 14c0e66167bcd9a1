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
/// The duration, in microseconds: PostgreSQL's unit of time.
const FIRST_SUSPICION: i64 = 5_000_000;
const LONGEST_SUSPICION: i64 = 3_600_000_000;

#[derive(Clone, Copy, Default)]
pub struct Slot {
    /// 0: free.
    pub database: u32,
    /// The worker's process, once it is connected.
    pub worker: i32,
    /// There is work that no worker has seen yet.
    pub wanted: bool,
    /// The last worker ended because it had no work, not because of an error or to make room for another database's
    /// worker.
    pub at_peace: bool,
    /// The watch whose rows the worker is embedding; 0: none.
    pub in_hand: i64,
    /// Watches whose rows have ended a worker.
    pub suspects: [Suspect; SUSPECTS],
    /// When the next work is due, although no worker waits for it: 0, or PostgreSQL's time.
    pub due: pg_sys::TimestampTz,
}

/// A watch whose rows have ended a worker. It comes last for 5 s after the first time, then for four times as long each
/// time, up to an hour.
#[derive(Clone, Copy, Default)]
pub struct Suspect {
    /// 0: none.
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

    pub fn is_wanted(&self) -> bool {
        self.wanted || (self.due != 0 && self.due <= now())
    }
}

pub fn now() -> pg_sys::TimestampTz {
    // SAFETY: reads the clock.
    unsafe { pg_sys::GetCurrentTimestamp() }
}

/// Records the watch whose rows this database's worker is embedding, 0 for none; the work on the previous rows has
/// finished.
pub fn set_in_hand(database: u32, watch: i64) {
    let mut shared = SHARED.exclusive();
    if let Some(slot) = slot(&mut shared.slots, database) {
        let ended = std::mem::replace(&mut slot.in_hand, watch);
        if watch == 0 {
            slot.suspects
                .iter_mut()
                .filter(|suspect| suspect.watch == ended)
                .for_each(|suspect| *suspect = Suspect::default());
        }
    }
}

/// Watches of this database that come last, and until when.
pub fn suspects(database: u32) -> Vec<(i64, pg_sys::TimestampTz)> {
    let shared = SHARED.share();
    let slot = shared.slots.iter().find(|slot| slot.database == database);
    let suspects = slot.map(|slot| slot.suspects).unwrap_or_default();
    suspects.iter().filter(|suspect| suspect.watch != 0).map(|suspect| (suspect.watch, suspect.until)).collect()
}

#[derive(Clone, Copy)]
pub struct Shared {
    pub launcher: i32,
    /// Databases wait for a worker, and no further worker can be started.
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

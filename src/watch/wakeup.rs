//! How a transaction that queues rows wakes the worker of its database: what launcher, workers and backends share.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicBool, Ordering};

use pgrx::lwlock::PgLwLock;
use pgrx::pg_shmem_init;
use pgrx::prelude::*;
use pgrx::shmem::PGRXSharedMemory;

use crate::pg::transaction;

/// Databases that have a worker at a time; further ones take turns with them, as when max_worker_processes is reached, which
/// is 8 by default.
pub const DATABASES: usize = 64;
/// Watches of a database that are left for last since they have ended a worker; the earliest makes room for another.
const SUSPECTS: usize = 8;
/// How long, in microseconds: PostgreSQL's unit of time.
const FIRST_SUSPICION: i64 = 5_000_000;
const LONGEST_SUSPICION: i64 = 3_600_000_000;

#[derive(Clone, Copy, Default)]
pub struct Slot {
    /// 0: free.
    pub database: u32,
    /// The worker's process, once it is connected.
    pub worker: i32,
    /// There is something to do that no worker has seen yet.
    pub wanted: bool,
    /// The last worker ended since it had nothing to do, and not by an error or for somebody else's sake.
    pub at_peace: bool,
    /// The watch whose rows the worker has in hand; 0: none.
    pub in_hand: i64,
    /// Watches whose rows have ended a worker.
    pub suspects: [Suspect; SUSPECTS],
    /// When there will be something to do again, though no worker waits for it: 0, or PostgreSQL's time.
    pub due: pg_sys::TimestampTz,
}

/// A watch whose rows have ended a worker. It comes last for a while: first for 5 s, then four times as long each time, up
/// to an hour.
#[derive(Clone, Copy, Default)]
pub struct Suspect {
    /// 0: none.
    pub watch: i64,
    pub until: pg_sys::TimestampTz,
    rest: i64,
}

impl Slot {
    /// Remembers the watch whose rows a worker had in hand as it ended.
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

/// Notes which watch's rows this database's worker has in hand, 0 for none, and that the last ones have come to an end.
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

/// Watches of this database that are left for last, and until when.
pub fn suspects(database: u32) -> Vec<(i64, pg_sys::TimestampTz)> {
    let shared = SHARED.share();
    let slot = shared.slots.iter().find(|slot| slot.database == database);
    let suspects = slot.map(|slot| slot.suspects).unwrap_or_default();
    suspects.iter().filter(|suspect| suspect.watch != 0).map(|suspect| (suspect.watch, suspect.until)).collect()
}

#[derive(Clone, Copy)]
pub struct Shared {
    pub launcher: i32,
    /// Databases wait for a worker, and no more can be started.
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

/// Sets up what is shared; false but in a postmaster that preloads the library.
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

/// Tells the worker of this database, or the launcher, that there is something to do.
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

/// The place of a database, a free one if it has none.
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
    // wakes whoever has its place, which harms nobody.
    unsafe {
        let found = pg_sys::BackendPidGetProc(process);
        if !found.is_null() {
            pg_sys::SetLatch(&raw mut (*found).procLatch);
        }
    }
}

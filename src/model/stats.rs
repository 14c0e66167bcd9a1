//! Counters and timings of the embedding functions, for each model.
//!
//! With the library in `shared_preload_libraries` the counters are in shared memory and cover all connections;
//! otherwise they cover this connection only. They are lost when the server stops.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};

use clip::stats::{Figures, Table};
use pgrx::lwlock::PgLwLock;
use pgrx::prelude::*;
use pgrx::{PGRXSharedMemory, pg_shmem_init};

/// The counters in shared memory.
#[derive(Clone, Copy, Default)]
struct Shared(Table);

// SAFETY: plain data without pointers, the same in every process.
#[allow(unsafe_code)]
unsafe impl PGRXSharedMemory for Shared {}

// SAFETY: no other symbol has this name.
#[allow(unsafe_code)]
static SHARED: PgLwLock<Shared> = unsafe { PgLwLock::new(c"clip_search_stats") };
static IS_SHARED: AtomicBool = AtomicBool::new(false);

thread_local! {
    static OWN: RefCell<Table> = RefCell::default();
}

/// Requests the shared memory if the postmaster loads the library.
#[allow(unsafe_code)]
pub fn register() {
    // SAFETY: a flag that only this thread writes; the hooks that are set are called by the postmaster.
    if unsafe { pg_sys::process_shared_preload_libraries_in_progress } {
        pg_shmem_init!(SHARED);
        IS_SHARED.store(true, Ordering::Relaxed);
    }
}

fn is_shared() -> bool {
    IS_SHARED.load(Ordering::Relaxed)
}

/// Counts a call.
pub fn record(model: &str, figures: &Figures) {
    let now = now();
    if is_shared() {
        SHARED.exclusive().0.add(model, figures, now);
    } else {
        OWN.with_borrow_mut(|table| table.add(model, figures, now));
    }
}

fn now() -> i64 {
    pgrx::datum::clock_timestamp().into_inner()
}

#[pg_extern(volatile, parallel_restricted)]
#[allow(clippy::type_complexity)]
fn clip_stats() -> TableIterator<
    'static,
    (
        name!(model, String),
        name!(calls, i64),
        name!(images, i64),
        name!(texts, i64),
        name!(errors, i64),
        name!(memo_hits, i64),
        name!(runs, i64),
        name!(loads, i64),
        name!(load_ms, f64),
        name!(decode_ms, f64),
        name!(inference_ms, f64),
        name!(total_ms, f64),
        name!(since, Option<TimestampWithTimeZone>),
        name!(shared, bool),
    ),
> {
    let shared = is_shared();
    let table = if shared { SHARED.share().0 } else { OWN.with_borrow(|table| *table) };
    let since = TimestampWithTimeZone::try_from(table.since).ok();
    let ms = |micros: u64| micros as f64 / 1e3;
    let rows: Vec<_> = table
        .rows()
        .map(|(name, f)| {
            let counts = [f.calls, f.images, f.texts, f.errors, f.memo_hits, f.runs, f.loads].map(|n| n as i64);
            let [calls, images, texts, errors, hits, runs, loads] = counts;
            let (name, times) = (name.to_owned(), [f.loading, f.decoding, f.inference, f.total].map(ms));
            let [load, decode, inference, total] = times;
            (name, calls, images, texts, errors, hits, runs, loads, load, decode, inference, total, since, shared)
        })
        .collect();
    TableIterator::new(rows)
}

#[pg_extern(volatile, parallel_restricted)]
fn clip_reset_stats() {
    if is_shared() {
        *SHARED.exclusive() = Shared::default();
    } else {
        OWN.with_borrow_mut(|table| *table = Table::default());
    }
}

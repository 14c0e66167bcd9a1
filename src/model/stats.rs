//! What the embedding functions have done and how long it took, for each model.
//!
//! With the library in `shared_preload_libraries` the figures are in shared memory and cover all connections; otherwise
//! they are this connection's own. They are lost when the server stops.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use clip::embedder::Embedder;
use clip::image::Limits;
use clip::image::synthetic;
use clip::stats::{Figures, Table};
use pgrx::lwlock::PgLwLock;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use pgrx::{PGRXSharedMemory, pg_shmem_init};

use crate::guc;
use crate::model::loaded;
use crate::pg::error::report;

/// The figures in shared memory.
#[derive(Clone, Copy, Default)]
struct Shared(Table);

// SAFETY: plain data without pointers, the same in every process.
#[allow(unsafe_code)]
unsafe impl PGRXSharedMemory for Shared {}

// SAFETY: nothing else has this name.
#[allow(unsafe_code)]
static SHARED: PgLwLock<Shared> = unsafe { PgLwLock::new(c"clip_search_stats") };
static IS_SHARED: AtomicBool = AtomicBool::new(false);

thread_local! {
    static OWN: RefCell<Table> = RefCell::default();
}

/// Asks for the shared memory, where the library is loaded by the postmaster.
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

#[pg_extern(volatile, parallel_restricted, cost = 1000000)]
#[allow(clippy::type_complexity)]
fn clip_benchmark(
    model: default!(Option<&str>, "NULL"),
) -> Result<TableIterator<'static, (name!(step, String), name!(items, i32), name!(ms_each, f64))>, ErrorReport> {
    let model = model.map_or_else(guc::model, str::to_owned);
    let embedder = loaded::fresh(&model)?;
    benchmark(embedder).map(TableIterator::new).map_err(report)
}

/// Latency of each step, on made-up photos and texts: (what, items, milliseconds an item).
fn benchmark(mut clip: Embedder) -> clip::Result<Vec<(String, i32, f64)>> {
    let limits = Limits { exact_jpeg: guc::limits().exact_jpeg, ..Limits::default() };
    let mut pulse = || {
        pgrx::check_for_interrupts!();
    };
    let mut rows = Vec::new();
    let mut time = |what: &str, items: usize, work: &mut dyn FnMut() -> clip::Result<()>| {
        let start = Instant::now();
        work()?;
        rows.push((what.to_owned(), items as i32, start.elapsed().as_secs_f64() * 1e3 / items as f64));
        clip::Result::Ok(())
    };
    let has = (clip.model.vision.is_some(), clip.model.text.is_some());
    if has.0 {
        let photos = (0..16).map(|seed| synthetic::photo(640, 480, seed)).collect::<clip::Result<Vec<_>>>()?;
        let photos: Vec<&[u8]> = photos.iter().map(Vec::as_slice).collect();
        let large = synthetic::photo(4000, 3000, 99)?;
        let mut embed = |files: &[&[u8]]| clip.embed_images(files, &limits, &mut pulse).map(drop);
        time("first photo of 0.3 megapixels, with the load of the image tower", 1, &mut || embed(&photos[..1]))?;
        time("photo of 0.3 megapixels, one by one", 16, &mut || photos.iter().try_for_each(|photo| embed(&[photo])))?;
        time("photo of 0.3 megapixels, in one array", 16, &mut || embed(&photos))?;
        time("photo of 12 megapixels", 2, &mut || [&large, &large].iter().try_for_each(|photo| embed(&[photo])))?;
    }
    if has.1 {
        let mut embed = |texts: &[&str]| clip.embed_texts(texts, true, &mut pulse).map(drop);
        let few: Vec<String> = (0..20).map(|n| format!("photo number {n} on a wall")).collect();
        let many = "a rather long caption of a photograph that has much to tell ".repeat(5);
        let together: Vec<&str> = few.iter().map(String::as_str).collect();
        time("first text, with the load of the text tower", 1, &mut || embed(&["a cat on a mat"]))?;
        time("text of a few words, one by one", 20, &mut || few.iter().try_for_each(|text| embed(&[text])))?;
        time("text of a few words, in one array", 20, &mut || embed(&together))?;
        time("text of 60 words", 5, &mut || (0..5).try_for_each(|_| embed(&[&many])))?;
    }
    Ok(rows)
}

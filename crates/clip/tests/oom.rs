//! Makes allocations fail: the n-th large one, for every n, with each format and function, in any thread. The result
//! must be an error each time, never an abort, which would end this test's process.
//!
//! Rust's allocator does not see C's allocations. libjpeg-turbo returns an error if one fails;
//! `tests/embed/test_image_limits.py` tests this with a limit on the address space.
#![allow(unsafe_code)]

mod files;

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use clip::Kind;
use clip::clustering::agglomerative::{Linkage, agglomerate};
use clip::image::info::info;
use clip::image::preprocess::Preprocess;
use clip::image::thumbnail::{Format, thumbnail};
use clip::image::{Limits, decode_for, to_tensor};
use clip::memory::Allocator;

/// The minimum size of a large allocation, in bytes.
static LARGE: AtomicUsize = AtomicUsize::new(64 << 10);
/// The number of large allocations that succeed before one fails; if it is negative, none fails.
static LEFT: AtomicI64 = AtomicI64::new(-1);

/// Only one test of this file runs at a time, because allocations fail in the whole process.
static TURN: Mutex<()> = Mutex::new(());

struct Failing;

impl Failing {
    fn fails(size: usize) -> bool {
        if size < LARGE.load(Ordering::Relaxed) {
            return false;
        }
        let next = |left: i64| (left >= 0).then(|| left - 1);
        LEFT.fetch_update(Ordering::AcqRel, Ordering::Acquire, next) == Ok(0)
    }
}

// SAFETY: this is the system's allocator, except that calls may return null, as any call may.
unsafe impl GlobalAlloc for Failing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's obligations are the system's.
        if Self::fails(layout.size()) { std::ptr::null_mut() } else { unsafe { System.alloc(layout) } }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as in `alloc`.
        if Self::fails(layout.size()) { std::ptr::null_mut() } else { unsafe { System.alloc_zeroed(layout) } }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as in `alloc`.
        unsafe { System.dealloc(memory, layout) };
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as in `alloc`.
        if Self::fails(size) { std::ptr::null_mut() } else { unsafe { System.realloc(memory, layout, size) } }
    }
}

#[global_allocator]
static ALLOCATOR: Allocator<Failing> = Allocator(Failing);

fn embed(bytes: &[u8]) -> clip::Result<()> {
    let (limits, preprocess) = (Limits { exact_jpeg: true, ..Limits::default() }, Preprocess::clip(224));
    let pixels = decode_for(bytes, &limits, &preprocess)?.prepare(&preprocess, &limits)?;
    // The embedder allocates the tensor, once for all images of a call, so this allocation must not fail here.
    LEFT.store(-1, Ordering::Release);
    let mut tensor = ndarray::Array3::zeros((3, 224, 224));
    to_tensor(&pixels, &preprocess, tensor.view_mut());
    Ok(())
}

/// An operation on a file.
type Work = fn(&[u8]) -> clip::Result<()>;

/// Makes each large allocation of the work fail in turn. Returns the number of large allocations.
fn fail_each(name: &str, may_hide: bool, mut work: impl FnMut() -> clip::Result<()>) -> usize {
    work().unwrap_or_else(|error| panic!("{name}: {error}"));
    for allowed in 0.. {
        LEFT.store(allowed, Ordering::Release);
        let result = work();
        let failed = LEFT.swap(-1, Ordering::AcqRel) < 0;
        match result {
            Ok(()) => {
                // Each allocation has failed once, and in this round none was left to fail.
                assert!(!failed || may_hide, "{name}: allocation {allowed} failed unseen");
                return allowed as usize;
            }
            Err(error) => {
                let what = format!("{name}, allocation {allowed}: {error}");
                assert!(failed && error.kind == Kind::OutOfMemory, "{what}");
            }
        }
        assert!(allowed < 10_000, "{name} does not end");
    }
    unreachable!()
}

const FUNCTIONS: [(&str, Work); 5] = [
    ("embed", embed),
    ("info", |bytes| info(bytes, &Limits::default()).map(drop)),
    ("thumbnail as JPEG", |bytes| thumbnail(bytes, 300, Format::Jpeg, &Limits::default()).map(drop)),
    ("thumbnail as PNG", |bytes| thumbnail(bytes, 300, Format::Png, &Limits::default()).map(drop)),
    ("thumbnail as WebP", |bytes| thumbnail(bytes, 300, Format::WebP, &Limits::default()).map(drop)),
];

#[test]
fn every_failed_allocation_is_an_error() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    LARGE.store(64 << 10, Ordering::Release);
    let mut failures = 0;
    for file in files::of_every_format(600, 401) {
        for (name, function) in FUNCTIONS {
            failures += fail_each(&format!("{} {name}", file.name), name == "embed", || function(&file.bytes));
        }
    }
    println!("{failures} failed allocations");
    assert!(failures > 150, "only {failures} allocations failed");
}

/// Whether the crate was built with the decoder of a format.
fn is_built_in(folder: &str) -> bool {
    match folder {
        "heic" => cfg!(feature = "heic"),
        "avif" => cfg!(feature = "avif"),
        "jxl" => cfg!(feature = "jxl"),
        _ => true,
    }
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures")
}

/// Tests files that other programs wrote. They are small, so smaller allocations count as large.
#[test]
fn every_failed_allocation_is_an_error_in_stored_files() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    LARGE.store(16 << 10, Ordering::Release);
    for folder in ["heic", "avif", "jxl", "tiff"] {
        let mut failures = 0;
        for entry in std::fs::read_dir(fixtures().join(folder)).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|found| found != folder) {
                continue;
            }
            let bytes = std::fs::read(&path).unwrap();
            for (name, function) in &FUNCTIONS[..3] {
                if function(&bytes).is_err() {
                    continue;
                }
                failures += fail_each(&format!("{} {name}", path.display()), *name == "embed", || function(&bytes));
            }
        }
        println!("{folder}: {failures} failed allocations");
        assert!(failures > 20 || !is_built_in(folder), "only {failures} allocations failed in {folder}");
    }
}

/// A length that a file states must not be allocated: the EXIF chunk of a WebP of 60 bytes claims to have 4 GB.
#[test]
fn a_stated_length_is_not_allocated() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut bytes = b"RIFF\x34\0\0\0WEBPVP8X\x0a\0\0\0\x08\0\0\0\0\0\0\0\0\0".to_vec();
    bytes.extend(b"VP8L\x0e\0\0\0\x2f\0\0\0\0\x07\x10\x11\x11\x88\x88\xfe\x07\0");
    bytes.extend(b"EXIF\xf0\xff\xff\xff");
    assert_eq!(bytes.len(), 60);
    LARGE.store(64 << 20, Ordering::Release);
    for (name, function) in FUNCTIONS {
        LEFT.store(0, Ordering::Release);
        let result = function(&bytes);
        assert_ne!(result.err().map(|error| error.kind), Some(Kind::OutOfMemory), "{name}");
    }
    LEFT.store(-1, Ordering::Release);
}

/// Unit vectors around seven directions.
fn vectors(count: usize, dimensions: usize) -> ndarray::Array2<f32> {
    let mut state = 1_u32;
    let mut rows = ndarray::Array2::from_shape_fn((count, dimensions), |(row, column)| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let noise = (state >> 8) as f32 / (1 << 24) as f32 - 0.5;
        noise + if column == row % 7 { 3.0 } else { 0.0 }
    });
    for mut row in rows.rows_mut() {
        let length = row.dot(&row).sqrt();
        row /= length;
    }
    rows
}

#[test]
fn every_failed_allocation_is_an_error_in_clustering() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    LARGE.store(64 << 10, Ordering::Release);
    let rows = vectors(1500, 64);
    for linkage in [Linkage::Average, Linkage::Single] {
        let cluster = |threads| agglomerate(rows.view(), 0.5, linkage, threads, &mut |_| ());
        let labels = cluster(1).unwrap();
        let failures = fail_each(&format!("{linkage:?} linkage"), false, || cluster(1).map(drop));
        assert!(failures > 3, "only {failures} allocations failed");
        // If an allocation fails in another thread, that thread's work ends, and the others do the rest.
        for allowed in 0..100 {
            LEFT.store(allowed, Ordering::Release);
            let result = cluster(2);
            LEFT.store(-1, Ordering::Release);
            match result {
                Ok(found) => assert_eq!(found, labels, "allocation {allowed}"),
                Err(error) => assert_eq!(error.kind, Kind::OutOfMemory, "allocation {allowed}: {error}"),
            }
        }
    }
}

//! Failing allocations: the n-th large one, for every n, in each format and function. The result is always an error,
//! never an abort, which would end this test's process.
//!
//! Rust's allocator does not see C's allocations; libjpeg-turbo returns an error for a failed allocation, which
//! `tests/embed/test_image_limits.py` tests with a limit on the address space.
#![allow(unsafe_code)]

mod files;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use clip::Kind;
use clip::image::info::info;
use clip::image::preprocess::Preprocess;
use clip::image::thumbnail::{Format, thumbnail};
use clip::image::{Limits, decode_for, to_tensor};
use clip::memory::Allocator;

/// The minimum size of a large allocation.
const LARGE: usize = 64 << 10;

thread_local! {
    /// The number of large allocations that succeed before one fails; none fails if it is negative.
    static LEFT: Cell<i64> = const { Cell::new(-1) };
}

struct Failing;

impl Failing {
    fn fails(size: usize) -> bool {
        if size < LARGE {
            return false;
        }
        LEFT.try_with(|left| {
            let now = left.get();
            left.set((now - 1).max(-1));
            now == 0
        })
        .unwrap_or(false)
    }
}

// SAFETY: the system's allocator, except for calls that return null, as any call may.
unsafe impl GlobalAlloc for Failing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's obligations are the system's.
        if Self::fails(layout.size()) { std::ptr::null_mut() } else { unsafe { System.alloc(layout) } }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        if Self::fails(layout.size()) { std::ptr::null_mut() } else { unsafe { System.alloc_zeroed(layout) } }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) };
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above.
        if Self::fails(size) { std::ptr::null_mut() } else { unsafe { System.realloc(memory, layout, size) } }
    }
}

#[global_allocator]
static ALLOCATOR: Allocator<Failing> = Allocator(Failing);

fn embed(bytes: &[u8]) -> clip::Result<()> {
    let (limits, preprocess) = (Limits { exact_jpeg: true, ..Limits::default() }, Preprocess::clip(224));
    let pixels = decode_for(bytes, &limits, &preprocess)?.prepare(&preprocess, &limits)?;
    // The tensor is allocated by the embedder, once for all images of a call.
    LEFT.set(-1);
    let mut tensor = ndarray::Array3::zeros((3, 224, 224));
    to_tensor(&pixels, &preprocess, tensor.view_mut());
    Ok(())
}

/// A piece of work on a file.
type Work = fn(&[u8]) -> clip::Result<()>;

#[test]
fn every_failed_allocation_is_an_error() {
    let functions: [(&str, Work); 5] = [
        ("embed", embed),
        ("info", |bytes| info(bytes, &Limits::default()).map(drop)),
        ("thumbnail as JPEG", |bytes| thumbnail(bytes, 300, Format::Jpeg, &Limits::default()).map(drop)),
        ("thumbnail as PNG", |bytes| thumbnail(bytes, 300, Format::Png, &Limits::default()).map(drop)),
        ("thumbnail as WebP", |bytes| thumbnail(bytes, 300, Format::WebP, &Limits::default()).map(drop)),
    ];
    let mut failures = 0;
    for file in files::of_every_format(600, 401) {
        for (name, function) in functions {
            function(&file.bytes).unwrap_or_else(|error| panic!("{} {name}: {error}", file.name));
            for allowed in 0.. {
                LEFT.set(allowed);
                let result = function(&file.bytes);
                let failed = LEFT.replace(-1) < 0;
                match result {
                    Ok(()) => {
                        // Every allocation has failed once, and in the last round none was left to fail.
                        assert!(!failed || name == "embed", "{} {name}: allocation {allowed} failed unseen", file.name);
                        break;
                    }
                    Err(error) => {
                        let what = format!("{} {name}, allocation {allowed}: {error}", file.name);
                        assert!(failed && error.kind == Kind::OutOfMemory, "{what}");
                        failures += 1;
                    }
                }
                assert!(allowed < 1000, "{} {name} does not end", file.name);
            }
        }
    }
    println!("{failures} failed allocations");
    assert!(failures > 150, "only {failures} allocations failed");
}

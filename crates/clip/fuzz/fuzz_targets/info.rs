//! Reads the header of image bytes. It must never panic, and the values must be valid for the format.
#![no_main]

use clip::image::Limits;
use clip::image::info::info;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // Headers are read without a limit on pixels, so the size may be any number.
    match info(bytes, &Limits { max_memory: 64 << 20, ..Limits::default() }) {
        Ok(header) => {
            assert!(header.width > 0 && header.height > 0);
            assert!((1..=8).contains(&header.orientation));
        }
        Err(error) => assert_ne!(error.kind, clip::Kind::Internal, "{error}"),
    }
});

//! Converts image bytes to a thumbnail in each format. The thumbnail must be a readable image.
#![no_main]

use clip::image::info::info;
use clip::image::thumbnail::{Format, thumbnail};
use clip::image::Limits;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((choice, bytes)) = bytes.split_last() else { return };
    let limits = Limits { max_pixels: 1_000_000, max_memory: 64 << 20, ..Limits::default() };
    let format = [Format::Jpeg, Format::Png, Format::WebP][usize::from(choice % 3)];
    let edge = 1 + u32::from(choice / 3);
    match thumbnail(bytes, edge, format, &limits) {
        Ok(small) => {
            let header = info(&small, &limits).expect("an image");
            assert!(header.width <= edge && header.height <= edge);
        }
        Err(error) => assert_ne!(error.kind, clip::Kind::Internal, "{error}"),
    }
});

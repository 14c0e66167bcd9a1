//! Converts image bytes to a model's input, and reads the header. There must be no uncaught panic and no memory over
//! the limit, and the header must be readable if the picture is.
#![no_main]

use clip::image::info::info;
use clip::image::preprocess::Preprocess;
use clip::image::{Limits, decode_for};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // 1 megapixel takes at most a few milliseconds, so many files are tried.
    let limits =
        Limits { max_pixels: 1_000_000, max_memory: 64 << 20, allow_truncated: true, ..Limits::default() };
    let (header, preprocess) = (info(bytes, &limits), Preprocess::clip(32));
    match decode_for(bytes, &limits, &preprocess) {
        Ok(decoded) => {
            let header = header.expect("a picture has a header");
            let upright = if header.orientation < 5 {
                (header.width, header.height)
            } else {
                (header.height, header.width)
            };
            assert_eq!(upright, decoded.size);
            let pixels = decoded.prepare(&preprocess, &limits).expect("within the limits");
            assert_eq!(pixels.dimensions(), (32, 32));
        }
        Err(error) => assert_ne!(error.kind, clip::Kind::Internal, "{error}"),
    }
});

//! Parses preprocessing configurations, and uses each on a small picture.
#![no_main]

use clip::image::preprocess::Preprocess;
use clip::image::{Limits, resize_and_crop};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(preprocess) = Preprocess::parse(text) {
        // The smallest GIF: one white pixel.
        const PIXEL: &[u8] = b"GIF89a\x01\0\x01\0\x80\0\0\xff\xff\xff\0\0\0,\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0;";
        let picture = clip::image::decode(PIXEL, &Limits::default()).expect("a GIF");
        let limits = Limits { max_memory: 256 << 20, ..Limits::default() };
        let _ = resize_and_crop(&picture.rgb, &preprocess, &limits);
    }
});

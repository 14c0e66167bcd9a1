//! Compares HEIC with pillow-heif's pixels (`tests/fixtures/heic.py`), with grids as phones write them, and decodes
//! truncated and changed files.
#![cfg(feature = "heic")]

mod files;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clip::Kind;
use clip::image::info::info;
use clip::image::{Limits, decode};
use image::RgbImage;
use serde_json::Value;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/heic")
}

fn read(file: &str) -> Vec<u8> {
    std::fs::read(fixtures().join(file)).unwrap()
}

fn mean_difference(a: &RgbImage, b: &RgbImage) -> f64 {
    assert_eq!(a.dimensions(), b.dimensions());
    a.iter().zip(b.iter()).map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>() / a.len() as f64
}

#[test]
fn pixels_are_pillow_heifs() {
    let index: Value = serde_json::from_slice(&read("index.json")).unwrap();
    for entry in index.as_array().unwrap() {
        let file = read(entry["file"].as_str().unwrap());
        let decoded = decode(&file, &Limits::default()).unwrap_or_else(|error| panic!("{entry}: {error}"));
        let reference = decode(&read(entry["reference"].as_str().unwrap()), &Limits::default()).unwrap().rgb;
        let off = mean_difference(&decoded.rgb, &reference);
        println!("{}: {off:.3}", entry["file"]);
        assert!(off <= entry["mean"].as_f64().unwrap(), "{entry}: {off} of 255 off on average");
        let header = info(&file, &Limits::default()).unwrap();
        let upright =
            if header.orientation < 5 { (header.width, header.height) } else { (header.height, header.width) };
        assert_eq!(("HEIC", upright), (header.format, decoded.size), "{entry}");
    }
}

/// A picture of this size, in tiles of 512 pixels as phones write them.
fn grid(width: u32, height: u32) -> (RgbImage, Vec<u8>) {
    let picture =
        RgbImage::from_fn(width, height, |x, y| image::Rgb([(x / 6) as u8, (y / 5) as u8, ((x + y) / 12) as u8]));
    let options = heifer::EncodeOptions { quality: 90, ..Default::default() };
    let file = heifer::encode_rgb8(width, height, picture.as_raw(), &options).unwrap();
    (picture, file)
}

#[test]
fn grids_are_put_together() {
    let (picture, file) = grid(1400, 1100);
    assert!(file.windows(4).any(|name| name == b"grid"));
    let decoded = decode(&file, &Limits::default()).unwrap();
    assert!(mean_difference(&decoded.rgb, &picture) < 2.0);
}

#[test]
fn limits_hold() {
    let (_, file) = grid(1400, 1100);
    let error = decode(&file, &Limits { max_pixels: 1_000_000, ..Limits::default() }).unwrap_err();
    assert_eq!(error.kind, Kind::LimitExceeded, "{error}");
    let error = decode(&file, &Limits { max_memory: 5_000_000, ..Limits::default() }).unwrap_err();
    assert_eq!((error.kind, error.message.as_str()), (Kind::LimitExceeded, "HEIC image needs too much memory"));
    let error = decode(&file, &Limits { interrupted: || true, ..Limits::default() }).unwrap_err();
    assert_eq!(error.kind, Kind::Interrupted);
}

static STOP: AtomicBool = AtomicBool::new(false);

#[test]
fn what_nothing_stops_is_left_behind() {
    // Large: one call of the decoder takes far longer than 0.05 s, after which it is left behind.
    let noise = RgbImage::from_fn(6000, 4000, |x, y| image::Rgb([(x * y) as u8, (x ^ y) as u8, (x * 7 + y * 3) as u8]));
    let mut webp = std::io::Cursor::new(Vec::new());
    noise.write_to(&mut webp, image::ImageFormat::WebP).unwrap();
    let file = webp.into_inner();
    let limits = Limits { interrupted: || STOP.load(Ordering::Relaxed), ..Limits::default() };
    let start = Instant::now();
    assert!(decode(&file, &limits).unwrap().rgb == noise);
    let whole = start.elapsed();
    let stopper = std::thread::spawn(|| {
        std::thread::sleep(Duration::from_millis(20));
        STOP.store(true, Ordering::Relaxed);
    });
    let start = Instant::now();
    let result = decode(&file, &limits);
    let took = start.elapsed();
    stopper.join().unwrap();
    assert!(result.is_err_and(|error| error.kind == Kind::Interrupted), "decoded in {took:?}");
    assert!(took < whole * 3 / 4, "{took:?}, and the whole takes {whole:?}");
    // The next one waits for what was left behind, and comes out right.
    STOP.store(false, Ordering::Relaxed);
    assert!(decode(&file, &limits).unwrap().rgb == noise);
}

#[test]
fn a_sequence_alone_is_refused_by_name() {
    let file = b"\0\0\0\x18ftyphevc\0\0\0\0msf1hevc\0\0\0\x10moov\0\0\0\x08trak";
    let error = decode(file, &Limits::default()).unwrap_err();
    assert_eq!(error.kind, Kind::Unsupported, "{error}");
    assert!(error.detail.as_deref().unwrap().contains("sequence"), "{error}");
    assert_eq!(info(file, &Limits::default()).unwrap_err().kind, Kind::Unsupported);
}

#[test]
fn cut_and_changed_files_are_errors() {
    files::cut_and_change(&read("plain.heic"));
}

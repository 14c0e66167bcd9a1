//! Compares the pixels of AVIF, JPEG XL and some kinds of TIFF with those of libavif, libjxl and tifffile
//! (`tests/fixtures/formats.py`), and decodes truncated and changed files.
#![cfg(all(feature = "avif", feature = "jxl"))]

mod files;

use std::path::{Path, PathBuf};

use clip::Kind;
use clip::image::info::info;
use clip::image::{Limits, decode};
use image::RgbImage;
use serde_json::Value;

const FOLDERS: [(&str, &str); 3] = [("avif", "AVIF"), ("jxl", "JPEG XL"), ("tiff", "TIFF")];

fn fixtures(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(folder)
}

fn read(folder: &str, file: &str) -> Vec<u8> {
    std::fs::read(fixtures(folder).join(file)).unwrap()
}

fn mean_difference(a: &RgbImage, b: &RgbImage) -> f64 {
    assert_eq!(a.dimensions(), b.dimensions());
    a.iter().zip(b.iter()).map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>() / a.len() as f64
}

#[test]
fn pixels_are_the_reference_decoders() {
    let mut wrong = Vec::new();
    for (folder, name) in FOLDERS {
        let index: Value = serde_json::from_slice(&read(folder, "index.json")).unwrap();
        for entry in index.as_array().unwrap() {
            let file = read(folder, entry["file"].as_str().unwrap());
            let decoded = match decode(&file, &Limits::default()) {
                Ok(decoded) => decoded,
                Err(error) => {
                    wrong.push(format!("{entry}: {error}"));
                    continue;
                }
            };
            let reference =
                decode(&read(folder, entry["reference"].as_str().unwrap()), &Limits::default()).unwrap().rgb;
            if decoded.rgb.dimensions() != reference.dimensions() {
                wrong.push(format!("{entry}: {:?}, not {:?}", decoded.rgb.dimensions(), reference.dimensions()));
                continue;
            }
            let off = mean_difference(&decoded.rgb, &reference);
            println!("{}: {off:.3}", entry["file"]);
            if off > entry["mean"].as_f64().unwrap() {
                wrong.push(format!("{entry}: {off} of 255 off on average"));
            }
            let header = info(&file, &Limits::default()).unwrap();
            let upright =
                if header.orientation < 5 { (header.width, header.height) } else { (header.height, header.width) };
            assert_eq!((name, upright), (header.format, decoded.size), "{entry}");
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn headers_say_what_is_in_the_file() {
    let of = |folder, file| {
        let header = info(&read(folder, file), &Limits::default()).unwrap();
        (header.channels, header.bits, header.frames, header.orientation)
    };
    assert_eq!(of("avif", "plain.avif"), (3, 8, 1, 1));
    assert_eq!(of("avif", "grey.avif"), (1, 8, 1, 1));
    assert_eq!(of("avif", "alpha.avif"), (4, 8, 1, 1));
    assert_eq!(of("avif", "bits10.avif"), (3, 10, 1, 1));
    assert_eq!(of("avif", "bits12.avif"), (3, 12, 1, 1));
    assert_eq!(of("avif", "turned6.avif"), (3, 8, 1, 6));
    assert_eq!(of("avif", "animated.avif"), (3, 8, 3, 1));
    assert_eq!(of("avif", "sequence.avif"), (3, 8, 2, 1));
    assert_eq!(of("avif", "sequence_alpha.avif"), (4, 8, 2, 1));
    assert_eq!(of("jxl", "lossy.jxl"), (3, 8, 1, 1));
    assert_eq!(of("jxl", "grey_alpha.jxl"), (2, 8, 1, 1));
    assert_eq!(of("jxl", "bits16.jxl"), (3, 16, 1, 1));
    assert_eq!(of("jxl", "jpeg_turned6.jxl"), (3, 8, 1, 6));
    assert_eq!(of("jxl", "animated.jxl"), (3, 8, 3, 1));
}

#[test]
fn a_restored_jpeg_is_the_jpeg() {
    for (restored, original) in [("jpeg.jxl", "cat.jpg"), ("jpeg_turned6.jxl", "cat_exif6.jpg")] {
        let found = decode(&read("jxl", restored), &Limits::default()).unwrap().rgb;
        assert!(found == decode(&read("images", original), &Limits::default()).unwrap().rgb, "{restored}");
    }
}

#[test]
fn limits_hold() {
    for (folder, file, name) in [("avif", "tiled.avif", "AVIF"), ("jxl", "groups.jxl", "JPEG XL")] {
        let file = read(folder, file);
        let error = decode(&file, &Limits { max_pixels: 50_000, ..Limits::default() }).unwrap_err();
        assert_eq!(error.kind, Kind::LimitExceeded, "{error}");
        let error = decode(&file, &Limits { max_memory: 500_000, ..Limits::default() }).unwrap_err();
        assert_eq!((error.kind, error.message), (Kind::LimitExceeded, format!("{name} image needs too much memory")));
        let error = decode(&file, &Limits { interrupted: || true, ..Limits::default() }).unwrap_err();
        assert_eq!(error.kind, Kind::Interrupted);
    }
}

#[test]
fn cut_and_changed_files_are_errors() {
    for (folder, file) in [("avif", "plain.avif"), ("avif", "alpha.avif"), ("jxl", "lossy.jxl"), ("jxl", "jpeg.jxl")] {
        files::cut_and_change(&read(folder, file));
    }
    // A cut may remove only its second picture, which is not decoded.
    let sequence = read("avif", "sequence_alpha.avif");
    files::change(&sequence);
    assert!(decode(&sequence[..sequence.len() / 2], &Limits::default()).is_err());
}

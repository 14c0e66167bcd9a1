//! Compares JPEGs that are decoded at a reduced size with Pillow's `draft` and `resize` with a box
//! (`tests/fixtures/smaller.py`), and with the full decode.

use std::path::{Path, PathBuf};

use clip::embedder::Embedder;
use clip::image::preprocess::Preprocess;
use clip::image::resample::Filter;
use clip::image::{Decoded, Limits, MIN_OVERSAMPLING, decode, decode_for, resize_and_crop};
use clip::model::Model;
use clip::{Kind, Result};
use serde_json::Value;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures")
}

fn read(file: &str) -> Vec<u8> {
    std::fs::read(fixtures().join(file)).unwrap()
}

fn exact() -> Limits {
    Limits { exact_jpeg: true, ..Limits::default() }
}

#[test]
fn pixels_equal_pillows() {
    let index: Value = serde_json::from_slice(&read("smaller/index.json")).unwrap();
    let mut factors = [0; 9];
    for entry in index.as_array().unwrap() {
        let file = read(entry["input"].as_str().unwrap());
        let preprocess = Preprocess::clip(entry["edge"].as_u64().unwrap() as u32);
        let decoded = decode_for(&file, &Limits::default(), &preprocess).unwrap();
        assert_eq!(u64::from(decoded.shrink), entry["shrink"].as_u64().unwrap(), "{entry}");
        let pixels = decoded.prepare(&preprocess, &Limits::default()).unwrap();
        let reference = decode(&read(entry["reference"].as_str().unwrap()), &Limits::default()).unwrap().rgb;
        let worst = pixels.iter().zip(reference.iter()).map(|(a, b)| a.abs_diff(*b)).max();
        assert_eq!((pixels.dimensions(), worst), (reference.dimensions(), Some(0)), "{entry}");
        factors[decoded.shrink as usize] += 1;

        // The picture must match the one at full size: a wrong rotation or a shift by half a pixel would be detected.
        let full = decode(&file, &Limits::default()).unwrap();
        assert_eq!((full.shrink, full.size), (1, decoded.size));
        let full = resize_and_crop(&full.rgb, &preprocess, &Limits::default()).unwrap();
        let off: u64 = pixels.iter().zip(full.iter()).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
        let mean = off as f64 / full.as_raw().len() as f64;
        assert!(mean < 3.0, "{entry}: {mean} of 255 off on average");
    }
    assert!([1, 2, 4, 8].iter().all(|factor| factors[*factor] >= 5), "{factors:?}");
}

#[test]
fn what_is_asked_to_be_exact_is() {
    let file = read("smaller/large.jpg");
    let clip = Preprocess::clip(224);
    let full = decode(&file, &Limits::default()).unwrap().rgb;
    assert_eq!(full.dimensions(), (1801, 1797));
    assert_eq!(decode_for(&file, &Limits::default(), &clip).unwrap().rgb.dimensions(), (901, 899));
    let nearest = Preprocess { filter: Filter::Nearest, ..clip.clone() };
    for (limits, preprocess) in [(exact(), &clip), (Limits::default(), &nearest)] {
        let decoded = decode_for(&file, &limits, preprocess).unwrap();
        assert!(decoded.rgb == full);
        assert!(
            decoded.prepare(preprocess, &Limits::default()).unwrap()
                == resize_and_crop(&full, preprocess, &Limits::default()).unwrap()
        );
    }
    // The side with the smaller reduction decides.
    let squash = |width, height| Preprocess {
        resize: clip::image::preprocess::Resize::Exact(width, height),
        crop: None,
        ..clip.clone()
    };
    let shrink = |p: &Preprocess| decode_for(&file, &Limits::default(), p).unwrap().shrink;
    let side = |length: u32, factor: u32| (f64::from(length) / f64::from(factor) / MIN_OVERSAMPLING) as u32;
    assert_eq!(shrink(&squash(side(1801, 4), 10)), 4);
    assert_eq!(shrink(&squash(side(1801, 4) + 1, 10)), 2);
    assert_eq!(shrink(&squash(10, side(1797, 2) + 1)), 1);
}

#[test]
fn limits_are_on_the_files_own_size() {
    let file = read("smaller/large.jpg");
    let pixels = 1801 * 1797;
    let result = |max_pixels| decode_for(&file, &Limits { max_pixels, ..Limits::default() }, &Preprocess::clip(28));
    assert_eq!(result(pixels - 1).unwrap_err().kind, Kind::LimitExceeded);
    assert_eq!(result(pixels).unwrap().shrink, 8);
}

/// Everything in the result for a file except its pixels.
fn outcome(result: Result<Decoded>) -> String {
    match result {
        Ok(decoded) => format!("{:?}, {:?}", decoded.size, decoded.truncated),
        Err(error) => format!("{error:?}"),
    }
}

#[test]
fn broken_files_fail_alike() {
    let mut files: Vec<Vec<u8>> = Vec::new();
    for folder in ["images", "corpus", "smaller"] {
        for entry in std::fs::read_dir(fixtures().join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|e| e == "jpg" || e == "bin") {
                files.push(std::fs::read(path).unwrap());
            }
        }
    }
    // Files that are truncated at each hundredth, or have a changed byte there.
    for name in ["images/cat.jpg", "images/coffee_progressive.jpg", "images/coffee_cmyk.jpg", "images/camera_grey.jpg"]
    {
        let file = read(name);
        for at in (0..100).map(|part| file.len() * part / 100) {
            files.push(file[..at].to_vec());
            let mut changed = file.clone();
            changed[at] ^= 0x55;
            files.push(changed);
        }
    }
    let (mut broken, mut truncated, mut smaller) = (0, 0, 0);
    for file in &files {
        for allow_truncated in [false, true] {
            let limits = Limits { allow_truncated, max_pixels: 10_000_000, ..Limits::default() };
            let full = decode(file, &limits);
            let expected = outcome(decode(file, &limits));
            for edge in [1, 4, 12] {
                let decoded = decode_for(file, &limits, &Preprocess::clip(edge));
                smaller += usize::from(decoded.as_ref().is_ok_and(|d| d.shrink > 1));
                assert_eq!(outcome(decoded), expected);
            }
            broken += usize::from(full.is_err());
            truncated += usize::from(full.is_ok_and(|d| d.truncated.is_some()));
        }
    }
    assert!(broken > 400 && truncated > 200 && smaller > 1000, "{broken} {truncated} {smaller}");
}

#[test]
fn embeddings_stay_close() {
    let library =
        std::env::var_os("ORT_DYLIB_PATH").map(PathBuf::from).expect("set ORT_DYLIB_PATH, or run \"make test\"");
    let mut clip = Embedder::new(Model::find(&[fixtures()], "clip-mini").unwrap(), library, 1);
    let file = read("smaller/large.jpg");
    let mut embed = |limits: Limits| clip.embed_images(&[&file], &limits, &mut || ()).unwrap().remove(0);
    let (smaller, full) = (embed(Limits::default()), embed(exact()));
    let cosine: f32 = smaller.iter().zip(&full).map(|(a, b)| a * b).sum();
    assert!((0.999..0.999_999_9).contains(&cosine), "{cosine}");
}

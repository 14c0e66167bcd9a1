//! Compares preprocessing with the pixels and tensors of the reference processors, which `tests/fixtures/preprocess.py`
//! writes.
//!
//! The stored pairs are a subset. To test all of them, run `preprocess.py --sweep DIR`, then `CLIP_PREPROCESS_SWEEP=DIR
//! cargo test --release -p clip --test preprocess -- --ignored --nocapture`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use clip::image::preprocess::Preprocess;
use clip::image::{Limits, decode, resize_and_crop, to_tensor};
use ndarray::Array3;
use serde_json::Value;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/preprocess")
}

/// The difference from the reference for one pair, if there is any.
///
/// The pixels must be equal, because they come from the same decoders and the same resampling. The tensor may differ by
/// one part in a million, which is the last digits of float32.
fn difference(folder: &Path, entry: &Value) -> Option<String> {
    let text = |key: &str| entry[key].as_str().unwrap();
    let read = |key: &str| {
        let bytes = std::fs::read(folder.join(text(key))).unwrap();
        decode(&bytes, &Limits::default()).unwrap().rgb
    };
    let preprocess = match Preprocess::parse(text("config")) {
        Ok(preprocess) => preprocess,
        Err(error) => return Some(format!("refused: {error}")),
    };
    let ours = resize_and_crop(&read("input"), &preprocess, &Limits::default()).unwrap();
    let reference = read("reference");
    if ours.dimensions() != reference.dimensions() {
        return Some(format!("{:?} pixels, not {:?}", ours.dimensions(), reference.dimensions()));
    }
    if let Some((width, height)) = preprocess.output_size() {
        assert_eq!((width, height), ours.dimensions(), "the stated size is the real one: {}", text("config"));
    }
    let off = ours.iter().zip(reference.iter()).filter(|(a, b)| a != b).count();
    if off > 0 {
        let worst = ours.iter().zip(reference.iter()).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        return Some(format!("{off} of {} values differ, by up to {worst}/255", ours.as_raw().len()));
    }

    let mut tensor = Array3::zeros((3, ours.height() as usize, ours.width() as usize));
    to_tensor(&ours, &preprocess, tensor.view_mut());
    let tensor = tensor.as_slice().unwrap();
    let close = |ours: f64, reference: f64| (ours - reference).abs() <= 1e-6 * reference.abs().max(1.0);
    for point in entry["points"].as_array().unwrap() {
        let (index, reference) = (point[0].as_u64().unwrap() as usize, point[1].as_f64().unwrap());
        if !close(f64::from(tensor[index]), reference) {
            return Some(format!("value {index} of the tensor is {}, not {reference}", tensor[index]));
        }
    }
    let mean = tensor.iter().map(|v| f64::from(*v)).sum::<f64>() / tensor.len() as f64;
    let reference = entry["mean"].as_f64().unwrap();
    (!close(mean, reference)).then(|| format!("the tensor's mean is {mean}, not {reference}"))
}

/// Compares every pair of an index. Returns the names of its configurations and images.
fn compare(folder: &Path) -> (BTreeSet<String>, BTreeSet<String>) {
    let index: Value = serde_json::from_slice(&std::fs::read(folder.join("index.json")).unwrap()).unwrap();
    let entries = index.as_array().unwrap();
    let wrong: Vec<String> = entries
        .iter()
        .filter_map(|entry| {
            difference(folder, entry).map(|what| format!("{} of {}: {what}", entry["name"], entry["input"]))
        })
        .collect();
    assert!(wrong.is_empty(), "{} of {} pairs differ:\n{}", wrong.len(), entries.len(), wrong.join("\n"));
    println!("{} pairs are the reference's", entries.len());
    let names = |key: &str| entries.iter().map(|entry| entry[key].as_str().unwrap().to_owned()).collect();
    (names("name"), names("input"))
}

#[test]
fn stored_pairs_equal_the_reference_processors() {
    let (configurations, images) = compare(&fixtures());
    assert!(configurations.len() >= 60, "only {} configurations", configurations.len());
    assert!(images.len() >= 20, "only {} images", images.len());
}

#[test]
#[ignore = "CLIP_PREPROCESS_SWEEP must name a directory that tests/fixtures/preprocess.py --sweep has written"]
fn sweep_of_all_pairs_equals_the_reference_processors() {
    let folder = std::env::var_os("CLIP_PREPROCESS_SWEEP").expect("CLIP_PREPROCESS_SWEEP names a directory");
    let (configurations, images) = compare(Path::new(&folder));
    assert!(configurations.len() >= 60 && images.len() >= 60, "{} × {}", configurations.len(), images.len());
}

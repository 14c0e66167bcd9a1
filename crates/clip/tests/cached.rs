//! Tests the cache of rewritten graphs: the vectors equal those of the model's own file, and damage is harmless.

use std::fs;
use std::path::{Path, PathBuf};

use clip::embedder::Embedder;
use clip::image::Limits;
use clip::model::Model;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures")
}

fn embedder(root: &Path, name: &str, cache: Option<&Path>) -> Embedder {
    let library =
        std::env::var_os("ORT_DYLIB_PATH").map(PathBuf::from).expect("set ORT_DYLIB_PATH, or run \"make test\"");
    let model = Model::find(&[root.to_owned()], name).unwrap();
    Embedder::new(model, library, 1).with_cache(cache.map(Path::to_owned))
}

/// The vectors of a text and of an image.
fn vectors(clip: &mut Embedder) -> [Vec<f32>; 2] {
    let photo = fs::read(fixtures().join("smaller/large.jpg")).unwrap();
    let image = clip.embed_images(&[&photo], &Limits::default(), &mut || ()).unwrap().remove(0);
    [clip.embed_texts(&["a photo of a cat"], true, &mut || ()).unwrap().remove(0).vector, image]
}

fn furthest(a: &[Vec<f32>; 2], b: &[Vec<f32>; 2]) -> f32 {
    a.iter().flatten().zip(b.iter().flatten()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("clip-cached-{name}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    folder
}

fn entries(cache: &Path) -> Vec<PathBuf> {
    let mut found: Vec<_> = fs::read_dir(cache).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found
}

#[test]
fn vectors_are_the_same_from_the_cache() {
    // A transformer, and a graph with convolutions, whose layout depends on the CPU.
    for (root, name) in [(fixtures(), "clip-mini"), (fixtures().join("../../models"), "photo-mini")] {
        let cache = folder(name);
        let expected = vectors(&mut embedder(&root, name, None));
        let mut first = embedder(&root, name, Some(&cache));
        assert!(furthest(&vectors(&mut first), &expected) < 1e-6, "{name}: written and mapped");
        assert_eq!((entries(&cache).len(), first.take_notes()), (2, Vec::new()), "{name}: a graph for each tower");
        let mut second = embedder(&root, name, Some(&cache));
        // During these runs the weights are converted.
        for run in 0..24 {
            assert!(furthest(&vectors(&mut second), &expected) < 1e-6, "{name}: mapped, run {run}");
        }
        second.load().unwrap();
        assert!(furthest(&vectors(&mut second), &expected) < 1e-6, "{name}: loaded for many");
        assert_eq!(entries(&cache).len(), 2);
        fs::remove_dir_all(cache).unwrap();
    }
}

#[test]
fn whether_texts_are_filled_up_is_kept() {
    // One model with a causal text tower, and one that takes the mean over all positions.
    let layouts = fixtures().join("layouts");
    for (root, name, padded) in [(fixtures(), "clip-mini", false), (layouts, "siglip", true)] {
        let cache = folder(&format!("padding-{name}"));
        let ids = |cache: Option<&Path>| embedder(&root, name, cache).tokens("a cat").unwrap().ids;
        let expected = ids(None);
        assert_eq!(expected.len() > 40, padded, "{name}: {} ids", expected.len());
        for _ in 0..3 {
            assert_eq!(ids(Some(&cache)), expected, "{name}");
        }
        fs::remove_dir_all(cache).unwrap();
    }
}

#[test]
fn what_is_damaged_is_written_anew() {
    let cache = folder("damaged");
    let expected = vectors(&mut embedder(&fixtures(), "clip-mini", None));
    vectors(&mut embedder(&fixtures(), "clip-mini", Some(&cache)));
    let kept = entries(&cache);
    let damages: [fn(&Path); 4] = [
        |entry| fs::write(entry.join("graph.onnx"), "no graph").unwrap(),
        |entry| fs::write(entry.join("graph.onnx"), "").unwrap(),
        |entry| fs::write(entry.join("weights.bin"), "short").unwrap(),
        |entry| fs::remove_file(entry.join("weights.bin")).unwrap(),
    ];
    for damage in damages {
        kept.iter().for_each(|entry| damage(entry));
        let mut clip = embedder(&fixtures(), "clip-mini", Some(&cache));
        assert!(furthest(&vectors(&mut clip), &expected) < 1e-6);
        assert_eq!((entries(&cache), clip.take_notes()), (kept.clone(), Vec::new()));
        assert!(kept.iter().all(|entry| fs::metadata(entry.join("weights.bin")).unwrap().len() > 1000));
    }
    fs::remove_dir_all(cache).unwrap();
}

#[test]
fn without_a_place_to_write_the_model_is_loaded_all_the_same() {
    let place = folder("denied");
    fs::write(&place, "a file, not a directory").unwrap();
    let expected = vectors(&mut embedder(&fixtures(), "clip-mini", None));
    let mut clip = embedder(&fixtures(), "clip-mini", Some(&place));
    assert!(furthest(&vectors(&mut clip), &expected) < 1e-6);
    let notes = clip.take_notes();
    assert!(notes.len() == 2 && notes[0].contains("could not be kept"), "{notes:?}");
    fs::remove_file(place).unwrap();
}

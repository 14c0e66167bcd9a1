//! Every export layout in `tests/fixtures/layouts` loads as it is and gives what onnxruntime gives in Python;
//! what cannot be used is refused with the reason.

use std::path::{Path, PathBuf};

use clip::Kind;
use clip::embedder::Embedder;
use clip::image::Limits;
use clip::model::Model;
use serde_json::Value;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures")
}

/// How a user names what an expectation is about: the directory, `directory:variant`, or a pair of directories.
fn spec(directory: &str, file: &str) -> String {
    let rest = file.trim_start_matches("expected").trim_end_matches(".json");
    match rest.trim_start_matches('_') {
        "" => directory.to_owned(),
        pair if pair.contains("_with_") => pair.replace("_with_", "+"),
        variant => variant.replacen(&format!("{directory}_"), &format!("{directory}:"), 1),
    }
}

fn embedder(spec: &str) -> clip::Result<Embedder> {
    let library =
        std::env::var_os("ORT_DYLIB_PATH").map(PathBuf::from).expect("set ORT_DYLIB_PATH to libonnxruntime.so");
    Ok(Embedder::new(Model::find(&[fixtures().join("layouts")], spec)?, library, 1))
}

fn check(spec: &str, expected: &Value) {
    let image = |name: &Value| std::fs::read(fixtures().join(name.as_str().unwrap())).unwrap();
    if let Some(error) = expected.get("error") {
        let photo = image(&"images/cat.png".into());
        let outcome = embedder(spec).and_then(|mut embedder| {
            if error["tower"] != "text" {
                embedder.embed_images(&[&photo], &Limits::default(), &mut || ())?;
            }
            embedder.embed_texts(&["a cat"], true, &mut || ()).map(|_| ())
        });
        let found = outcome.expect_err(spec);
        let kind = if error["kind"] == "MissingFile" { Kind::MissingFile } else { Kind::BadModel };
        assert_eq!(found.kind, kind, "{spec}: {found}");
        let shown = found.to_string();
        for word in error["contains"].as_array().unwrap() {
            assert!(shown.contains(word.as_str().unwrap()), "{spec}: {word} is not in: {shown}");
        }
        return;
    }

    let mut embedder = embedder(spec).unwrap();
    let limit = expected["cosine"].as_f64().unwrap();
    let close = |ours: &[f32], entry: &Value, what: &Value| {
        let reference: Vec<f64> = entry["embedding"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
        assert_eq!(Some(ours.len() as u64), expected["dimensions"].as_u64(), "{spec}, {what}");
        let dot: f64 = ours.iter().zip(&reference).map(|(a, b)| f64::from(*a) * b).sum();
        let norm: f64 = reference.iter().map(|b| b * b).sum::<f64>().sqrt();
        assert!(dot / norm >= limit, "{spec}, {what}: cosine {}", dot / norm);
    };
    let texts = expected["texts"].as_array().cloned().unwrap_or_default();
    for entry in &texts {
        let text = entry["text"].as_str().unwrap();
        let tokens = embedder.tokens(text).unwrap();
        let ids: Vec<u32> = entry["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
        assert_eq!(tokens.ids, ids, "{spec}: {text}");
        assert_eq!(Some(tokens.length as u64), entry["length"].as_u64(), "{spec}: {text}");
        close(&embedder.embed_texts(&[text], true, &mut || ()).unwrap()[0].vector, entry, &entry["text"]);
    }
    let images = expected["images"].as_array().cloned().unwrap_or_default();
    for entry in &images {
        let file = image(&entry["image"]);
        close(&embedder.embed_images(&[&file], &Limits::default(), &mut || ()).unwrap()[0], entry, &entry["image"]);
    }
    let warnings = embedder.take_warnings();
    if let Some(word) = expected["warns"].as_str() {
        assert!(warnings.iter().any(|w| w.to_string().contains(word)), "{spec}: no warning with {word}: {warnings:?}");
    }
    assert!(!texts.is_empty() || !images.is_empty(), "{spec}: nothing is expected");

    // All at once, in lengths that differ: the same vectors.
    let strings: Vec<&str> = texts.iter().map(|entry| entry["text"].as_str().unwrap()).collect();
    if !strings.is_empty() {
        for (item, entry) in embedder.embed_texts(&strings, true, &mut || ()).unwrap().iter().zip(&texts) {
            close(&item.vector, entry, &entry["text"]);
        }
    }
}

#[test]
fn every_layout() {
    let mut directories: Vec<PathBuf> =
        std::fs::read_dir(fixtures().join("layouts")).unwrap().map(|entry| entry.unwrap().path()).collect();
    directories.sort();
    let mut checked = Vec::new();
    for directory in directories.iter().filter(|path| path.is_dir()) {
        let name = directory.file_name().unwrap().to_str().unwrap();
        for file in std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap())
        {
            if file.starts_with("expected") {
                let expected = serde_json::from_slice(&std::fs::read(directory.join(&file)).unwrap()).unwrap();
                let spec = spec(name, &file);
                check(&spec, &expected);
                checked.push(spec);
            }
        }
    }
    println!("{} layouts: {}", checked.len(), checked.join(", "));
    assert!(checked.len() >= 20, "only {}: {checked:?}", checked.len());
}

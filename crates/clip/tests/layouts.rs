//! Every export layout in `tests/fixtures/layouts` must load unchanged and give the vectors of onnxruntime in Python;
//! unusable layouts must be refused with the reason.

use std::path::{Path, PathBuf};

use clip::Kind;
use clip::embedder::Embedder;
use clip::embedder::logits::Logits;
use clip::image::Limits;
use clip::model::Model;
use clip::vector::cosine;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::Value;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures")
}

/// The name by which a user names the model of an expectation file: the directory, `directory:variant`, or a pair of
/// directories.
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
    // The probabilities of the whole graph for each image with all texts, stored with six decimals.
    for (entry, wanted) in images.iter().zip(expected["probabilities"].as_array().into_iter().flatten()) {
        let logits = embedder.logits().unwrap();
        let file = image(&entry["image"]);
        let image = &embedder.embed_images(&[&file], &Limits::default(), &mut || ()).unwrap()[0];
        let strings: Vec<&str> = texts.iter().map(|entry| entry["text"].as_str().unwrap()).collect();
        let texts = embedder.embed_texts(&strings, true, &mut || ()).unwrap();
        let cosines: Vec<f64> = texts.iter().map(|text| cosine(&text.vector, image)).collect();
        for (ours, wanted) in logits.probabilities(&cosines).iter().zip(wanted.as_array().unwrap()) {
            assert!((ours - wanted.as_f64().unwrap()).abs() < 2e-5, "{spec}, {}: {ours}, not {wanted}", entry["image"]);
        }
    }
    let warnings = embedder.take_warnings();
    if let Some(word) = expected["warns"].as_str() {
        assert!(warnings.iter().any(|w| w.to_string().contains(word)), "{spec}: no warning with {word}: {warnings:?}");
    }
    assert!(!texts.is_empty() || !images.is_empty(), "{spec}: nothing is expected");

    // All texts in one call, with different lengths, must give the same vectors.
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

/// Reads the logit scale of a model directory in target/ that contains, besides an empty graph, only this file.
fn stated(name: &str, file: &str, content: &[u8]) -> clip::Result<Option<Logits>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/test-models/logits");
    let directory = root.join(name);
    let _ = std::fs::remove_dir_all(&directory);
    for (path, content) in [("onnx/text_model.onnx", b"".as_slice()), (file, content)] {
        let path = directory.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    Logits::stated(&Model::find(&[root], name).unwrap())
}

#[test]
fn the_logit_scale_is_read_where_files_state_it() {
    let about = |found: Option<Logits>| found.map(|logits| (logits.scale, logits.bias));
    let config = |text: &str| stated("config", "config.json", text.as_bytes());
    assert_eq!(about(config(r#"{"logit_scale": 0, "logit_bias": -10}"#).unwrap()), Some((1.0, Some(-10.0))));
    let (scale, bias) = about(config(r#"{"logit_scale": 4.605170185988092}"#).unwrap()).unwrap();
    assert!((scale - 100.0).abs() < 1e-9 && bias.is_none());
    // The initial value of the training is not the trained value.
    assert_eq!(config(r#"{"logit_scale_init_value": 2.6592}"#).unwrap(), None);
    for broken in [r#"{"logit_scale": "100"}"#, r#"{"logit_scale": 100}"#, r#"{"logit_scale": 1, "logit_bias": []}"#] {
        assert_eq!(config(broken).unwrap_err().kind, Kind::BadModel, "{broken}");
    }

    // The file is written by Hugging Face's own crate.
    let scale = 4.7650f32.to_le_bytes();
    let bias = half::f16::from_f32(-12.9375).to_le_bytes();
    let weight = [0u8; 4096];
    let tensors = [
        ("logit_bias", TensorView::new(Dtype::F16, vec![1], &bias).unwrap()),
        ("logit_scale", TensorView::new(Dtype::F32, vec![], &scale).unwrap()),
        ("weight", TensorView::new(Dtype::F32, vec![32, 32], &weight).unwrap()),
    ];
    let whole = safetensors::serialize(tensors, None).unwrap();
    let (scale, bias) = about(stated("weights", "model.safetensors", &whole).unwrap()).unwrap();
    assert!((scale - 4.765f64.exp()).abs() < 1e-4 && bias == Some(-12.9375), "{scale} {bias:?}");
    let other = [("weight", TensorView::new(Dtype::F32, vec![32, 32], &weight).unwrap())];
    let other = safetensors::serialize(other, None).unwrap();
    assert_eq!(stated("others", "model.safetensors", &other).unwrap(), None);
    for cut in [0, 7, 9, whole.len() - 4096 - 4] {
        let error = stated("cut", "model.safetensors", &whole[..cut]).unwrap_err();
        assert_eq!(error.kind, Kind::BadModel, "{error}");
    }
    let mut endless = whole.clone();
    endless[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(stated("endless", "model.safetensors", &endless).is_err());
}

/// A SigLIP model without its two numbers must be distinguished from a CLIP model without its only one.
#[test]
fn what_is_assumed_is_said_where_it_matters() {
    for (spec, warns) in [("siglip", true), ("xenova-split", false), ("float16", true)] {
        let mut embedder = embedder(spec).unwrap();
        let logits = embedder.logits().unwrap();
        assert_eq!((logits.scale, logits.bias), (100.0, None));
        let warnings = embedder.take_warnings();
        assert_eq!(warnings.iter().any(|w| w.message.contains("logit scale")), warns, "{spec}: {warnings:?}");
    }
}

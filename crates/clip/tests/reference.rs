//! Compares with the references in `tests/fixtures` (its README describes how they were created): Pillow's pixels, the
//! ids of the tokenizers package and of OpenAI, and onnxruntime's embeddings.

use std::path::{Path, PathBuf};

use clip::embedder::Embedder;
use clip::image::preprocess::Preprocess;
use clip::image::{Limits, decode, resize_and_crop};
use clip::model::Model;
use serde_json::Value;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures")
}

fn json(file: &str) -> Value {
    serde_json::from_slice(&std::fs::read(fixtures().join(file)).unwrap()).unwrap()
}

/// The path of ONNX Runtime, for example of the library that `make install` puts beside the extension.
fn library() -> PathBuf {
    std::env::var_os("ORT_DYLIB_PATH")
        .map(PathBuf::from)
        .expect("set ORT_DYLIB_PATH to libonnxruntime.so, or run \"make test\"")
}

fn clip_mini() -> Embedder {
    let model = Model::find(&[fixtures()], "clip-mini").unwrap();
    Embedder::new(model, library(), 1)
}

fn floats(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[test]
fn pixels_equal_pillows() {
    let index = json("pixels/index.json");
    let preprocess =
        Preprocess::parse(&std::fs::read_to_string(fixtures().join("clip-mini/preprocessor_config.json")).unwrap())
            .unwrap();
    let mut compared = 0;
    for entry in index.as_array().unwrap() {
        let path = |key: &str| fixtures().join(entry[key].as_str().unwrap());
        let ours = decode(&std::fs::read(path("input")).unwrap(), &Limits::default()).unwrap().rgb;
        let ours = resize_and_crop(&ours, &preprocess, &Limits::default()).unwrap();
        let reference = decode(&std::fs::read(path("reference")).unwrap(), &Limits::default()).unwrap().rgb;
        assert_eq!(ours.dimensions(), reference.dimensions());
        let differences: Vec<u8> = ours.iter().zip(reference.iter()).map(|(a, b)| a.abs_diff(*b)).collect();
        let worst = differences.iter().max().unwrap();
        let off = differences.iter().filter(|d| **d > 0).count();
        println!("{}: at most {worst}, {off} of {} values differ", entry["input"], differences.len());
        assert!(*worst == 0, "{}: {off} values differ, by up to {worst}/255", entry["input"]);
        compared += 1;
    }
    assert!(compared >= 15, "only {compared} images");
}

#[test]
fn ids_equal_the_reference_tokenizers() {
    let mut clip = clip_mini();
    let expected = json("clip-mini/expected.json");
    let texts = expected["texts"].as_array().unwrap();
    assert!(texts.len() >= 8);
    for entry in texts {
        let text = entry["text"].as_str().unwrap();
        let tokens = clip.tokens(text).unwrap();
        let reference: Vec<u32> =
            entry["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
        assert_eq!(tokens.ids, reference, "{text}");
        assert_eq!(tokens.ids.last(), Some(&49407), "the end token stays: {text}");
        assert_eq!(tokens.length, tokens.ids.len(), "a causal tower is not padded: {text}");
        assert!(tokens.ids.len() <= 77);
    }
    assert!(
        texts.iter().any(|entry| entry["ids"].as_array().unwrap().len() == 77),
        "one text must be over the context"
    );
}

#[test]
fn embeddings_equal_onnxruntimes() {
    let mut clip = clip_mini();
    let expected = json("clip-mini/expected.json");
    for entry in expected["images"].as_array().unwrap() {
        let file = std::fs::read(fixtures().join(entry["image"].as_str().unwrap())).unwrap();
        let ours = &clip.embed_images(&[&file], &Limits::default(), &mut || ()).unwrap()[0];
        let cosine = cosine(ours, &floats(&entry["embedding"]));
        assert!(cosine >= 0.99999, "{}: cosine {cosine}", entry["image"]);
        let norm: f32 = ours.iter().map(|v| v * v).sum::<f32>().sqrt();
        assert!((norm - 1.0).abs() < 1e-6);
    }
    for entry in expected["texts"].as_array().unwrap() {
        let text = entry["text"].as_str().unwrap();
        let ours = &clip.embed_texts(&[text], true, &mut || ()).unwrap()[0].vector;
        let cosine = cosine(ours, &floats(&entry["embedding"]));
        assert!(cosine >= 0.99999, "{text}: cosine {cosine}");
    }
}

#[test]
fn batches_equal_single_calls() {
    let mut clip = clip_mini();
    let texts = ["cat", "a photo of a dog on a lawn", "cat", "two words", "生活的真谛是", "a", "x y z"];
    let batch = clip.embed_texts(&texts, true, &mut || ()).unwrap();
    for (text, item) in texts.iter().zip(&batch) {
        let single = &clip.embed_texts(&[text], true, &mut || ()).unwrap()[0].vector;
        let worst = single.iter().zip(&item.vector).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst <= 1e-4, "{text}: {worst}");
    }
    // There are more images than one batch holds.
    let files: Vec<Vec<u8>> = ["cat.png", "coffee.png", "cat_palette.png"]
        .iter()
        .cycle()
        .take(11)
        .map(|name| std::fs::read(fixtures().join("images").join(name)).unwrap())
        .collect();
    let files: Vec<&[u8]> = files.iter().map(Vec::as_slice).collect();
    let batch = clip.embed_images(&files, &Limits::default(), &mut || ()).unwrap();
    assert_eq!((batch.len(), clip.counters.images), (11, 11));
    for (file, item) in files.iter().zip(&batch) {
        let single = &clip.embed_images(&[file], &Limits::default(), &mut || ()).unwrap()[0];
        let worst = single.iter().zip(item).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst <= 1e-4, "{worst}");
    }
}

#[test]
fn images_decoded_ahead_are_the_same_and_errors_keep_their_places() {
    let files: Vec<Vec<u8>> = ["cat.png", "coffee.png", "cat_palette.png", "coffee.png"]
        .iter()
        .cycle()
        .take(21)
        .map(|name| std::fs::read(fixtures().join("images").join(name)).unwrap())
        .collect();
    let mut files: Vec<&[u8]> = files.iter().map(Vec::as_slice).collect();
    let model = || Model::find(&[fixtures()], "clip-mini").unwrap();
    let mut two = Embedder::new(model(), library(), 2);
    let ahead = two.embed_images(&files, &Limits::default(), &mut || ()).unwrap();
    assert_eq!((ahead.len(), two.counters.images), (21, 21));
    let expected = clip_mini().embed_images(&files, &Limits::default(), &mut || ()).unwrap();
    for (ours, theirs) in ahead.iter().zip(&expected) {
        assert!(cosine(ours, theirs) > 0.999_999_9);
    }
    for place in [0, 7, 8, 20] {
        let whole = std::mem::replace(&mut files[place], b"not an image");
        for clip in [&mut two, &mut clip_mini()] {
            let error = clip.embed_images(&files, &Limits::default(), &mut || ()).err().unwrap();
            assert_eq!((error.kind, error.element), (clip::Kind::InvalidInput, Some(place)));
        }
        files[place] = whole;
    }
    assert_eq!(two.embed_images(&files, &Limits::default(), &mut || ()).unwrap().len(), 21);
    assert!(two.embed_images(&[], &Limits::default(), &mut || ()).unwrap().is_empty());
}

#[test]
fn a_long_text_is_cut_or_refused() {
    let mut clip = clip_mini();
    let long = "word ".repeat(200);
    let cut = clip.embed_texts(&["short", &long], true, &mut || ()).unwrap();
    assert_eq!((cut[0].truncated, cut[1].truncated), (false, true));
    let warnings = clip.take_warnings();
    assert_eq!((warnings.len(), warnings[0].element), (1, Some(1)));
    assert!(warnings[0].message.contains("context of 77 tokens"), "{}", warnings[0]);
    // Tokens beyond the context don't count: 75 words and both special tokens fill it.
    let same = clip.embed_texts(&[&"word ".repeat(75)], true, &mut || ()).unwrap();
    assert!(!same[0].truncated);
    assert!(cosine(&cut[1].vector, &same[0].vector) > 0.999_999);

    let error = clip.embed_texts(&[&long], false, &mut || ()).err().unwrap();
    assert_eq!(error.kind, clip::Kind::LimitExceeded);
    for empty in ["", "  \n\t"] {
        let error = clip.embed_texts(&["fine", empty], true, &mut || ()).err().unwrap();
        assert_eq!((error.message.as_str(), error.element), ("text is empty", Some(1)));
    }
}

#[test]
fn orientation_turns_the_picture_upright() {
    let upright = std::fs::read(fixtures().join("images/cat.jpg")).unwrap();
    let turned = std::fs::read(fixtures().join("images/cat_exif6.jpg")).unwrap();
    let size = |bytes: &[u8]| decode(bytes, &Limits::default()).unwrap().rgb.dimensions();
    assert_eq!(size(&upright), size(&turned));
}

#[test]
fn a_jpeg_cut_short_is_truncated() {
    for name in ["cat.jpg", "coffee_progressive.jpg"] {
        let file = std::fs::read(fixtures().join("images").join(name)).unwrap();
        for keep in [file.len() / 2, file.len() * 9 / 10] {
            let error = decode(&file[..keep], &Limits::default()).unwrap_err();
            assert_eq!(error.message, "JPEG image is truncated", "{name} at {keep} bytes: {error}");
        }
        // Without the end marker, all pixels are in the file; Pillow agrees.
        let whole = decode(&file, &Limits::default()).unwrap();
        let unmarked = decode(&file[..file.len() - 2], &Limits::default()).unwrap();
        assert!(unmarked.truncated.is_none() && unmarked.rgb == whole.rgb, "{name} without its end marker");
        // Bytes after the end marker are not an error.
        let mut longer = file.clone();
        longer.extend_from_slice(b"trailing bytes");
        assert!(decode(&longer, &Limits::default()).is_ok(), "{name}");
        let error = decode(&file[..20], &Limits::default()).unwrap_err();
        assert_eq!(error.kind, clip::Kind::InvalidInput, "{error}");
    }
}

#[test]
fn broken_models_say_what_is_wrong() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/test-models/broken");
    let _ = std::fs::remove_dir_all(&root);
    let make = |name: &str, without: &str, change: &[(&str, &[u8])]| {
        let directory = root.join(name);
        std::fs::create_dir_all(directory.join("onnx")).unwrap();
        for file in [
            "onnx/vision_model.onnx",
            "onnx/text_model.onnx",
            "preprocessor_config.json",
            "tokenizer.json",
            "config.json",
        ] {
            if file != without {
                std::fs::copy(fixtures().join("clip-mini").join(file), directory.join(file)).unwrap();
            }
        }
        for (file, content) in change {
            std::fs::write(directory.join(file), content).unwrap();
        }
        Embedder::new(Model::find(std::slice::from_ref(&root), name).unwrap(), library(), 1)
    };
    let image = std::fs::read(fixtures().join("images/cat.png")).unwrap();
    let embed = |mut model: Embedder| {
        model.embed_images(&[&image], &Limits::default(), &mut || ()).map(|_| model.take_warnings())
    };
    let embed_text = |mut model: Embedder| model.embed_texts(&["a cat"], true, &mut || ()).map(|_| ());

    let error = embed(make("no-graph", "onnx/vision_model.onnx", &[])).unwrap_err();
    assert!(error.message.contains("has no image tower"), "{error}");
    let error = embed(make("not-onnx", "", &[("onnx/vision_model.onnx", b"not a graph")])).unwrap_err();
    assert!(error.kind == clip::Kind::BadModel && error.message.contains("cannot be loaded"), "{error}");
    let error = embed(make("bad-json", "", &[("preprocessor_config.json", b"{")])).unwrap_err();
    assert!(error.kind == clip::Kind::BadModel && error.message.contains("is not JSON"), "{error}");
    let error =
        embed(make("wrong-size", "", &[("preprocessor_config.json", br#"{"size":64,"crop_size":64}"#)])).unwrap_err();
    assert!(error.message.contains("224×224") && error.message.contains("64×64"), "{error}");
    let error = embed_text(make("no-tokenizer", "tokenizer.json", &[])).unwrap_err();
    assert!(error.kind == clip::Kind::MissingFile && error.message.contains("has no tokenizer.json"), "{error}");
    let error = embed_text(make("bad-tokenizer", "", &[("tokenizer.json", b"{}")])).unwrap_err();
    assert!(error.kind == clip::Kind::BadModel && error.message.contains("cannot be used"), "{error}");

    // Without a preprocessing configuration, CLIP's is used, with a warning.
    let warnings = embed(make("no-config", "preprocessor_config.json", &[])).unwrap();
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].message.contains("has no preprocessor_config.json"), "{}", warnings[0]);
}

/// A cancelled query unwinds out of the middle of a call. The warnings of that call must be dropped.
#[test]
fn an_interrupted_call_leaves_no_remarks() {
    let mut clip = clip_mini();
    let long = "word ".repeat(200);
    let texts = ["short", "short too", long.as_str(), "never reached"];
    let mut checks = 0;
    let interrupted = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let mut check = || {
            checks += 1;
            assert!(checks < 4, "cancelled");
        };
        clip.embed_texts(&texts, true, &mut check).is_ok()
    }));
    assert!(interrupted.is_err());
    assert_eq!(clip.embed_texts(&["short"], true, &mut || ()).unwrap().len(), 1);
    assert!(clip.take_warnings().is_empty());
}

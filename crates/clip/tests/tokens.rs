//! Token ids against the reference tokenizers, whose ids `tests/fixtures/tokens.py` writes: every text with every
//! family of tokenizer.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clip::Kind;
use clip::model::Model;
use clip::text::TextEncoder;
use serde_json::Value;

fn tokens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/tokens")
}

fn json(file: &str) -> Value {
    serde_json::from_slice(&std::fs::read(tokens().join(file)).unwrap()).unwrap()
}

fn texts() -> Vec<String> {
    json("texts.json").as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
}

/// The encoder of a tokenizer file: a text tower's graph is not needed for ids.
fn encoder(tokenizer: &Path) -> TextEncoder {
    let base = Model::find(&[tokens().join("..")], "clip-mini").unwrap();
    let directory = tokenizer.parent().unwrap().to_owned();
    let model = Model {
        name: directory.display().to_string(),
        text_directory: directory.clone(),
        tokenizer: Some(tokenizer.to_owned()),
        directory,
        ..base
    };
    TextEncoder::load(&model, None).unwrap()
}

struct Family {
    name: String,
    encoder: TextEncoder,
    context: usize,
    special: usize,
    ids: Vec<Vec<u32>>,
}

fn families() -> Vec<Family> {
    let number = |value: &Value| value.as_u64().unwrap() as usize;
    json("ids.json")
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| Family {
            name: entry["name"].as_str().unwrap().to_owned(),
            encoder: encoder(&tokens().join(entry["tokenizer"].as_str().unwrap())),
            context: number(&entry["context"]),
            special: number(&entry["special"]),
            ids: serde_json::from_value(entry["ids"].clone()).unwrap(),
        })
        .collect()
}

#[test]
fn ids_equal_the_reference_tokenizers() {
    let texts = texts();
    assert!(texts.len() >= 500, "only {} texts", texts.len());
    let families = families();
    assert!(families.len() >= 6, "only {} tokenizers", families.len());
    for family in &families {
        let name = &family.name;
        assert_eq!(family.encoder.context_length, family.context, "{name}");
        assert_eq!(family.ids.len(), texts.len(), "{name}");
        let (mut empty, mut cut) = (0, 0);
        let mut wrong = Vec::new();
        for (text, reference) in texts.iter().zip(&family.ids) {
            let ours = family.encoder.encode(text);
            if reference.len() <= family.special {
                // Nothing but special tokens: an error, since every such text would have the same vector.
                let error = ours.err().unwrap_or_else(|| panic!("{name}: {text:?} is empty"));
                assert_eq!((error.kind, error.message.as_str()), (Kind::InvalidInput, "text is empty"), "{text:?}");
                empty += 1;
                continue;
            }
            let ours = ours.unwrap_or_else(|error| panic!("{name}: {text:?}: {error}"));
            if ours.ids != *reference {
                wrong.push(format!("{text:?}: {:?}, not {reference:?}", ours.ids));
            }
            assert_eq!(ours.length, reference.len(), "{name}: {text:?}");
            // The special tokens that end a text end it after a cut, too.
            let end = family.ids[texts.iter().position(|text| text == "x").unwrap()].last();
            assert_eq!(ours.ids.last(), end, "{name}: {text:?}");
            assert!(ours.ids.len() <= family.context && (!ours.truncated || ours.ids.len() == family.context));
            cut += usize::from(ours.truncated);
        }
        assert!(wrong.is_empty(), "{name}: {} of {} texts differ:\n{}", wrong.len(), texts.len(), wrong.join("\n"));
        assert!(empty >= 1 && cut >= 5, "{name}: {empty} texts are empty, {cut} are cut");
        println!("{name}: {} texts, {empty} empty, {cut} cut", texts.len());
    }
}

#[test]
fn padding_is_the_tokenizers_own() {
    for (name, token) in [("xlm-roberta", "<pad>"), ("siglip", "</s>"), ("gemma", "<pad>"), ("byte-level", "<pad>")] {
        let file = tokens().join(name).join("tokenizer.json");
        let content: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        let added = content["added_tokens"].as_array().unwrap();
        let id = added.iter().find(|added| added["content"] == token).unwrap()["id"].as_u64().unwrap();
        assert_eq!(u64::from(encoder(&file).pad_id), id, "{name}");
    }
}

/// What is beyond the context doesn't change what is before it: 10 MB have the reference's ids of the same text cut to
/// a few kilobytes, and come in time. 1 MB for the tokenizers that stand in for others, or 10 if `CLIP_LONG_TEXTS` is
/// set: all of it takes 75 seconds.
fn long_text(kind: &str, unit: &str) {
    let texts = texts();
    let short = unit.repeat(200); // UNIT_TIMES in tokens.py
    let position = texts.iter().position(|text| *text == short).expect("tokens.py has this text");
    let all = std::env::var_os("CLIP_LONG_TEXTS").is_some();
    for family in families() {
        let megabytes = if all || ["clip", "bert"].contains(&family.name.as_str()) { 10 } else { 1 };
        let long = unit.repeat((megabytes * 1_000_000_usize).div_ceil(unit.len()));
        let start = Instant::now();
        let tokens = family.encoder.encode(&long).unwrap_or_else(|error| panic!("{}: {kind}: {error}", family.name));
        let took = start.elapsed().as_secs_f64();
        println!("{}: {megabytes} MB, {kind}: {} ids in {took:.2} s", family.name, tokens.ids.len());
        assert_eq!(tokens.ids, family.ids[position], "{}: {kind}", family.name);
        // 3 to 8 seconds on one idle core, minutes on a crowded machine; a quadratic algorithm would take days.
        assert!(took < 900.0, "{}: {kind} took {took} s", family.name);
    }
}

#[test]
fn ten_megabytes_of_words() {
    long_text("words", "a photo of a sleepy cat, 2 dogs and the sea. ");
}

#[test]
fn ten_megabytes_in_one_word() {
    long_text("one word", "abcdefghij");
}

#[test]
fn ten_megabytes_of_emoji() {
    long_text("emoji", "😀🐶👩‍👩‍👧");
}

//! Compares token ids with the ids of the reference tokenizers, which `tests/fixtures/tokens.py` writes: every text
//! with every family of tokenizers.

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

/// The encoder for a tokenizer file. Ids don't need the graph of a text tower.
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
    TextEncoder::load(&model, None, &mut Vec::new()).unwrap()
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
                // The text has only special tokens. This is an error, because all such texts would have the same
                // vector.
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
            // The special tokens at the end of a text remain after truncation.
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

/// Text beyond the context must not change the ids before it: 10 MB must have the ids of the same text cut to a few
/// kilobytes, and be tokenized quickly.
fn long_text(kind: &str, unit: &str) {
    let texts = texts();
    let short = unit.repeat(200); // UNIT_TIMES in tokens.py
    let position = texts.iter().position(|text| *text == short).expect("tokens.py has this text");
    let megabytes = 10;
    for family in families() {
        let long = unit.repeat((megabytes * 1_000_000_usize).div_ceil(unit.len()));
        let start = Instant::now();
        let tokens = family.encoder.encode(&long).unwrap_or_else(|error| panic!("{}: {kind}: {error}", family.name));
        let took = start.elapsed().as_secs_f64();
        println!("{}: {megabytes} MB, {kind}: {} ids in {took:.2} s", family.name, tokens.ids.len());
        assert_eq!(tokens.ids, family.ids[position], "{}: {kind}", family.name);
        // It takes about 50 ms on an idle core.
        assert!(took < 60.0, "{}: {kind} took {took} s", family.name);
    }
}

/// The generator splitmix64.
struct Random(u64);

impl Random {
    fn below(&mut self, most: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((bits ^ (bits >> 31)) >> 16) as usize % most
    }

    fn pick<'a, T: ?Sized>(&mut self, of: &[&'a T]) -> &'a T {
        of[self.below(of.len())]
    }
}

/// A text of parts that tokenizers shrink or that a cut may split: endless words, runs of one character and of
/// characters outside the vocabulary, white space, combining marks.
fn hostile(random: &mut Random, length: usize) -> String {
    let mut text = String::new();
    while text.len() < length {
        let times = [1, 3, 60, 99, 100, 101, 5_000, 25_000, 80_000][random.below(9)];
        match random.below(9) {
            0 => text.push_str(&random.pick(&["a", "cat", "ab", "0", "-", "=", "#"]).repeat(times)),
            1 => text.extend((0..times).map(|_| char::from(b'a' + random.below(26) as u8))),
            2 => text.push_str(&random.pick(&[" ", "\n", "\u{a0}", "\t ", "\u{3000}"]).repeat(times)),
            3 => text.push_str(&random.pick(&["猫", "犬山", "😀🐶", "\u{1F469}\u{200D}\u{1F467}"]).repeat(times)),
            4 => {
                text.push_str(&random.pick(&["e\u{301}", "각", "\u{1100}\u{1161}", "ﬁ", "İ"]).repeat(times.min(5_000)))
            }
            5 => text.push_str(&random.pick(&["\u{1}", "\u{200B}", "\u{FEFF}", "\u{AD}"]).repeat(times)),
            6 => text
                .push_str(&random.pick(&["</s>", "[SEP]", "<|endoftext|>", "<unk>", "<pad>"]).repeat(times.min(100))),
            7 => text
                .extend((0..times.min(5_000)).map(|_| char::from_u32(random.below(0x3000) as u32 + 1).unwrap_or(' '))),
            _ => (0..times.min(300)).for_each(|_| {
                text.push_str(random.pick(&["a photo of ", "the sea, ", "Ünder ", "on 2 walls. ", "don't "]));
            }),
        }
        if random.below(3) == 0 {
            text.push(' ');
        }
    }
    text
}

/// The ids must equal those of the tokenizers library for the whole text, or there must be an error.
#[test]
fn ids_of_long_texts_are_those_of_the_whole_text() {
    let mut random = Random(7);
    let rounds: usize = std::env::var("CLIP_LONG_TEXTS").ok().and_then(|n| n.parse().ok()).unwrap_or(12);
    let (mut compared, mut refused) = (0, 0);
    for (family, entry) in families().iter().zip(json("ids.json").as_array().unwrap()) {
        let mut reference =
            tokenizers::Tokenizer::from_file(tokens().join(entry["tokenizer"].as_str().unwrap())).unwrap();
        reference.with_padding(None);
        let cut = tokenizers::TruncationParams { max_length: family.context, ..Default::default() };
        reference.with_truncation(Some(cut)).unwrap();
        for round in 0..rounds {
            let text = hostile(&mut random, [40_000, 100_000, 300_000, 600_000][round % 4]);
            match family.encoder.encode(&text) {
                Ok(tokens) => {
                    let whole = reference.encode_fast(text.as_str(), true).unwrap();
                    assert_eq!(tokens.ids, whole.get_ids(), "{}, round {round}: {:.300?}", family.name, text);
                    assert_eq!(tokens.truncated, !whole.get_overflowing().is_empty(), "{}", family.name);
                    compared += 1;
                }
                Err(error) if error.message == "text is empty" => {}
                Err(error) => {
                    assert_eq!(error.kind, Kind::LimitExceeded, "{}: {error}", family.name);
                    refused += 1;
                }
            }
        }
    }
    println!("{compared} texts have the ids of the whole text, {refused} are refused");
    assert!(compared > 9 * refused, "{compared} compared, {refused} refused");
}

fn cpu_time() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes the time to the given variable.
    #[allow(unsafe_code)]
    unsafe {
        libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time);
    }
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Tokenizing sixteen megabytes of any text can be cancelled, and takes no longer than tokenizing its beginning.
#[test]
fn interrupts_are_looked_for_all_the_time() {
    let units = ["a", "abcdefghij", "猫", "😀🐶", " ", "e\u{301}", "cat ", "\u{200B}", "ab1", "x,"];
    for family in families() {
        for unit in units {
            let text = unit.repeat(16_000_000 / unit.len());
            let (start, mut last, mut longest, mut looks) = (cpu_time(), cpu_time(), 0.0f64, 0);
            let result = family.encoder.encode_checked(&text, &mut || {
                longest = longest.max(cpu_time() - last);
                last = cpu_time();
                looks += 1;
            });
            let whole = cpu_time() - start;
            longest = longest.max(cpu_time() - last);
            println!(
                "{}, {unit:?}: {:.0} ms, {looks} looks, at most {:.0} ms apart, {}",
                family.name,
                whole * 1e3,
                longest * 1e3,
                result.map_or_else(|e| e.message, |tokens| format!("{} ids", tokens.ids.len()))
            );
            assert!(looks > 2 && longest < 0.2 && whole < 1.5, "{}, {unit:?}", family.name);
        }
    }
}

#[test]
fn an_interrupt_unwinds_through_the_tokenizer() {
    let family = &families()[0];
    let mut looks = 0;
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        family.encoder.encode_checked(&"a cat ".repeat(10_000), &mut || {
            looks += 1;
            if looks == 3 {
                std::panic::resume_unwind(Box::new("cancel"));
            }
        })
    }));
    assert_eq!(caught.unwrap_err().downcast_ref::<&str>(), Some(&"cancel"));
    assert!(family.encoder.encode("a cat").is_ok(), "the encoder still works");
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

//! Tests mutated input: no input may cause a panic, an abort, a hang or unbounded memory.
//!
//! The generator has a fixed seed, so findings are repeatable. `cargo test` runs a small number of items; `make fuzz`
//! sets the numbers for the long run. The input of a finding is stored in `target/fuzz/`, and its number is printed.

mod files;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clip::embedder::Embedder;
use clip::image::info::info;
use clip::image::preprocess::Preprocess;
use clip::image::{Limits, decode, decode_for, resize_and_crop};
use clip::model::Model;
use clip::text::TextEncoder;

/// Maximum processor time for one item in a release build. With the limits below, the largest items take about 0.5 s.
const PATIENCE: Duration = Duration::from_secs(10);

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures")
}

/// The number of items, from an environment variable, or the short default.
fn count(variable: &str, short: u64) -> u64 {
    std::env::var(variable).ok().map_or(short, |value| value.parse().expect("a number of items"))
}

/// xorshift64*, seeded with the item's number, so that each item can be recreated alone.
struct Random(u64);

impl Random {
    fn new(item: u64) -> Self {
        Self(item.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }
}

/// Makes one to eight changes: flips bits, sets bytes to the limits of their range, changes lengths, moves, cuts or
/// doubles ranges, and joins the head of one file to the tail of another.
fn mutate(bytes: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    for _ in 0..=random.below(8) {
        if bytes.is_empty() {
            return;
        }
        let at = random.below(bytes.len());
        // Half of the changes are in the header, which decides most.
        let at = if random.next().is_multiple_of(2) { at.min(random.below(64)) } else { at };
        match random.below(9) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = [0, 1, 0x7F, 0x80, 0xFE, 0xFF][random.below(6)],
            2 => bytes[at] = random.next() as u8,
            3 => {
                let value = [0u32, 1, 0x7FFF, 0x8000, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, u32::MAX][random.below(8)];
                let value = if random.next().is_multiple_of(2) { value.to_be_bytes() } else { value.to_le_bytes() };
                let end = (at + 4).min(bytes.len());
                bytes[at..end].copy_from_slice(&value[..end - at]);
            }
            4 => bytes.truncate(at),
            5 => {
                let length = random.below(64).min(bytes.len() - at);
                bytes.drain(at..at + length);
            }
            6 => {
                let length = random.below(256).min(bytes.len() - at);
                let copy = bytes[at..at + length].to_vec();
                let to = random.below(bytes.len());
                bytes.splice(to..to, copy);
            }
            7 => {
                let from = random.below(other.len());
                let length = random.below(256).min(other.len() - from);
                let end = (at + length).min(bytes.len());
                bytes.splice(at..end, other[from..from + length].iter().copied());
            }
            _ => {
                bytes.truncate(at);
                bytes.extend_from_slice(&other[random.below(other.len())..]);
            }
        }
        bytes.truncate(1 << 20);
    }
}

/// The processor time that this process has used (`man 5 proc`: utime and stime, in hundredths of a second).
fn used() -> Duration {
    let status = std::fs::read_to_string("/proc/self/stat").unwrap();
    // The fields follow the name, which may contain anything.
    let fields: Vec<&str> = status[status.rfind(')').unwrap() + 2..].split(' ').collect();
    Duration::from_millis(10 * fields[11..13].iter().map(|ticks| ticks.parse::<u64>().unwrap()).sum::<u64>())
}

/// Runs one item, and stores its input if it panics or takes too long.
fn attempt(target: &str, item: u64, input: &[u8], run: impl FnOnce()) {
    let start = used();
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
    let time = used() - start;
    if result.is_err() || time > PATIENCE {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/fuzz");
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join(format!("{target}-{item}"));
        std::fs::write(&file, input).unwrap();
        panic!(
            "{target}, item {item}: {} after {time:?}; the input is in {}",
            if result.is_err() { "panic" } else { "too slow" },
            file.display()
        );
    }
}

/// The peak resident memory of this process, in MiB.
fn peak_megabytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

fn files_below(folder: &Path, keep: &dyn Fn(&Path) -> bool) -> Vec<Vec<u8>> {
    let mut paths = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        for path in std::fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
            if path.is_dir() {
                open.push(path);
            } else if keep(&path) {
                paths.push(path);
            }
        }
    }
    paths.sort(); // a directory has no fixed order, but a seed must always mean the same input
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

/// The name of a format in lower case; "raw" for any camera RAW.
fn name_of(format: &str) -> String {
    match format {
        "JPEG XL" => "jxl".to_owned(),
        "JPEG" | "PNG" | "GIF" | "WebP" | "BMP" | "TIFF" | "ICO" | "HEIC" | "AVIF" => format.to_lowercase(),
        _ => "raw".to_owned(),
    }
}

#[test]
fn images() {
    let is_image = |path: &Path| {
        path.metadata().is_ok_and(|m| m.len() < 64 << 10) && path.extension().is_none_or(|e| e != "json" && e != "md")
    };
    let folders = ["images", "corpus", "heic", "avif", "jxl", "tiff"].into_iter();
    let mut seeds: Vec<_> = folders.flat_map(|folder| files_below(&fixtures().join(folder), &is_image)).collect();
    seeds.extend(files::raws(&clip::image::synthetic::photo(480, 450, 1).unwrap()));
    // If CLIP_FUZZ_FORMAT names a format, only files of that format are used.
    let only = std::env::var("CLIP_FUZZ_FORMAT").unwrap_or_default().to_lowercase();
    if !only.is_empty() {
        seeds.retain(|bytes| info(bytes, &Limits::default()).is_ok_and(|header| name_of(header.format) == only));
    }
    assert!(!seeds.is_empty(), "no file of the format {only:?}");
    // With 4 megapixels, a decoded image takes at most 32 MB, regardless of its header.
    let limits = Limits { max_pixels: 4_000_000, allow_truncated: true, ..Limits::default() };
    let preprocess = Preprocess::clip(224);
    let (mut usable, total) = (0, count("CLIP_FUZZ_IMAGES", 2_000));
    // CLIP_FUZZ_FIRST continues an earlier run.
    let first = count("CLIP_FUZZ_FIRST", 0);
    for item in first..first + total {
        let mut random = Random::new(item);
        let mut bytes = seeds[random.below(seeds.len())].clone();
        let other = &seeds[random.below(seeds.len())];
        mutate(&mut bytes, other, &mut random);
        attempt("image", item, &bytes, || {
            let full = decode(&bytes, &limits);
            assert!(info(&bytes, &Limits::default()).is_ok() || full.is_err());
            // A JPEG has the same errors when it is decoded at a reduced size.
            let tiny = Preprocess::clip(4);
            match (decode_for(&bytes, &limits, &tiny), &full) {
                (Ok(small), Ok(full)) => {
                    assert_eq!((small.size, small.truncated.is_some()), (full.size, full.truncated.is_some()));
                    assert_eq!(small.prepare(&tiny, &Limits::default()).unwrap().dimensions(), (4, 4));
                }
                (Err(small), Err(full)) => assert_eq!(small.to_string(), full.to_string()),
                (small, full) => panic!("smaller {:?}, in full {:?}", small.err(), full.as_ref().err()),
            }
            if let Ok(decoded) = full {
                let (width, height) = decoded.rgb.dimensions();
                assert!(u64::from(width) * u64::from(height) <= limits.max_pixels);
                assert_eq!(
                    resize_and_crop(&decoded.rgb, &preprocess, &Limits::default()).unwrap().dimensions(),
                    (224, 224)
                );
                usable += 1;
            }
        });
    }
    let peak = peak_megabytes();
    let seconds = used().as_secs();
    println!("{total} images {only}, {usable} of them usable; {peak} MB at most, {seconds} s of a processor");
    assert!(
        // Few mutations of a container with one coded picture leave it intact.
        usable > total / if only.is_empty() { 50 } else { 500 },
        "only {usable} of {total} mutated images were usable: the mutation is too coarse to test much"
    );
    assert!(peak < 1024, "{peak} MB");
}

#[test]
fn texts() {
    let model = |folder: &Path, name: &str| Model::find(&[folder.to_owned()], name).unwrap();
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models");
    let encoders = [
        TextEncoder::load(&model(&fixtures(), "clip-mini"), None, &mut Vec::new()).unwrap(),
        TextEncoder::load(&model(&models, "photo-mini"), None, &mut Vec::new()).unwrap(),
    ];
    let seeds: Vec<Vec<u8>> = [
        "a photo of a cat",
        "You should've done this!",
        "生活的真谛是",
        "naïve café — ÅÄÖ",
        "👩‍👩‍👧‍👦 🇩🇪 emoji",
        "مرحبا بالعالم",
        "<|endoftext|> [SEP] <s>",
        "\u{200B}\u{FEFF}\u{202E}\t\r\n\u{0}",
        "e\u{301}\u{302}\u{303}\u{304}",
        "𝕳𝖊𝖑𝖑𝖔 ﷺ ﬃ",
        "12345678901234567890 0x1F 3.14e-10",
        "ÿþ\u{FFFD}\u{10FFFF}",
    ]
    .iter()
    .map(|text| text.as_bytes().to_vec())
    .collect();
    let total = count("CLIP_FUZZ_TEXTS", 20_000);
    for item in 0..total {
        let mut random = Random::new(item);
        let mut bytes = seeds[random.below(seeds.len())].repeat(1 + random.below(4));
        let other = &seeds[random.below(seeds.len())];
        mutate(&mut bytes, other, &mut random);
        // PostgreSQL passes only valid UTF-8.
        let text = String::from_utf8_lossy(&bytes).into_owned();
        attempt("text", item, text.as_bytes(), || {
            for encoder in &encoders {
                if let Ok(tokens) = encoder.encode(&text) {
                    assert!(tokens.ids.len() <= encoder.context_length && tokens.length == tokens.ids.len());
                }
            }
        });
    }
    println!("{total} texts");
}

#[test]
fn configurations() {
    let is_json =
        |name: &'static str| move |path: &Path| path.file_name().is_some_and(|n| n.to_string_lossy().contains(name));
    let mut seeds = files_below(&fixtures(), &is_json("preprocess"));
    seeds.retain(|bytes| bytes.len() < 4096);
    let total = count("CLIP_FUZZ_CONFIGURATIONS", 20_000);
    for item in 0..total {
        let mut random = Random::new(item);
        let mut bytes = seeds[random.below(seeds.len())].clone();
        let other = &seeds[random.below(seeds.len())];
        mutate(&mut bytes, other, &mut random);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        attempt("configuration", item, text.as_bytes(), || {
            if let Ok(preprocess) = Preprocess::parse(&text) {
                let image = image::RgbImage::new(30, 20);
                let out = resize_and_crop(&image, &preprocess, &Limits::default()).unwrap();
                assert!(out.width() <= 4096 * 2 && out.height() <= 4096 * 2);
            }
        });
    }
    println!("{total} configurations");
}

/// Model files come from the administrator, not from strangers, but a broken download must not end the process.
#[test]
fn models() {
    let library =
        std::env::var_os("ORT_DYLIB_PATH").map(PathBuf::from).expect("set ORT_DYLIB_PATH to libonnxruntime.so");
    let layouts = fixtures().join("layouts");
    let source = layouts.join("xenova-split");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/test-models/fuzz");
    let target = root.join("mutant");
    std::fs::create_dir_all(target.join("onnx")).unwrap();
    let names = [
        "onnx/text_model.onnx",
        "onnx/vision_model.onnx",
        "tokenizer.json",
        "preprocessor_config.json",
        "tokenizer_config.json",
    ];
    let originals: Vec<Vec<u8>> = names.iter().map(|name| std::fs::read(source.join(name)).unwrap()).collect();
    let photo = std::fs::read(fixtures().join("images/cat.png")).unwrap();
    let (mut usable, total) = (0, count("CLIP_FUZZ_MODELS", 300));
    for item in 0..total {
        let mut random = Random::new(item);
        let victim = random.below(names.len());
        let mut mutant = Vec::new();
        for (index, (name, original)) in names.iter().zip(&originals).enumerate() {
            let mut bytes = original.clone();
            if index == victim {
                mutate(&mut bytes, &originals[random.below(originals.len())], &mut random);
                mutant = bytes.clone();
            }
            std::fs::write(target.join(name), bytes).unwrap();
        }
        attempt("model", item, &mutant, || {
            let Ok(model) = Model::find(std::slice::from_ref(&root), "mutant") else { return };
            let mut embedder = Embedder::new(model, library.clone(), 1);
            let image = embedder.embed_images(&[&photo], &Limits::default(), &mut || ());
            let text = embedder.embed_texts(&["a photo of a cat"], true, &mut || ());
            usable += u64::from(image.is_ok() && text.is_ok());
        });
    }
    println!("{total} models, {usable} of them usable; {} MB at most", peak_megabytes());
}

//! Image files of every kind from `tests/fixtures/corpus.py`, with the expected result of each: correct pixels, or an
//! error of the right kind that names the problem. No file may cause a panic, or take disproportionate memory or time.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clip::image::info::info;
use clip::image::{Limits, decode};
use serde_json::Value;

/// Maximum growth of the process's peak memory by a hostile file, in KiB: the smallest of the decoders' own limits.
const HOSTILE_GROWTH: u64 = 64 << 10;
/// Maximum time for a file: far more than any of these small files needs, and far less than an attack needs. Debug
/// builds are 30 times slower.
const SLOWEST: Duration = Duration::from_secs(if cfg!(debug_assertions) { 60 } else { 2 });

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/corpus")
}

fn index() -> Vec<Value> {
    let text = std::fs::read(corpus().join("index.json")).unwrap();
    serde_json::from_slice::<Value>(&text).unwrap().as_array().unwrap().clone()
}

fn file(entry: &Value) -> (&str, Vec<u8>) {
    let name = entry["file"].as_str().unwrap();
    (name, std::fs::read(corpus().join(name)).unwrap())
}

/// The process's peak resident memory in KiB since the last reset (`man 5 proc`: status, clear_refs).
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Resets the peak to the current resident size. Without the privilege to do so, the peak remains, and the limit then
/// applies to the growth by all hostile files together.
fn reset_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// The computing time of all threads of this process so far (`man 5 proc`: stat; in hundredths of a second).
fn computed() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    Duration::from_millis(10 * (fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()))
}

/// Returns what is wrong with the outcome for a file, if anything.
fn judge(entry: &Value, bytes: &[u8]) -> Result<(), String> {
    let (started, before) = (Instant::now(), computed());
    let outcome = std::panic::catch_unwind(|| decode(bytes, &Limits::default())).map_err(|_| "it panics".to_owned())?;
    let header =
        std::panic::catch_unwind(|| info(bytes, &Limits::default())).map_err(|_| "its header panics".to_owned())?;
    // The smaller of the two counts: a busy machine may keep this thread waiting, and threads of other tests compute in
    // the meantime.
    let took = started.elapsed().min(computed() - before);
    if took > SLOWEST {
        return Err(format!("it takes {:.1} s", took.as_secs_f64()));
    }
    match (&outcome, &header) {
        // The sides are compared upright, as the picture is.
        (Ok(decoded), Ok(info)) => {
            let (w, h) = if info.orientation < 5 { (info.width, info.height) } else { (info.height, info.width) };
            if (w, h) != decoded.size {
                return Err(format!("its header says {w}×{h}, its picture is {:?}", decoded.size));
            }
        }
        (Ok(_), Err(error)) => return Err(format!("its header can't be read: {error}")),
        // The header may be intact if the picture is not; otherwise both must have the same problem.
        (Err(error), Err(of_header)) if error.kind != of_header.kind => {
            return Err(format!("its header has \"{of_header}\", its picture \"{error}\""));
        }
        _ => {}
    }
    match (outcome, entry.get("expect"), entry.get("error")) {
        (Ok(decoded), Some(expect), _) => {
            let image = decoded.rgb;
            let numbers = |v: &Value| v.as_array().unwrap().iter().map(|n| n.as_f64().unwrap()).collect::<Vec<_>>();
            let (size, mean, tolerance) =
                (numbers(&expect["size"]), numbers(&expect["mean"]), expect["tolerance"].as_f64().unwrap());
            if size != [f64::from(image.width()), f64::from(image.height())] {
                return Err(format!("size {}×{}, not {size:?}", image.width(), image.height()));
            }
            let pixels = f64::from(image.width()) * f64::from(image.height());
            let found = [0, 1, 2].map(|c| image.pixels().map(|p| f64::from(p.0[c])).sum::<f64>() / pixels);
            if found.iter().zip(&mean).any(|(a, b)| (a - b).abs() > tolerance) {
                return Err(format!("mean {found:.1?}, not {mean:?}"));
            }
            // A mean does not detect rotations, but four single pixels do. They may differ by rounding, and by twice
            // the tolerance of the mean.
            for spot in expect["at"].as_array().unwrap().iter().map(numbers) {
                let pixel = image.get_pixel(spot[0] as u32, spot[1] as u32).0;
                if pixel.iter().zip(&spot[2..]).any(|(a, b)| (f64::from(*a) - b).abs() > 2.0 * tolerance) {
                    return Err(format!("pixel {:?} is {pixel:?}, not {:?}", &spot[..2], &spot[2..]));
                }
            }
            Ok(())
        }
        (Err(error), _, Some(expected)) => {
            let kind = format!("{:?}", error.kind);
            let kinds = expected["kinds"].as_array().unwrap();
            let word = expected["contains"].as_str().unwrap();
            if !kinds.iter().any(|k| *k == kind.as_str()) {
                return Err(format!("{kind} \"{error}\", not of {kinds:?}"));
            }
            if !error.message.contains(word) {
                return Err(format!("\"{error}\" does not say \"{word}\""));
            }
            Ok(())
        }
        (Ok(decoded), None, Some(expected)) => {
            let image = decoded.rgb;
            Err(format!("it decodes to {}×{}, where {expected} is right", image.width(), image.height()))
        }
        (Err(error), Some(_), None) => Err(format!("{:?} \"{error}\", where it should decode", error.kind)),
        _ => Err("index.json expects neither or both".to_owned()),
    }
}

/// This is a single test, because the peak applies to the whole process.
#[test]
fn every_file_comes_out_right() {
    let index = index();
    let mut wrong = Vec::new();
    let mut note = |name: &str, about: &Value, what: String| wrong.push(format!("{name} ({about}): {what}"));
    // Hostile files come first, while the peak, which they must not raise, is lowest.
    for entry in index.iter().filter(|entry| entry["hostile"] == true) {
        let (name, bytes) = file(entry);
        reset_peak();
        let before = peak();
        let verdict = judge(entry, &bytes);
        let grown = peak().saturating_sub(before);
        if let Err(what) = verdict {
            note(name, &entry["about"], what);
        }
        if grown >= HOSTILE_GROWTH {
            note(name, &entry["about"], format!("it adds {} MiB to the peak", grown >> 10));
        }
    }
    for entry in index.iter().filter(|entry| entry["hostile"] != true) {
        let (name, bytes) = file(entry);
        if let Err(what) = judge(entry, &bytes) {
            note(name, &entry["about"], what);
        }
    }
    assert!(wrong.is_empty(), "{} of {} files:\n{}", wrong.len(), index.len(), wrong.join("\n"));
}

/// Each file is listed once, and there are many files with each kind of result.
#[test]
fn the_index_is_whole() {
    let index = index();
    let listed: BTreeSet<String> = index.iter().map(|entry| entry["file"].as_str().unwrap().to_owned()).collect();
    assert_eq!(listed.len(), index.len());
    let present: BTreeSet<String> = std::fs::read_dir(corpus())
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != "index.json")
        .collect();
    assert_eq!(listed, present);
    let good = index.iter().filter(|entry| entry.get("expect").is_some()).count();
    assert!(good >= 120 && index.len() - good >= 80, "{good} of {} decode", index.len());
}

/// Files of `pillow_images.py` whose result differs from Pillow's, by the reason why this is right or accepted.
const OTHERWISE: [(&str, &[&str]); 6] = [
    (
        "sixteen bits a channel: Pillow clips or rounds",
        &[
            "12in16bit",
            "16_bit_noise",
            "16bit.",
            "apng__mode_16bit",
            "cmx3g8_wv",
            "i_trns",
            "ifd_tag_type",
            "imagedraw_rectangle_I",
            "tiff_16bit_RGB",
            "tiff_strip_planar_16bit_RGB",
            "uint16_1_4660",
        ],
    ),
    ("five and six bits a channel: Pillow widens by shifting", &["bmp__g__rgb16"]),
    (
        "bytes that the file does not set, or a header that is wrong",
        &["bmp__q__pal4rletrns", "bmp__q__pal8rletrns", "mmap_error"],
    ),
    (
        "orientation in XMP or in ImageMagick's text chunk, which viewers don't apply either",
        &["exif_imagemagick_orientation", "xmp_tags_orientation"],
    ),
    ("another JPEG decoder inside TIFF", &["hopper_jpg.tif", "tiff_strip_cmyk_jpeg", "tiff_tiled_cmyk_jpeg", "pil168"]),
    ("premultiplied alpha in TIFF", &["pil136"]),
];

#[test]
#[ignore = "CLIP_PILLOW_IMAGES must name a directory of tests/fixtures/pillow_images.py, which has 47 MB"]
fn pillows_own_images() {
    let folder = PathBuf::from(std::env::var_os("CLIP_PILLOW_IMAGES").expect("CLIP_PILLOW_IMAGES names a directory"));
    let index: Value = serde_json::from_slice(&std::fs::read(folder.join("index.json")).unwrap()).unwrap();
    let read = |name: &Value| std::fs::read(folder.join(name.as_str().unwrap())).unwrap();
    let (mut same, mut refused, mut excused, mut wrong) = (0, Vec::new(), 0, Vec::new());
    for entry in index.as_array().unwrap() {
        let name = entry["file"].as_str().unwrap();
        let ours = decode(&read(&entry["file"]), &Limits::default());
        let (Ok(ours), Some(_)) = (&ours, entry.get("reference")) else {
            // If only one of the two decodes a file, this is reported, not judged.
            match ours {
                Err(error) if entry.get("reference").is_some() => refused.push(format!("{name}: {error}")),
                _ => {}
            }
            continue;
        };
        let reference = decode(&read(&entry["reference"]), &Limits::default()).unwrap().rgb;
        let worst = match ours.rgb.dimensions() == reference.dimensions() {
            true => ours.rgb.iter().zip(reference.iter()).map(|(a, b)| a.abs_diff(*b)).max().unwrap(),
            false => 255,
        };
        if worst == 0 {
            same += 1;
        } else if OTHERWISE.iter().any(|(_, names)| names.iter().any(|start| name.starts_with(start))) {
            excused += 1;
        } else {
            wrong.push(format!("{name}: by up to {worst}/255"));
        }
    }
    println!(
        "{same} the same, {excused} otherwise for a known reason, {} refused here:\n{}",
        refused.len(),
        refused.join("\n")
    );
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
    assert!(same > 300, "only {same} were compared");
}

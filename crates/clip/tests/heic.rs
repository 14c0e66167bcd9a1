//! Compares HEIC with pillow-heif's pixels (`tests/fixtures/heic.py`), decodes grids as phones write them, and decodes
//! truncated and changed files.
#![cfg(feature = "heic")]

mod files;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clip::Kind;
use clip::image::info::info;
use clip::image::thumbnail::{Format, thumbnail};
use clip::image::{Limits, decode};
use image::RgbImage;
use serde_json::Value;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/heic")
}

fn read(file: &str) -> Vec<u8> {
    std::fs::read(fixtures().join(file)).unwrap()
}

fn mean_difference(a: &RgbImage, b: &RgbImage) -> f64 {
    assert_eq!(a.dimensions(), b.dimensions());
    a.iter().zip(b.iter()).map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>() / a.len() as f64
}

#[test]
fn pixels_are_pillow_heifs() {
    let index: Value = serde_json::from_slice(&read("index.json")).unwrap();
    for entry in index.as_array().unwrap() {
        let file = read(entry["file"].as_str().unwrap());
        let decoded = decode(&file, &Limits::default()).unwrap_or_else(|error| panic!("{entry}: {error}"));
        let reference = decode(&read(entry["reference"].as_str().unwrap()), &Limits::default()).unwrap().rgb;
        let off = mean_difference(&decoded.rgb, &reference);
        println!("{}: {off:.3}", entry["file"]);
        assert!(off <= entry["mean"].as_f64().unwrap(), "{entry}: {off} of 255 off on average");
        let header = info(&file, &Limits::default()).unwrap();
        let upright =
            if header.orientation < 5 { (header.width, header.height) } else { (header.height, header.width) };
        assert_eq!(("HEIC", upright), (header.format, decoded.size), "{entry}");
    }
}

/// A picture of this size, and a file of it in tiles of 512 pixels, as phones write them.
fn grid(width: u32, height: u32) -> (RgbImage, Vec<u8>) {
    let picture =
        RgbImage::from_fn(width, height, |x, y| image::Rgb([(x / 6) as u8, (y / 5) as u8, ((x + y) / 12) as u8]));
    let options = heifer::EncodeOptions { quality: 90, ..Default::default() };
    let file = heifer::encode_rgb8(width, height, picture.as_raw(), &options).unwrap();
    (picture, file)
}

#[test]
fn grids_are_put_together() {
    let (picture, file) = grid(1400, 1100);
    assert!(file.windows(4).any(|name| name == b"grid"));
    let decoded = decode(&file, &Limits::default()).unwrap();
    assert!(mean_difference(&decoded.rgb, &picture) < 2.0);
}

#[test]
fn limits_hold() {
    let (_, file) = grid(1400, 1100);
    let error = decode(&file, &Limits { max_pixels: 1_000_000, ..Limits::default() }).unwrap_err();
    assert_eq!(error.kind, Kind::LimitExceeded, "{error}");
    let error = decode(&file, &Limits { max_memory: 5_000_000, ..Limits::default() }).unwrap_err();
    assert_eq!((error.kind, error.message.as_str()), (Kind::LimitExceeded, "HEIC image needs too much memory"));
    let error = decode(&file, &Limits { interrupted: || true, ..Limits::default() }).unwrap_err();
    assert_eq!(error.kind, Kind::Interrupted);
}

/// The first picture of sequence.heic, and the properties of an item for it, including the decoder's configuration.
fn coded() -> (Vec<u8>, Vec<Vec<u8>>) {
    let file = read("sequence.heic");
    let number = |at: usize| u32::from_be_bytes(*file[at..].first_chunk().unwrap()) as usize;
    let whole = |name: &[u8]| {
        let at = content(&file, name) - 8;
        file[at..at + number(at)].to_vec()
    };
    let size = files::boxed(b"ispe", &[[0; 4], 120_u32.to_be_bytes(), 80_u32.to_be_bytes()].concat());
    let (offset, sizes) = (number(content(&file, b"stco") + 8), content(&file, b"stsz"));
    let sample = file[offset..offset + number(sizes + 12)].to_vec();
    (sample, vec![size, whole(b"hvcC"), whole(b"colr")])
}

/// The grid's only tile refers to the grid as its own tile.
#[test]
fn tiles_that_form_a_circle_end() {
    let (sample, properties) = coded();
    let grid = [0, 0, 0, 0, 0, 120, 0, 80];
    let items: [(&[u8; 4], &[u8]); 2] = [(b"grid", &grid), (b"hvc1", &sample)];
    let file = files::heif(&items, &[(b"dimg", 1, &[2]), (b"dimg", 2, &[1])], &properties);
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let made = thumbnail(&file, 64, Format::Png, &Limits::default()).map(drop);
        let _ =
            sender.send((made, info(&file, &Limits::default()).map(drop), decode(&file, &Limits::default()).map(drop)));
    });
    let ended = receiver.recv_timeout(Duration::from_secs(20)).expect("an end");
    assert!(matches!(ended, (Ok(()), Ok(()), Ok(()))), "{ended:?}");
}

/// The decoder keeps a record of each piece (NAL unit), which may be a single byte.
#[test]
fn a_picture_of_countless_pieces_is_broken() {
    let (_, mut properties) = coded();
    // The lengths of pieces have one byte.
    properties[1][8 + 21] &= 0xFC;
    let file = files::heif(&[(b"hvc1", &vec![0; 1 << 20])], &[], &properties);
    let error = decode(&file, &Limits::default()).unwrap_err();
    assert_eq!(error.detail.as_deref(), Some("Its coded picture is in more than 4096 pieces."), "{error}");
}

/// Coded data among the tables do not count as tables.
#[test]
fn a_first_picture_of_any_size_is_read() {
    let (sample, properties) = coded();
    // A message of 256 kB (a suffix SEI, type 40) follows the slices.
    let message = [(1_u32 << 18).to_be_bytes().as_slice(), &[80, 1], &vec![0x80; (1 << 18) - 2]].concat();
    let padded = [sample, message].concat();
    let file = files::heif(&[(b"hvc1", &padded)], &[], &properties);
    assert_eq!(decode(&file, &Limits::default()).unwrap().size, (120, 80));
}

/// Items that are looked up one by one are limited in number; here they are references without a meaning.
#[test]
fn tables_have_a_limit() {
    let (sample, properties) = coded();
    let with = |count: usize| {
        let references: Vec<(&[u8; 4], u16, &[u16])> = vec![(b"auxl", 1, &[1]); count];
        files::heif(&[(b"hvc1", sample.as_slice())], &references, &properties)
    };
    assert!(decode(&with(500), &Limits::default()).is_ok());
    let error = decode(&with(10_000), &Limits::default()).unwrap_err();
    assert_eq!((error.kind, error.message.as_str()), (Kind::LimitExceeded, "HEIC image has too many items"));
}

/// An EXIF item with the time at which a picture was taken. It begins with the offset of the EXIF block.
fn exif(date: &[u8; 20]) -> Vec<u8> {
    let entry = |tag: u16, kind: u16, count: u32, value: u32| {
        [
            &1u16.to_le_bytes(),
            &tag.to_le_bytes(),
            &kind.to_le_bytes(),
            count.to_le_bytes().as_slice(),
            &value.to_le_bytes(),
            &[0; 4],
        ]
        .concat()
    };
    // The EXIF directory is at position 26, its text at 44.
    [[0; 4].as_slice(), b"II*\0\x08\0\0\0", &entry(0x8769, 4, 1, 26), &entry(0x9003, 2, 20, 44), date].concat()
}

/// EXIF blocks that share their data take no space in the file, but each would be read.
#[test]
fn many_blocks_of_exif_are_not_read() {
    let (sample, properties) = coded();
    let block = exif(b"2026:08:15 12:33:45\0");
    let with = |count: u16| {
        let mut items: Vec<(&[u8; 4], &[u8])> = vec![(b"hvc1", &sample)];
        items.extend((0..count).map(|_| (b"Exif", block.as_slice())));
        let references: Vec<(&[u8; 4], u16, &[u16])> = (2..count + 2).map(|id| (b"cdsc", id, [1].as_slice())).collect();
        files::heif(&items, &references, &properties)
    };
    for (count, has_date) in [(0, false), (1, true), (4, true), (5, false), (1000, false)] {
        let header = info(&with(count), &Limits::default()).unwrap();
        assert_eq!(header.taken.map(|taken| (taken.year, taken.second)), has_date.then_some((2026, 45)), "{count}");
    }
}

/// Cameras code 33 megapixels as one picture.
#[test]
fn a_large_picture_in_one_piece_is_within_the_limits() {
    let mut file = read("plain.heic");
    let at = content(&file, b"ispe") + 4;
    file[at..at + 8].copy_from_slice(&[7008_u32.to_be_bytes(), 4672_u32.to_be_bytes()].concat());
    let error = decode(&file, &Limits::default()).unwrap_err();
    assert_eq!(error.detail.as_deref(), Some("Its coded picture is smaller than it says."), "{error}");
}

static STOP: AtomicBool = AtomicBool::new(false);

#[test]
fn a_call_that_cannot_be_stopped_is_abandoned() {
    // The picture is large: one call of the decoder takes far longer than 0.05 s, after which the call is abandoned.
    let noise = RgbImage::from_fn(6000, 4000, |x, y| image::Rgb([(x * y) as u8, (x ^ y) as u8, (x * 7 + y * 3) as u8]));
    let mut webp = std::io::Cursor::new(Vec::new());
    noise.write_to(&mut webp, image::ImageFormat::WebP).unwrap();
    let file = webp.into_inner();
    let limits = Limits { interrupted: || STOP.load(Ordering::Relaxed), ..Limits::default() };
    let start = Instant::now();
    assert!(decode(&file, &limits).unwrap().rgb == noise);
    let whole = start.elapsed();
    let stopper = std::thread::spawn(|| {
        std::thread::sleep(Duration::from_millis(20));
        STOP.store(true, Ordering::Relaxed);
    });
    let start = Instant::now();
    let result = decode(&file, &limits);
    let took = start.elapsed();
    stopper.join().unwrap();
    assert!(result.is_err_and(|error| error.kind == Kind::Interrupted), "decoded in {took:?}");
    assert!(took < whole * 3 / 4, "{took:?}, and the whole takes {whole:?}");
    // The next call waits for the abandoned one, and has the right result.
    STOP.store(false, Ordering::Relaxed);
    assert!(decode(&file, &limits).unwrap().rgb == noise);
}

#[test]
fn sequences_have_frames_and_a_turn() {
    for (file, orientation) in
        [("sequence", 1), ("sequence_turned", 6), ("sequence_half_turn", 3), ("sequence_inband", 1)]
    {
        let header = info(&read(&format!("{file}.heic")), &Limits::default()).unwrap();
        assert_eq!((header.width, header.height, header.frames), (120, 80, 2), "{file}");
        assert_eq!((header.channels, header.bits, header.orientation), (3, 8, orientation), "{file}");
    }
}

/// The stated number of frames may be wrong, so it is limited to what the file can hold.
#[test]
fn a_sequence_has_no_more_frames_than_it_lists() {
    let mut file = read("sequence.heic");
    let at = content(&file, b"stsz") + 8;
    file[at..at + 4].copy_from_slice(&u32::MAX.to_be_bytes());
    assert_eq!(info(&file, &Limits::default()).unwrap().frames, 2);
    // All frames have one size, which is stored once.
    file[at - 4..at].copy_from_slice(&1000_u32.to_be_bytes());
    assert_eq!(info(&file, &Limits::default()).unwrap().frames as usize, file.len());
}

/// The position where the content of the first box with this name begins.
fn content(file: &[u8], name: &[u8]) -> usize {
    file.windows(4).position(|window| window == name).unwrap() + 4
}

#[test]
fn a_sequence_that_starts_with_no_picture_is_refused_by_name() {
    let unsupported = |file: &[u8]| {
        let error = decode(file, &Limits::default()).unwrap_err();
        assert_eq!(error.kind, Kind::Unsupported, "{error}");
        assert!(error.detail.as_deref().unwrap().contains("sequence"), "{error}");
        assert_eq!(info(file, &Limits::default()).unwrap_err().kind, Kind::Unsupported);
    };
    unsupported(b"\0\0\0\x18ftyphevc\0\0\0\0msf1hevc\0\0\0\x10moov\0\0\0\x08trak");
    let mut other_codec = read("sequence.heic");
    let at = content(&other_codec, b"hvc1");
    other_codec[at - 4..at].copy_from_slice(b"vvc1");
    unsupported(&other_codec);
    // The matrix scales the picture to half the width.
    let mut scaled = read("sequence.heic");
    let at = content(&scaled, b"tkhd") + 40;
    scaled[at..at + 4].copy_from_slice(&(1_i32 << 15).to_be_bytes());
    unsupported(&scaled);
}

#[test]
fn a_sequence_without_its_first_picture_is_truncated() {
    let mut file = read("sequence.heic");
    let at = content(&file, b"stco") + 8;
    let beyond = file.len() as u32 - 10;
    file[at..at + 4].copy_from_slice(&beyond.to_be_bytes());
    let error = decode(&file, &Limits::default()).unwrap_err();
    assert_eq!((error.kind, error.message.as_str()), (Kind::InvalidInput, "HEIC image is truncated"), "{error}");
}

/// A mirrored matrix exchanges left and right before the turn.
#[test]
fn a_mirrored_sequence_is_mirrored() {
    let with_matrix = |matrix: [i32; 4]| {
        let mut file = read("sequence.heic");
        let at = content(&file, b"tkhd") + 40;
        for (offset, value) in [0, 4, 12, 16].into_iter().zip(matrix) {
            file[at + offset..at + offset + 4].copy_from_slice(&(value << 16).to_be_bytes());
        }
        decode(&file, &Limits::default()).unwrap().rgb
    };
    let plain = with_matrix([1, 0, 0, 1]);
    use image::imageops::{flip_horizontal, flip_vertical, rotate90, rotate270};
    assert!(with_matrix([-1, 0, 0, 1]) == flip_horizontal(&plain));
    assert!(with_matrix([1, 0, 0, -1]) == flip_vertical(&plain));
    assert!(with_matrix([0, 1, 1, 0]) == rotate270(&flip_horizontal(&plain)));
    assert!(with_matrix([0, -1, -1, 0]) == rotate90(&flip_horizontal(&plain)));
    assert!(with_matrix([0, 1, -1, 0]) == rotate90(&plain));
    assert!(with_matrix([0, -1, 1, 0]) == rotate270(&plain));
}

#[test]
fn cut_and_changed_files_are_errors() {
    files::cut_and_change(&read("plain.heic"));
    files::cut_and_change(&read("sequence.heic"));
}

//! Tests that [`Limits::max_memory`] agrees with the process's peak memory: a file takes no more than the number of
//! bytes that an error states, is refused with one byte less, and is decoded with exactly this number.

#![allow(unsafe_code)]

mod files;

use clip::Kind;
use clip::image::preprocess::{Preprocess, Resize};
use clip::image::thumbnail::{Format, thumbnail};
use clip::image::{Limits, decode, decode_for};
use files::{File, Samples, of_every_format, peak, png, progressive, reset_peak, tiff};

/// Bytes of the process's other memory: stacks, tables, and memory that the allocator retains.
const BESIDE: u64 = 8 << 20;

type Work = fn(&[u8], &Limits) -> clip::Result<()>;

fn embed(bytes: &[u8], limits: &Limits) -> clip::Result<()> {
    let preprocess = Preprocess::clip(224);
    decode_for(bytes, limits, &preprocess)?.prepare(&preprocess, limits).map(drop)
}

fn squash(bytes: &[u8], limits: &Limits) -> clip::Result<()> {
    let preprocess = Preprocess { resize: Resize::Exact(224, 224), crop: None, ..Preprocess::clip(224) };
    decode_for(bytes, limits, &preprocess)?.prepare(&preprocess, limits).map(drop)
}

/// The number of bytes that an error states.
fn stated(error: &clip::Error) -> u64 {
    let detail = error.detail.as_deref().unwrap();
    let words: Vec<&str> = detail.split(' ').collect();
    let at = words.iter().position(|word| word.starts_with("bytes")).unwrap_or_else(|| panic!("{detail}"));
    words[at - 1].parse().unwrap_or_else(|_| panic!("{detail}"))
}

/// The lowest limit at which the work succeeds.
fn needed(file: &File, work: Work) -> u64 {
    let mut max_memory = 1;
    loop {
        match work(&file.bytes, &Limits { max_memory, ..Limits::default() }) {
            Ok(()) => return max_memory,
            Err(error) => {
                assert_eq!(error.kind, Kind::LimitExceeded, "{}: {error}", file.name);
                assert!(error.message.contains("memory"), "{}: {error}", file.name);
                let more = stated(&error);
                assert!(more > max_memory, "{}: {error}", file.name);
                max_memory = more;
            }
        }
    }
}

/// This is a single test, because the peak applies to the whole process.
#[test]
fn the_limit_is_the_peak() {
    // Large blocks are mapped separately and returned to the system when they are freed. Otherwise, freed memory would
    // stay resident and hide new allocations. SAFETY: the call has no precondition.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, 64 << 10) };
    let mut files = of_every_format(3001, 2003);
    // These files once took 3.2 GB, 4.9 GB and 2.9 GB.
    files.push(File {
        name: "16 kB of float TIFF",
        bytes: tiff(5000, 5000, Samples { count: 4, bits: 32, float: true }, 100),
    });
    let grey = Samples { count: 1, bits: 8, float: false };
    files.push(File { name: "TIFF of 20,000,000 × 1", bytes: tiff(20_000_000, 1, grey, 1) });
    files.push(File { name: "TIFF of 1 × 2,000,000", bytes: tiff(1, 2_000_000, grey, 65_536) });
    files.push(File {
        name: "PNG of 1 × 5,000,000",
        bytes: png(1, 5_000_000, png::ColorType::Grayscale, png::BitDepth::Eight),
    });
    files.push(File {
        name: "PNG of 5,000,000 × 2",
        bytes: png(5_000_000, 2, png::ColorType::Rgb, png::BitDepth::Eight),
    });
    files.push(File { name: "progressive JPEG", bytes: progressive(4000, 4000, 12) });
    let works: [(&str, Work); 4] = [
        ("decode", |bytes, limits| decode(bytes, limits).map(drop)),
        ("embed", embed),
        ("squash", squash),
        ("thumbnail", |bytes, limits| thumbnail(bytes, 256, Format::Jpeg, limits).map(drop)),
    ];
    let mut wrong = Vec::new();
    for file in &files {
        for (name, work) in works {
            let max_memory = needed(file, work);
            let limits = Limits { max_memory, ..Limits::default() };
            assert!(reset_peak(), "the peak can't be reset: /proc/self/clear_refs can't be written");
            let before = peak();
            let start = std::time::Instant::now();
            work(&file.bytes, &limits).unwrap();
            let (grown, took) = (peak().saturating_sub(before), start.elapsed());
            println!(
                "{:28} {name:10} {:>8} kB: limit {:>7} kB, peak {:>7} kB, {took:?}",
                file.name,
                file.bytes.len() >> 10,
                max_memory >> 10,
                grown >> 10
            );
            if grown > max_memory + BESIDE {
                wrong.push(format!("{} {name}: {grown} bytes, where the limit says {max_memory}", file.name));
            }
            // A stated size far above the actual one would refuse files needlessly.
            if !file.name.contains('×') && max_memory > 3 * grown + BESIDE {
                wrong.push(format!("{} {name}: a limit of {max_memory} for {grown} bytes", file.name));
            }
            assert!(work(&file.bytes, &Limits { max_memory: max_memory - 1, ..limits }).is_err());
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

//! JPEG's markers: reads values that the decoder doesn't return, and limits the number and the work of the scans.

use crate::error::{Error, Kind, Result};
use crate::image::limits::Limits;

/// Maximum number of scans. It is more than any encoder writes: libjpeg-turbo's own progressive script has 10.
const MAX_SCANS: usize = 500;

/// Maximum number of times that a file's scans pass over its picture. libjpeg-turbo's progressive script makes 7
/// passes; the most refined scripts, with a scan for each bit, make 14.
const MAX_PASSES: u64 = 24;
/// Passes over fewer blocks in total are not limited: they take about 0.2 s.
const FREE_BLOCKS: u64 = 10_000_000;

/// Walks the marker segments before the picture data: (marker, payload).
pub(crate) fn segments(bytes: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    let mut at = 2;
    std::iter::from_fn(move || {
        let (marker, payload, next) = segment(bytes, at)?;
        at = next;
        (marker != 0xDA).then_some((marker, payload)) // until the first scan
    })
}

/// The segment at a position: its marker, its payload, and the rest.
fn segment(bytes: &[u8], mut at: usize) -> Option<(u8, &[u8], usize)> {
    while bytes.get(at) == Some(&0xFF) && bytes.get(at + 1) == Some(&0xFF) {
        at += 1; // fill bytes
    }
    let [0xFF, marker, high, low] = *bytes.get(at..at + 4)? else { return None };
    let length = usize::from(u16::from_be_bytes([high, low]));
    Some((marker, bytes.get(at + 4..at + 2 + length)?, at + 2 + length))
}

/// The frame header.
pub(crate) struct Frame {
    marker: u8,
    width: u32,
    height: u32,
    /// For each component: its id, and its horizontal and vertical sampling factors.
    components: Vec<(u8, u32, u32)>,
}

impl Frame {
    fn largest(&self) -> (u32, u32) {
        let most = |side: fn(&(u8, u32, u32)) -> u32| self.components.iter().map(side).max().unwrap_or(1).max(1);
        (most(|c| c.1), most(|c| c.2))
    }

    /// The number of blocks of a component, padded to whole MCUs.
    fn blocks_of(&self, (_, across, down): (u8, u32, u32)) -> u64 {
        let (most_across, most_down) = self.largest();
        let groups = u64::from(self.width.div_ceil(8 * most_across)) * u64::from(self.height.div_ceil(8 * most_down));
        groups * u64::from(across * down)
    }

    pub fn blocks(&self) -> u64 {
        self.components.iter().map(|component| self.blocks_of(*component)).sum()
    }

    pub fn is_progressive(&self) -> bool {
        matches!(self.marker, 0xC2 | 0xC6 | 0xCA | 0xCE)
    }

    /// Encoded without a DCT (ITU-T T.81, process 14).
    pub fn is_lossless(&self) -> bool {
        matches!(self.marker, 0xC3 | 0xC7 | 0xCB | 0xCF)
    }

    /// The number of pixel rows that are decoded together.
    pub fn row_height(&self) -> u32 {
        if self.is_lossless() { self.largest().1 } else { 8 * self.largest().1 }
    }
}

pub(crate) fn frame(bytes: &[u8]) -> Option<Frame> {
    let (marker, payload) =
        segments(bytes).find(|(m, _)| matches!(m, 0xC0..=0xCF) && !matches!(m, 0xC4 | 0xC8 | 0xCC))?;
    let number = |at: usize| Some(u32::from(u16::from_be_bytes([*payload.get(at)?, *payload.get(at + 1)?])));
    let components = payload.get(6..)?.as_chunks::<3>().0.iter();
    let components = components.map(|c| (c[0], u32::from(c[1] >> 4), u32::from(c[1] & 15))).collect();
    Some(Frame { marker, height: number(1)?, width: number(3)?, components })
}

/// The name of a kind of JPEG that the decoder doesn't support.
pub(crate) fn unsupported_process(bytes: &[u8]) -> Option<&'static str> {
    segments(bytes).find_map(|(marker, _)| match marker {
        0xF7 => Some("JPEG-LS"),
        0xC3 | 0xC7 | 0xCB | 0xCF => Some("lossless JPEG"),
        0xC5 | 0xC6 | 0xCD | 0xCE | 0xDE => Some("hierarchical JPEG"),
        _ => None,
    })
}

/// What a file's scans contain.
#[derive(Debug)]
pub(crate) struct Scans {
    /// Whether every component has a scan.
    pub complete: bool,
    /// Whether the last scan only refines the picture: it contains coefficients from the second one on, or the last
    /// bits of earlier ones.
    pub last_refines: bool,
}

/// Checks the scans of a file and refuses a file that passes over its picture too often: 70 kB of nearly empty scans
/// kept a processor busy for 47 seconds.
pub(crate) fn check_scans(bytes: &[u8], limits: &Limits) -> Result<Scans> {
    let Some(frame) = frame(bytes) else { return Ok(Scans { complete: true, last_refines: false }) };
    let (mut at, mut scans, mut blocks, mut seen) = (2, 0, 0u64, Vec::new());
    let mut last_refines = false;
    while let Some((marker, payload, next)) = segment(bytes, at) {
        at = next;
        if marker == 0xDA {
            scans += 1;
            let count = usize::from(payload.first().copied().unwrap_or(0));
            // In a progressive file these are the first coefficient, the last coefficient, and the number of bits sent
            // earlier (high four bits).
            let spectrum = payload.get(1 + 2 * count..);
            last_refines = frame.is_progressive()
                && spectrum.is_some_and(|spectrum| matches!(spectrum, [first, _, bits] if *first > 0 || bits >> 4 > 0));
            for chosen in payload.get(1..1 + 2 * count).unwrap_or_default().as_chunks::<2>().0 {
                if let Some(component) = frame.components.iter().find(|c| c.0 == chosen[0]) {
                    blocks += frame.blocks_of(*component);
                    if !seen.contains(&component.0) {
                        seen.push(component.0);
                    }
                }
            }
            let passes = blocks.div_ceil(frame.blocks().max(1));
            if scans > MAX_SCANS || (passes > MAX_PASSES && blocks > FREE_BLOCKS) {
                return Err(Error::new(Kind::LimitExceeded, "JPEG image has too many scans").detail(format!(
                    "Its first {scans} scans pass over its {}×{} pixels {passes} times; the limits are {MAX_SCANS} \
                     scans and {MAX_PASSES} passes.",
                    frame.width, frame.height
                )));
            }
        }
        at = next_marker(bytes, at, limits)?;
    }
    Ok(Scans { complete: seen.len() == frame.components.len(), last_refines })
}

/// The position of the next marker outside picture data.
fn next_marker(bytes: &[u8], mut at: usize, limits: &Limits) -> Result<usize> {
    const PIECE: usize = 16 << 20;
    while at < bytes.len() {
        let end = bytes.len().min(at + PIECE);
        let found =
            bytes[at..end].windows(2).position(|pair| pair[0] == 0xFF && !matches!(pair[1], 0 | 0xD0..=0xD7 | 0xFF));
        match found {
            Some(found) => return Ok(at + found),
            None if end == bytes.len() => break,
            None => at = end - 1,
        }
        limits.check_interrupt()?;
    }
    Ok(bytes.len())
}

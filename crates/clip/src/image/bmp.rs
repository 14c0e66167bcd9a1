//! BMP and ICO: the headers that are read beside the decoder.

/// Whether a BMP's header says that it has no pixels, which its decoder calls too many.
pub(crate) fn is_empty(bytes: &[u8]) -> bool {
    let side = |at: usize| bytes.get(at..).and_then(|rest| rest.first_chunk()).map(|n| i32::from_le_bytes(*n));
    // A header of 12 bytes is OS/2's, with 16-bit sides.
    side(14) != Some(12) && (side(18) == Some(0) || side(22) == Some(0))
}

/// Whether a BMP's pixels are numbers of colours in a table: up to 8 bits each.
pub(crate) fn has_palette(bytes: &[u8]) -> bool {
    let short = |at: usize| bytes.get(at..).and_then(|rest| rest.first_chunk()).map(|n| u16::from_le_bytes(*n));
    // OS/2's header of 12 bytes has its fields closer together.
    let at = if short(14) == Some(12) { 24 } else { 28 };
    short(at).is_some_and(|bits| bits <= 8)
}

/// The largest picture of an icon, where it is a PNG file: the icon decoder takes RGBA ones only.
pub(crate) fn ico_png(bytes: &[u8]) -> Option<&[u8]> {
    let count = usize::from(u16::from_le_bytes([*bytes.get(4)?, *bytes.get(5)?]));
    let entries = bytes.get(6..6 + count * 16)?.as_chunks::<16>().0;
    // A side of 256 is stored as 0. Among equal sizes the one with more bits a pixel is meant.
    let side = |byte: u8| if byte == 0 { 256 } else { u32::from(byte) };
    let best = entries.iter().max_by_key(|e| (side(e[0]) * side(e[1]), u16::from_le_bytes([e[6], e[7]])))?;
    let number = |at: usize| u32::from_le_bytes([best[at], best[at + 1], best[at + 2], best[at + 3]]) as usize;
    let picture = bytes.get(number(12)..number(12).checked_add(number(8))?)?;
    picture.starts_with(b"\x89PNG\r\n\x1a\n").then_some(picture)
}

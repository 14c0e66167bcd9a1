//! PNG containers: the chunks that are read beside the decoder.

/// The EXIF block of a PNG, wherever it stands: the specification allows it after the picture.
pub(crate) fn exif(bytes: &[u8]) -> Option<&[u8]> {
    let mut at = 8;
    loop {
        let length = u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?) as usize;
        let kind = bytes.get(at + 4..at + 8)?;
        let payload = bytes.get(at + 8..(at + 8).checked_add(length)?)?;
        if kind == b"eXIf" {
            return Some(payload);
        }
        at += 12 + length;
    }
}

/// Frames that an animated PNG announces before its picture data. The picture is a frame of its own, unless a frame's
/// header stands before it.
pub(crate) fn frames(bytes: &[u8]) -> u32 {
    let (mut at, mut announced, mut is_frame) = (8, None, false);
    while let Some(header) = bytes.get(at..at + 8) {
        let length = u32::from_be_bytes([header[0], header[1], header[2], header[3]]) as usize;
        match &header[4..] {
            b"acTL" => {
                announced = bytes.get(at + 8..).and_then(|rest| rest.first_chunk()).map(|n| u32::from_be_bytes(*n))
            }
            b"fcTL" => is_frame = true,
            b"IDAT" => break,
            _ => {}
        }
        at = at.saturating_add(12).saturating_add(length);
    }
    match announced {
        Some(frames @ 1..=0x8000_0000) => frames + u32::from(!is_frame),
        _ => 1,
    }
}

//! WebP containers: the chunks that are read beside the decoder.

/// Whether a WebP file is shorter than its RIFF header says.
pub(crate) fn is_cut(bytes: &[u8]) -> bool {
    let stated = bytes.get(4..).and_then(|rest| rest.first_chunk()).map_or(0, |size| u32::from_le_bytes(*size));
    bytes.len() < 8 + stated as usize
}

/// The chunks of an animation's frames, as far as the file goes; a still picture has none.
pub(crate) fn frames(bytes: &[u8]) -> u32 {
    let (mut at, mut frames) = (12, 0u32);
    while let Some(header) = bytes.get(at..at + 8) {
        frames += u32::from(header.starts_with(b"ANMF"));
        let length = u32::from_le_bytes([header[4], header[5], header[6], header[7]]) as usize;
        // Chunks of odd length are filled up.
        at = at.saturating_add(8).saturating_add(length + length % 2);
    }
    frames.max(1)
}

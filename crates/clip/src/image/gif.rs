//! GIF containers: the blocks that are read beside the decoder.

/// Image descriptors, walking the blocks (GIF89a, section 18 and on), as far as the file goes.
pub(crate) fn frames(bytes: &[u8]) -> u32 {
    let palette = |flags: u8| if flags & 0x80 == 0 { 0 } else { 3 << ((flags & 7) + 1) };
    let Some(&flags) = bytes.get(10) else { return 0 };
    let (mut at, mut frames) = (13 + palette(flags), 0);
    loop {
        match bytes.get(at) {
            Some(0x2C) => {
                let Some(&flags) = bytes.get(at + 9) else { return frames };
                at += 10 + palette(flags) + 1;
                frames += 1;
            }
            Some(0x21) => at += 2,
            _ => return frames,
        }
        // Blocks of data, each with its length before it, until an empty one.
        while let Some(&length) = bytes.get(at) {
            at += 1 + usize::from(length);
            if length == 0 {
                break;
            }
        }
    }
}

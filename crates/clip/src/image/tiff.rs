//! TIFF containers: the directories that are read beside the decoder.

/// Directories of a TIFF, each of which has the next one's place at its end, as far as the file goes. None where they
/// go round in a circle, which is found in constant memory (Brent's algorithm): 200 MB hold 30 million of them.
pub(crate) fn pages(bytes: &[u8]) -> Option<u32> {
    let big_endian = bytes.starts_with(b"MM");
    let number = |at: usize, width: usize| -> Option<u64> {
        let bytes = bytes.get(at..at.checked_add(width)?)?;
        let digit = |value: u64, byte: &u8| value << 8 | u64::from(*byte);
        Some(if big_endian { bytes.iter().fold(0, digit) } else { bytes.iter().rev().fold(0, digit) })
    };
    // Widths of a count, an entry and an offset.
    let large = number(2, 2) == Some(43);
    let (count_width, entry, offset) = if large { (8, 20, 8) } else { (2, 12, 4) };
    let next = |at: u64| {
        let at = usize::try_from(at).ok()?;
        let entries = usize::try_from(number(at, count_width)?).ok()?.checked_mul(entry)?;
        number(at.checked_add(count_width)?.checked_add(entries)?, offset)
    };
    let mut at = number(if large { 8 } else { 4 }, offset).unwrap_or(0);
    let (mut pages, mut mark, mut steps, mut limit) = (0u32, at, 0u32, 1u32);
    while at != 0 {
        let Some(following) = next(at) else { break };
        pages += 1;
        at = following;
        if at == mark {
            return None;
        }
        steps += 1;
        if steps == limit {
            (mark, steps, limit) = (at, 0, limit.saturating_mul(2));
        }
    }
    Some(pages.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_in_a_circle_are_found() {
        // 100 empty directories of 6 bytes; the last leads to a page in their midst, or nowhere.
        let file = |end: u32| {
            let mut bytes = b"II*\0\x08\0\0\0".to_vec();
            for page in 0..100u32 {
                let next = if page == 99 { end } else { 8 + 6 * (page + 1) };
                bytes.extend([0, 0]);
                bytes.extend(next.to_le_bytes());
            }
            bytes
        };
        assert_eq!(pages(&file(0)), Some(100));
        assert_eq!(pages(&file(1 << 30)), Some(100));
        for page in [0, 1, 50, 99] {
            assert_eq!(pages(&file(8 + 6 * page)), None, "{page}");
        }
    }
}

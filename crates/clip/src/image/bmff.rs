//! Boxes of ISO base media files that are read in addition to a library: they are read in place, regardless of the
//! length that they claim.

/// The boxes in a range of bytes: name and content, up to the end of the bytes.
pub(crate) fn boxes(bytes: &[u8]) -> impl Iterator<Item = ([u8; 4], &[u8])> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let rest = bytes.get(at..)?;
        let header = rest.first_chunk::<8>()?;
        let name = [header[4], header[5], header[6], header[7]];
        let (length, start) = match u32::from_be_bytes([header[0], header[1], header[2], header[3]]) {
            0 => (rest.len() as u64, 8),
            1 => (u64::from_be_bytes(*rest.get(8..)?.first_chunk()?), 16),
            length => (u64::from(length), 8),
        };
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length < start {
            return None;
        }
        at += length.min(rest.len());
        Some((name, &rest[start..length.min(rest.len())]))
    })
}

/// The content of the first box with a name.
pub(crate) fn find(bytes: &[u8], name: [u8; 4]) -> Option<&[u8]> {
    boxes(bytes).find(|(found, _)| *found == name).map(|(_, content)| content)
}

/// Pictures of a sequence: the samples of the first track that has any.
#[cfg(any(feature = "heic", feature = "avif"))]
pub(crate) fn sequence_frames(bytes: &[u8]) -> Option<u32> {
    let movie = find(bytes, *b"moov")?;
    boxes(movie).filter(|(name, _)| name == b"trak").find_map(|(_, track)| {
        let table = [*b"mdia", *b"minf", *b"stbl"].into_iter().try_fold(track, find)?;
        // Version and flags, the common size of all samples, or 0 where each has its own, and their number.
        let sizes = find(table, *b"stsz")?;
        let number = |at: usize| Some(u32::from_be_bytes(*sizes.get(at..)?.first_chunk()?));
        let count = number(8)?;
        let most = if number(4)? == 0 { (sizes.len() - 12) / 4 } else { bytes.len() };
        Some(count.min(u32::try_from(most).unwrap_or(u32::MAX)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_end_with_the_bytes() {
        let mut bytes = b"\0\0\0\x0cftypabcd".to_vec();
        bytes.extend(b"\0\0\0\x01meta\0\0\0\0\0\0\0\x12xy");
        bytes.extend(b"\0\0\0\0mdatrest");
        let all: Vec<_> = boxes(&bytes).collect();
        assert_eq!(all, [(*b"ftyp", b"abcd".as_slice()), (*b"meta", b"xy"), (*b"mdat", b"rest")]);
        // Lengths that are too short or too long.
        assert_eq!(boxes(b"\0\0\0\x07ftyp").count(), 0);
        assert_eq!(boxes(b"\0\0\0\x01ftyp\0\0\0\0\0\0\0\x08").count(), 0);
        assert_eq!(boxes(b"\xff\xff\xff\xffftypab").collect::<Vec<_>>(), [(*b"ftyp", b"ab".as_slice())]);
        assert_eq!(boxes(b"\0\0\0\x01ftyp\xff\xff\xff\xff\xff\xff\xff\xff").collect::<Vec<_>>().len(), 1);
    }
}

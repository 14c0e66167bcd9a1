//! Reads boxes of ISO base media files (ISO/IEC 14496-12) for values that the library doesn't return. Each box is a
//! slice of the file; a box that claims more bytes than the file has ends with the file.

/// The boxes in a range of bytes, as name and content. The last box is cut at the end of the bytes. A length shorter
/// than the box's own header ends the iteration.
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

/// The number of pictures in a sequence: the samples of the first track that has any.
#[cfg(any(feature = "heic", feature = "avif"))]
pub(crate) fn sequence_frames(bytes: &[u8]) -> Option<u32> {
    let movie = find(bytes, *b"moov")?;
    boxes(movie).filter(|(name, _)| name == b"trak").find_map(|(_, track)| {
        let table = [*b"mdia", *b"minf", *b"stbl"].into_iter().try_fold(track, find)?;
        // The content of `stsz`: version and flags, the size of every sample (0 if a list of sizes follows), and the
        // number of samples. The number is limited to what the file can hold.
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
        // The lengths are shorter than the header, or longer than the file.
        assert_eq!(boxes(b"\0\0\0\x07ftyp").count(), 0);
        assert_eq!(boxes(b"\0\0\0\x01ftyp\0\0\0\0\0\0\0\x08").count(), 0);
        assert_eq!(boxes(b"\xff\xff\xff\xffftypab").collect::<Vec<_>>(), [(*b"ftyp", b"ab".as_slice())]);
        assert_eq!(boxes(b"\0\0\0\x01ftyp\xff\xff\xff\xff\xff\xff\xff\xff").collect::<Vec<_>>().len(), 1);
    }
}

//! TIFF's directories: reads tags and their values in place. Lengths that a file claims cause no allocation.

use crate::error::Result;
use crate::image::limits::Limits;
use crate::image::picture::{Format, truncated};

/// A file, its byte order and the width of its numbers.
#[derive(Clone, Copy)]
pub(crate) struct File<'a> {
    pub bytes: &'a [u8],
    pub big_endian: bool,
    /// Whether it is a BigTIFF, whose counts and offsets have 64 bits.
    large: bool,
}

/// The tags of one page.
#[derive(Clone, Copy)]
pub(crate) struct Directory<'a> {
    pub file: File<'a>,
    /// The position of the first entry, followed by the number of entries.
    at: usize,
    entries: usize,
}

/// The values of a tag.
#[derive(Clone, Copy)]
pub(crate) struct Values<'a> {
    file: File<'a>,
    kind: u16,
    pub count: u64,
    at: usize,
}

impl<'a> File<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        let file = Self { bytes, big_endian: bytes.starts_with(b"MM"), large: false };
        Self { large: file.number(2, 2) == Some(43), ..file }
    }

    /// The unsigned number of `width` bytes at a position.
    pub fn number(&self, at: usize, width: usize) -> Option<u64> {
        let bytes = self.bytes.get(at..at.checked_add(width)?)?;
        let digit = |value: u64, byte: &u8| value << 8 | u64::from(*byte);
        Some(if self.big_endian { bytes.iter().fold(0, digit) } else { bytes.iter().rev().fold(0, digit) })
    }

    /// The widths of a directory's count, an entry, and an offset, in bytes.
    fn widths(&self) -> (usize, usize, usize) {
        if self.large { (8, 20, 8) } else { (2, 12, 4) }
    }

    fn first_offset(&self) -> Option<u64> {
        self.number(if self.large { 8 } else { 4 }, self.widths().2)
    }

    /// The first page.
    pub fn first(&self) -> Result<Directory<'a>> {
        let cut = || truncated(Format::Tiff, self.bytes.len());
        self.directory(self.first_offset().ok_or_else(cut)?).ok_or_else(cut)
    }

    /// The directory at a position.
    pub fn directory(&self, at: u64) -> Option<Directory<'a>> {
        let (count, entry, _) = self.widths();
        let at = usize::try_from(at).ok()?;
        let entries = usize::try_from(self.number(at, count)?).ok()?;
        let at = at.checked_add(count)?;
        self.bytes.get(at..at.checked_add(entries.checked_mul(entry)?)?)?;
        Some(Directory { file: *self, at, entries })
    }

    /// The directory that follows another one.
    pub fn next(&self, directory: &Directory) -> Option<Directory<'a>> {
        let (_, entry, offset) = self.widths();
        let at = self.number(directory.at + directory.entries * entry, offset)?;
        if at == 0 { None } else { self.directory(at) }
    }

    /// Counts the directories, each of which ends with the position of the next one, up to the end of the file. Cycles
    /// are detected in constant memory (Brent's algorithm), because 200 MB can contain 30 million directories.
    ///
    /// # Errors
    /// [`crate::Kind::InvalidInput`] if they form a cycle; [`crate::Kind::Interrupted`].
    pub fn pages(&self, limits: &Limits) -> Result<u32> {
        let (_, entry, offset) = self.widths();
        let next = |at: u64| {
            let directory = self.directory(at)?;
            self.number(directory.at + directory.entries * entry, offset)
        };
        let mut at = self.first_offset().unwrap_or(0);
        let (mut pages, mut mark, mut steps, mut limit) = (0u32, at, 0u32, 1u32);
        while at != 0 {
            let Some(following) = next(at) else { break };
            pages += 1;
            at = following;
            if at == mark {
                return Err(Format::Tiff.broken("Its pages form a circle."));
            }
            limits.check_step(pages as usize)?;
            steps += 1;
            if steps == limit {
                (mark, steps, limit) = (at, 0, limit.saturating_mul(2));
            }
        }
        Ok(pages.max(1))
    }
}

impl<'a> Directory<'a> {
    /// A tag's values. None if the tag is missing or its values are not within the file.
    pub fn find(&self, tag: u16) -> Option<Values<'a>> {
        let (_, entry, offset) = self.file.widths();
        let at = (0..self.entries)
            .map(|index| self.at + index * entry)
            .find(|at| self.file.number(*at, 2) == Some(u64::from(tag)))?;
        let kind = self.file.number(at + 2, 2)? as u16;
        let count = self.file.number(at + 4, offset)?;
        let length = usize::try_from(count).ok()?.checked_mul(width(kind)?)?;
        let inline = at + 4 + offset;
        let place = if length <= offset { inline } else { usize::try_from(self.file.number(inline, offset)?).ok()? };
        self.file.bytes.get(place..place.checked_add(length)?)?;
        (count > 0).then_some(Values { file: self.file, kind, count, at: place })
    }

    /// A tag's first value.
    pub fn get(&self, tag: u16) -> Option<u64> {
        self.find(tag)?.get(0)
    }

    /// The bytes of a tag's values, in the file's byte order.
    pub fn bytes(&self, tag: u16) -> Option<&'a [u8]> {
        let values = self.find(tag)?;
        let length = usize::try_from(values.count).ok()? * width(values.kind)?;
        values.file.bytes.get(values.at..values.at + length)
    }
}

impl Values<'_> {
    /// A value by its index, as an unsigned number. None for types that are not integers.
    pub fn get(&self, index: u64) -> Option<u64> {
        let width = width(self.kind)?;
        if index >= self.count || !matches!(self.kind, 1 | 3 | 4 | 6 | 7 | 13 | 16 | 18) {
            return None;
        }
        self.file.number(self.at + index as usize * width, width)
    }

    /// A rational by its index.
    pub fn ratio(&self, index: u64) -> Option<f64> {
        if index >= self.count || self.kind != 5 {
            return None;
        }
        let at = self.at + index as usize * 8;
        Some(self.file.number(at, 4)? as f64 / (self.file.number(at + 4, 4)?.max(1)) as f64)
    }
}

/// The number of bytes of a value of this type. None for unknown types.
fn width(kind: u16) -> Option<usize> {
    Some(match kind {
        1 | 2 | 6 | 7 => 1,
        3 | 8 => 2,
        4 | 9 | 11 | 13 => 4,
        5 | 10 | 12 | 16..=18 => 8,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_in_a_circle_are_found() {
        // 100 empty directories of 6 bytes each; the last one refers to `end`: one of them, or none.
        let file = |end: u32| {
            let mut bytes = b"II*\0\x08\0\0\0".to_vec();
            for page in 0..100u32 {
                let next = if page == 99 { end } else { 8 + 6 * (page + 1) };
                bytes.extend([0, 0]);
                bytes.extend(next.to_le_bytes());
            }
            bytes
        };
        let pages = |end| File::new(&file(end)).pages(&Limits::default());
        assert_eq!(pages(0), Ok(100));
        assert_eq!(pages(1 << 30), Ok(100));
        for page in [0, 1, 50, 99] {
            assert!(pages(8 + 6 * page).is_err(), "{page}");
        }
    }
}

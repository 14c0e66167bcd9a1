//! The date in a picture's EXIF block; `orientation.rs` reads the orientation.

use crate::image::picture::Taken;
use crate::image::tiff::directory::{Directory, File};
use crate::image::tiff::tag;

/// The date in an EXIF block, with or without JPEG's prefix.
pub(crate) fn taken(exif: &[u8]) -> Option<Taken> {
    let exif = exif.strip_prefix(b"Exif\0\0").unwrap_or(exif);
    if !exif.starts_with(b"II*\0") && !exif.starts_with(b"MM\0*") {
        return None;
    }
    taken_below(&File::new(exif).first().ok()?)
}

/// The date in the EXIF directory that a TIFF directory refers to.
pub(crate) fn taken_below(directory: &Directory) -> Option<Taken> {
    taken_in(&directory.file.directory(directory.get(tag::EXIF)?)?)
}

/// The date in an EXIF directory.
pub(crate) fn taken_in(exif: &Directory) -> Option<Taken> {
    let taken = date(exif.bytes(tag::DATE_TIME_ORIGINAL)?)?;
    let microsecond = exif.bytes(tag::SUB_SECONDS_ORIGINAL).map_or(0, microseconds);
    let offset = exif.bytes(tag::OFFSET_TIME_ORIGINAL).and_then(offset);
    Some(Taken { microsecond, offset, ..taken })
}

/// Parses "2026:08:15 12:33:45". Cameras whose clock was never set write blanks, zeros, or the month 13: the result is
/// then None.
fn date(text: &[u8]) -> Option<Taken> {
    let number = |from: usize, to: usize| -> Option<u16> {
        let digits = text.get(from..to)?;
        digits.iter().try_fold(0, |sum, digit| Some(sum * 10 + (*digit as char).to_digit(10)? as u16))
    };
    if text.len() < 19 || [4, 7, 10, 13, 16].iter().any(|at| text[*at].is_ascii_digit()) {
        return None;
    }
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    let is_leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let days = match month {
        2 => 28 + u16::from(is_leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    let is_right = year > 0 && (1..=days).contains(&day) && hour < 24 && minute < 60 && second < 60;
    is_right.then_some(Taken {
        year,
        month: month as u8,
        day: day as u8,
        hour: hour as u8,
        minute: minute as u8,
        second: second as u8,
        microsecond: 0,
        offset: None,
    })
}

/// Converts the decimal digits of a fraction of a second to microseconds.
fn microseconds(text: &[u8]) -> u32 {
    let digits = text.iter().map_while(|digit| (*digit as char).to_digit(10));
    digits.zip([100_000, 10_000, 1_000, 100, 10, 1]).map(|(digit, place)| digit * place).sum()
}

/// Parses "+02:00" to minutes. The offsets of the world's time zones range from −12 to +14 hours.
fn offset(text: &[u8]) -> Option<i16> {
    let sign = match text.first()? {
        b'Z' => return Some(0),
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let &[h1, h2, b':', m1, m2] = text.get(1..6)? else { return None };
    let digit = |byte: u8| (byte as char).to_digit(10).map(|digit| digit as i16);
    let (hours, minutes) = (digit(h1)? * 10 + digit(h2)?, digit(m1)? * 10 + digit(m2)?);
    (hours < 16 && minutes < 60).then_some(sign * (hours * 60 + minutes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_read_as_written() {
        let taken = date(b"2024:02:29 23:59:58\0").unwrap();
        assert_eq!((taken.year, taken.month, taken.day), (2024, 2, 29));
        assert_eq!((taken.hour, taken.minute, taken.second), (23, 59, 58));
        for none in [
            "0000:00:00 00:00:00",
            "2023:02:29 00:00:00",
            "2024:13:01 00:00:00",
            "2024:04:31 00:00:00",
            "2024:01:01 24:00:00",
            "    :  :     :  :  ",
            "2024-01-01",
            "",
        ] {
            assert_eq!(date(none.as_bytes()), None, "{none}");
        }
    }

    #[test]
    fn offsets_and_fractions_are_read() {
        assert_eq!([b"+02:00".as_slice(), b"-09:30", b"Z"].map(offset), [Some(120), Some(-570), Some(0)]);
        assert_eq!([b"".as_slice(), b"   :  ", b"+2:00", b"+99:00"].map(offset), [None; 4]);
        assert_eq!([b"5".as_slice(), b"042\0", b"1234567", b" "].map(microseconds), [500_000, 42_000, 123_456, 0]);
    }
}

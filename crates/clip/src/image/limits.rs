//! Limits on a single image: pixels, file size, memory, and the time between two checks for an interrupt.

use std::io::{self, BufRead, Read, Seek, SeekFrom};

use crate::error::{Error, Kind, Result};

/// Limits on a single image. They are checked before memory of that size is allocated.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Maximum width × height.
    pub max_pixels: u64,
    /// Maximum length of the file in bytes.
    pub max_bytes: u64,
    /// Maximum bytes that decoding and resizing may take at their peak, in addition to the file.
    pub max_memory: u64,
    /// Whether truncated files are accepted.
    pub allow_truncated: bool,
    /// Whether large JPEGs are decoded at full size even if [`super::decode_for`] could decode them at a reduced size.
    /// See [`super::MIN_OVERSAMPLING`].
    pub exact_jpeg: bool,
    /// Called every few milliseconds; returns whether the work should stop. It then fails with [`Kind::Interrupted`].
    /// The function must not unwind, because C code may call it.
    pub interrupted: fn() -> bool,
    /// The names of the settings for pixels, file size and memory, for hints in error messages.
    pub names: (&'static str, &'static str, &'static str),
}

impl Default for Limits {
    /// 100 megapixels (300 MB as RGB; the largest camera sensors have 100 to 150 megapixels), 256 MiB per file, and 1
    /// GiB of memory, enough for a progressive JPEG of 100 megapixels without subsampling (coefficients 600 MB, picture
    /// 300 MB).
    fn default() -> Self {
        Self {
            max_pixels: 100_000_000,
            max_bytes: 256 << 20,
            max_memory: 1 << 30,
            allow_truncated: false,
            exact_jpeg: false,
            interrupted: || false,
            names: ("max_pixels", "max_bytes", "max_memory"),
        }
    }
}

impl Limits {
    /// Returns an error if the work should stop.
    pub(crate) fn check_interrupt(&self) -> Result<()> {
        if (self.interrupted)() { Err(Error::interrupted()) } else { Ok(()) }
    }

    /// Like [`Self::check_interrupt`], but checks only once in 65,536 of the caller's steps.
    pub(crate) fn check_step(&self, step: usize) -> Result<()> {
        if step % (1 << 16) == (1 << 16) - 1 { self.check_interrupt() } else { Ok(()) }
    }

    pub(crate) fn check_file(&self, bytes: &[u8]) -> Result<()> {
        if bytes.len() as u64 > self.max_bytes {
            return Err(Error::new(Kind::LimitExceeded, "image file is too large")
                .detail(format!("It has {} bytes; the limit is {}.", bytes.len(), self.max_bytes))
                .hint(format!("Raise {}, or store a smaller copy.", self.names.1)));
        }
        Ok(())
    }

    pub(crate) fn check_pixels(&self, (width, height): (u32, u32)) -> Result<()> {
        let count = u64::from(width) * u64::from(height);
        if count == 0 {
            return Err(no_pixels(width, height));
        }
        if count > self.max_pixels {
            return Err(Error::new(Kind::LimitExceeded, "image has too many pixels")
                .detail(format!("It is {width}×{height}, {count} pixels; the limit is {}.", self.max_pixels))
                .hint(format!("Raise {}, or store a smaller copy.", self.names.0)));
        }
        Ok(())
    }

    /// Checks the peak memory of an operation in bytes. `what` is the subject of the error message, such as "PNG
    /// image".
    pub(crate) fn check_memory(&self, what: &str, (width, height): (u32, u32), peak: u64) -> Result<()> {
        if peak > self.max_memory {
            return Err(Error::new(Kind::LimitExceeded, format!("{what} needs too much memory"))
                .detail(format!("Its {width}×{height} pixels take {peak} bytes; the limit is {}.", self.max_memory))
                .hint(format!("Raise {}, or store a smaller copy.", self.names.2)));
        }
        Ok(())
    }
}

pub(crate) fn no_pixels(width: u32, height: u32) -> Error {
    Error::new(Kind::InvalidInput, "image has no pixels").detail(format!("It is {width}×{height}."))
}

/// Bytes of a width × height picture with a number of bytes per pixel.
pub(crate) fn bytes_of((width, height): (u32, u32), pixel: u64) -> u64 {
    u64::from(width).saturating_mul(u64::from(height)).saturating_mul(pixel)
}

/// Reads a file in small pieces and checks for an interrupt before each piece. Decoders that can't be interrupted then
/// stop with an input error.
pub(crate) struct Watched<'a> {
    bytes: &'a [u8],
    at: usize,
    limits: &'a Limits,
}

impl<'a> Watched<'a> {
    /// Bytes per piece. Deflate and LZW expand a piece up to 1,000 and 2,700 times: to 4 MB and 11 MB, in 10 to 40 ms.
    const PIECE: usize = 4096;

    pub fn new(bytes: &'a [u8], limits: &'a Limits) -> Self {
        Self { bytes, at: 0, limits }
    }
}

impl BufRead for Watched<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        // The error must not be ErrorKind::Interrupted, because the standard library retries after it.
        self.limits.check_interrupt().map_err(io::Error::other)?;
        let from = self.at.min(self.bytes.len());
        Ok(&self.bytes[from..self.bytes.len().min(from + Self::PIECE)])
    }

    fn consume(&mut self, amount: usize) {
        self.at += amount;
    }
}

impl Read for Watched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        read_buffered(self, buffer)
    }
}

/// Implements `Read::read` for a buffered reader: copies the bytes that are available.
pub(crate) fn read_buffered(reader: &mut impl BufRead, buffer: &mut [u8]) -> io::Result<usize> {
    let piece = reader.fill_buf()?;
    let count = piece.len().min(buffer.len());
    buffer[..count].copy_from_slice(&piece[..count]);
    reader.consume(count);
    Ok(count)
}

impl Seek for Watched<'_> {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        let target = match position {
            SeekFrom::Start(at) => i128::from(at),
            SeekFrom::End(offset) => self.bytes.len() as i128 + i128::from(offset),
            SeekFrom::Current(offset) => self.at as i128 + i128::from(offset),
        };
        self.at = usize::try_from(target).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.at as u64)
    }
}

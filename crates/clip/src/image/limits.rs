//! What a single image may cost: pixels, bytes of the file, memory, and time between two looks for a cancel.

use std::io::{self, BufRead, Read, Seek, SeekFrom};

use crate::error::{Error, Kind, Result};

/// What a single image may cost. Everything is checked before memory of that size is allocated.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Width × height.
    pub max_pixels: u64,
    /// Length of the file.
    pub max_bytes: u64,
    /// Bytes that decoding and resizing may take at their peak, beside the file itself.
    pub max_memory: u64,
    /// Whether a file that ends too soon is used as far as it goes.
    pub allow_truncated: bool,
    /// Whether large JPEGs are decoded in full where [`super::decode_for`] could decode them smaller. See
    /// [`super::SPARE`].
    pub exact_jpeg: bool,
    /// Asked every few milliseconds whether the work should stop, which it then does with [`Kind::Interrupted`]. Must
    /// not unwind, since C code may be its caller.
    pub interrupted: fn() -> bool,
    /// What to call the settings in a hint: pixels, bytes, memory.
    pub names: (&'static str, &'static str, &'static str),
}

impl Default for Limits {
    /// 100 megapixels (300 MB as RGB; the largest camera sensors have 100 to 150), 256 MiB and 1 GiB: what a progressive
    /// JPEG of 100 megapixels without subsampling takes (coefficients 600 MB, picture 300 MB).
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
    /// Returns an error if the caller wants the work to stop.
    pub(crate) fn check_interrupt(&self) -> Result<()> {
        if (self.interrupted)() { Err(Error::interrupted()) } else { Ok(()) }
    }

    /// The same, once in 65,536 of the caller's steps.
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

    /// Checks the peak of a piece of work. `what` is its subject: a format's name with "image".
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

/// Bytes of a width × height picture with so many bytes a pixel.
pub(crate) fn bytes_of((width, height): (u32, u32), pixel: u64) -> u64 {
    u64::from(width).saturating_mul(u64::from(height)).saturating_mul(pixel)
}

/// Reads a file in small pieces and looks for an interrupt before each, so that decoders which offer no way to stop them
/// stop by an error of their input.
pub(crate) struct Watched<'a> {
    bytes: &'a [u8],
    at: usize,
    limits: &'a Limits,
}

impl<'a> Watched<'a> {
    /// Deflate and LZW make up to 1,000 and 2,700 times as many bytes of a piece: 4 MB and 11 MB, 10 to 40 ms.
    const PIECE: usize = 4096;

    pub fn new(bytes: &'a [u8], limits: &'a Limits) -> Self {
        Self { bytes, at: 0, limits }
    }
}

impl BufRead for Watched<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        // Not ErrorKind::Interrupted, upon which the standard library tries again.
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

/// Reads what a reader has at hand.
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

//! The file with the vectors of a list of words that is being embedded. A repeated call continues where a cancelled one
//! stopped.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};

use super::Builder;
use crate::error::Result;
use crate::memory;

/// The length of a block's header in bytes: the vectors' length, their number, and a checksum.
const HEADER: usize = 12;
const WIDEST: usize = 16_000;

/// A locked file of blocks. A block is appended for each batch of words.
pub struct Progress {
    file: File,
    /// The length of the complete blocks in bytes.
    end: u64,
    /// The number of words in the complete blocks.
    done: usize,
}

impl Progress {
    /// Gives the file's vectors to the builder, and truncates the file after the last complete block. None if another
    /// process has locked the file.
    ///
    /// # Errors
    /// [`crate::Kind::OutOfMemory`].
    pub(super) fn resume(file: File, builder: &mut Builder) -> Result<Option<Self>> {
        if file.try_lock().is_err() {
            return Ok(None);
        }
        let mut progress = Self { file, end: 0, done: 0 };
        while progress.read_block(builder)? {}
        Ok(progress.file.set_len(progress.end).is_ok().then_some(progress))
    }

    /// Reads the next block. Returns false if it is incomplete or doesn't fit the builder.
    fn read_block(&mut self, builder: &mut Builder) -> Result<bool> {
        let mut header = [0; HEADER];
        if self.file.read_exact(&mut header).is_err() {
            return Ok(false);
        }
        let [width, count, checksum] =
            [0, 4, 8].map(|at| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes")));
        let (width, count) = (width as usize, count as usize);
        let fits = (1..=WIDEST).contains(&width)
            && (1..=builder.next(usize::MAX / 2).len()).contains(&count)
            && builder.width().is_none_or(|known| known == width);
        if !fits {
            return Ok(false);
        }
        let mut bytes = memory::zeroed(width * count * 4)?;
        if self.file.read_exact(&mut bytes).is_err() || crc32fast::hash(&bytes) != checksum {
            return Ok(false);
        }
        for vector in bytes.chunks_exact(width * 4) {
            let floats = vector.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().expect("four bytes")));
            builder.push(&floats.collect::<Vec<f32>>())?;
        }
        self.done += count;
        self.end += (HEADER + bytes.len()) as u64;
        Ok(true)
    }

    /// Appends the vectors that the builder received since the last call. If this fails, on a full disk for example, a
    /// repeated call has to embed these words again.
    pub fn append(&mut self, builder: &Builder) {
        let (vectors, width) = builder.vectors_from(self.done);
        let bytes: Vec<u8> = vectors.iter().flat_map(|value| value.to_le_bytes()).collect();
        let count = vectors.len().checked_div(width).unwrap_or(0);
        let header = [width as u32, count as u32, crc32fast::hash(&bytes)];
        let write = |file: &mut File| {
            file.seek(SeekFrom::Start(self.end))?;
            for number in header {
                file.write_all(&number.to_le_bytes())?;
            }
            file.write_all(&bytes)
        };
        if count > 0 && write(&mut self.file).is_ok() {
            self.done += count;
            self.end += (HEADER + bytes.len()) as u64;
        }
    }
}

//! Simplifies the box by which the library restores the JPEG that a JPEG XL file was made of.
//!
//! A JPEG XL file made of a JPEG contains the JPEG's coefficients, and a box (`jbrd`, ISO/IEC 18181-2, 9.1) that says
//! how they were coded: scans, code tables, comments. The picture depends on the coefficients alone, so the library
//! gets a simpler box: one scan of all components, one code table of fixed-length codes each for DC and AC, and nothing
//! else. With the file's own boxes the library (0.2.1) fails for progressive JPEGs with 4:2:0 chroma and for JPEGs with
//! comments, and it may have to unpack metadata.

use jxl_bitstream::{Bitstream, U};

use crate::image::bmff;

/// The box that restores a JPEG.
pub(super) fn box_of(bytes: &[u8]) -> Option<&[u8]> {
    bmff::find(bytes, *b"jbrd")
}

/// The values of the file's own box that the simpler box needs.
pub(super) struct Components {
    is_grey: bool,
    /// The index of each component's quantization table.
    tables: Vec<u32>,
}

impl Components {
    /// None if the box is broken, or if the number of components is neither one nor three.
    pub fn read(content: &[u8]) -> Option<Self> {
        let bits = &mut Bitstream::new(content);
        let is_grey = bits.read_bool().ok()?;
        let (mut app, mut comments) = (0, 0);
        loop {
            match 0xC0 + bits.read_bits(6).ok()? {
                0xE0..=0xEF => app += 1,
                0xFE => comments += 1,
                0xD9 => break,
                _ => {}
            }
        }
        for _ in 0..app {
            bits.read_u32(0, 1, 2 + U(1), 4 + U(2)).ok()?;
            bits.read_bits(16).ok()?;
        }
        for _ in 0..comments {
            bits.read_bits(16).ok()?;
        }
        // Quantization tables: precision, index, and whether the marker ends after the table.
        for _ in 0..=bits.read_bits(2).ok()? {
            bits.read_bits(4).ok()?;
        }
        let count = match bits.read_bits(2).ok()? {
            0 => 1,
            1 | 2 => 3,
            _ => {
                let count = bits.read_bits(2).ok()? + 1;
                bits.skip_bits(8 * count as usize).ok()?;
                count
            }
        };
        let tables = (0..count).map(|_| bits.read_bits(2).ok()).collect::<Option<Vec<_>>>()?;
        matches!(count, 1 | 3).then_some(Self { is_grey, tables })
    }

    /// The content of the simpler box. `is_ycbcr` is false for red, green and blue; decoders distinguish them by the
    /// components' names.
    pub fn plain(&self, is_ycbcr: bool) -> Vec<u8> {
        let bits = &mut Bits::default();
        bits.put(1, u32::from(self.is_grey));
        // DQT, SOF1, DHT, SOS, EOI.
        [0xDB, 0xC1, 0xC4, 0xDA, 0xD9].into_iter().for_each(|marker| bits.put(6, marker - 0xC0));
        let mut tables = self.tables.clone();
        tables.sort_unstable();
        tables.dedup();
        bits.put(2, tables.len() as u32 - 1);
        for (number, table) in tables.iter().enumerate() {
            // Precision: 16 bits.
            bits.put(1, 1);
            bits.put(2, *table);
            bits.put(1, u32::from(number + 1 == tables.len()));
        }
        bits.put(2, if self.tables.len() == 1 { 0 } else { 2 - u32::from(is_ycbcr) });
        self.tables.iter().for_each(|table| bits.put(2, *table));
        // Two code tables, stored as 2 + 0.
        bits.put(2, 1);
        bits.put(3, 0);
        codes(bits, false, 5, &(0..16).collect::<Vec<_>>());
        // AC symbols: runs of up to 15 zeros before a value of up to 15 bits, 16 zeros, and the end of a block.
        let runs = (0..256).filter(|symbol| symbol % 16 != 0 || matches!(symbol, 0 | 0xF0));
        codes(bits, true, 8, &runs.collect::<Vec<_>>());
        // The scan: its components, the first and last coefficient, no successive approximation.
        bits.put(2, self.tables.len() as u32 - 1);
        bits.put(6, 0);
        bits.put(6, 63);
        bits.put(8, 0);
        (0..self.tables.len()).for_each(|component| bits.put(6, component as u32));
        // No pass, no resets, no runs of zeros, no data after the end, no padding.
        bits.put(2 + 2 + 2 + 2 + 1, 0);
        let mut bytes = std::mem::take(&mut bits.bytes);
        // An empty Brotli stream.
        bytes.push(6);
        bytes
    }
}

/// Writes a code table: a code of `length` bits for each symbol, and for 256, which takes the all-ones code that JPEG
/// leaves unused.
fn codes(bits: &mut Bits, is_ac: bool, length: usize, symbols: &[u32]) {
    bits.put(1, u32::from(is_ac));
    bits.put(2, 0);
    // Whether it is the last table of its marker.
    bits.put(1, u32::from(is_ac));
    for of in 0..=16 {
        if of == length {
            bits.put(2, 3);
            bits.put(8, symbols.len() as u32 + 1);
        } else {
            bits.put(2, 0);
        }
    }
    for symbol in symbols.iter().copied().chain([256]) {
        if symbol == 0 {
            bits.put(2 + 2, 0);
        } else {
            bits.put(2, 3);
            bits.put(8, symbol - 1);
        }
    }
}

/// A bit writer that fills each byte from its lowest bit.
#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    /// The number of bits written.
    taken: u32,
}

impl Bits {
    fn put(&mut self, count: u32, value: u32) {
        for bit in 0..count {
            if self.taken.is_multiple_of(8) {
                self.bytes.push(0);
            }
            if let Some(last) = self.bytes.last_mut() {
                *last |= ((value >> bit & 1) as u8) << (self.taken % 8);
            }
            self.taken += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jxl_oxide::jpeg_bitstream::JpegBitstreamHeader;
    use jxl_oxide_common::Bundle;

    #[test]
    fn what_is_written_can_be_read() {
        for (is_grey, tables) in [(true, vec![0]), (false, vec![0, 1, 1]), (false, vec![2, 0, 3])] {
            let box_ = Components { is_grey, tables: tables.clone() }.plain(true);
            let mut bits = Bitstream::new(&box_);
            let header = JpegBitstreamHeader::parse(&mut bits, ()).unwrap();
            bits.zero_pad_to_byte().unwrap();
            assert_eq!(bits.num_read_bits() / 8 + 1, box_.len(), "{header:?}");
            let again = Components::read(&box_).unwrap();
            assert_eq!((again.is_grey, again.tables), (is_grey, tables));
        }
        for name in ["jpeg.jxl", "jpeg_turned6.jxl"] {
            let file =
                std::fs::read(format!("{}/../../tests/fixtures/jxl/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap();
            let content = crate::image::jxl::open(&file, &crate::image::Limits::default()).unwrap();
            assert!(matches!(content, crate::image::jxl::Content::Jpeg(..)), "{name}");
        }
        assert!(Components::read(b"").is_none() && Components::read(&[0; 3]).is_none());
    }
}

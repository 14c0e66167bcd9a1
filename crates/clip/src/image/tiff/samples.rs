//! Converts TIFF's samples to RGB: unpacks them, undoes predictors, and converts colours.

use crate::error::Result;
use crate::image::jpeg::cmyk_to_rgb;
use crate::image::picture::Format;
use crate::image::pixels::{narrow, on_white};

use super::directory::{Directory, Values};
use super::tag;

/// The meaning of the colour samples.
#[derive(Clone, Copy)]
pub(crate) enum Photometric {
    WhiteIsZero,
    BlackIsZero,
    Rgb,
    /// The number of colours in the palette, one for each value of a sample.
    Palette(usize),
    Cmyk,
    /// The weights of red, green and blue in luma.
    Ycbcr {
        luma: [f32; 3],
    },
    /// `signed`: the two colour axes are signed numbers (CIELab); otherwise they have an offset of 128 (ICCLab).
    Lab {
        signed: bool,
    },
}

impl Photometric {
    pub fn of(page: &Directory, bits: u64) -> Result<Self> {
        Ok(match page.get(tag::PHOTOMETRIC) {
            Some(0) => Self::WhiteIsZero,
            // Pillow also assumes this for a page without the tag.
            Some(1) => Self::BlackIsZero,
            Some(2) => Self::Rgb,
            Some(3) if bits <= 16 => Self::Palette(1 << bits),
            Some(5) => Self::Cmyk,
            Some(6) => {
                let stated = page.find(tag::COEFFICIENTS);
                let ratio = |values: &Values, index| values.ratio(index).map(|ratio| ratio as f32);
                let stated = stated.and_then(|v| Some([ratio(&v, 0)?, ratio(&v, 1)?, ratio(&v, 2)?]));
                // CCIR 601, the default of TIFF 6, section 21.
                let luma = stated.filter(|luma| luma[1] > 0.0).unwrap_or([0.299, 0.587, 0.114]);
                Self::Ycbcr { luma }
            }
            Some(8) => Self::Lab { signed: true },
            Some(9) => Self::Lab { signed: false },
            None => return Err(Format::Tiff.broken("It does not say what its samples mean.")),
            Some(other) => return Err(Format::Tiff.unsupported(format!("Its photometric interpretation is {other}."))),
        })
    }

    /// The number of samples that make up a colour.
    pub fn samples(self) -> usize {
        match self {
            Self::WhiteIsZero | Self::BlackIsZero | Self::Palette(_) => 1,
            Self::Cmyk => 4,
            Self::Rgb | Self::Ycbcr { .. } | Self::Lab { .. } => 3,
        }
    }
}

/// The meaning of the sample after the colour samples.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Alpha {
    /// The sample is not the opacity, or does not exist.
    None,
    /// The colours have been multiplied by the opacity.
    Associated,
    Straight,
}

/// Converts rows of samples to RGB.
pub(crate) struct Converter {
    photometric: Photometric,
    bits: u32,
    float: bool,
    alpha: Alpha,
    samples: usize,
    palette: Vec<[u8; 3]>,
}

impl Converter {
    pub fn new(
        photometric: Photometric,
        bits: u32,
        float: bool,
        alpha: Alpha,
        samples: usize,
        page: &Directory,
    ) -> Result<Self> {
        let mut palette = Vec::new();
        if let Photometric::Palette(colors) = photometric {
            let map = page.find(tag::COLOR_MAP).filter(|map| map.count >= 3 * colors as u64);
            let map = map.ok_or_else(|| Format::Tiff.broken("Its palette is too short."))?;
            // Pillow uses the upper byte.
            let value = |index: usize| map.get(index as u64).map_or(0, |value| (value >> 8) as u8);
            palette.extend((0..colors).map(|i| [value(i), value(i + colors), value(i + 2 * colors)]));
        }
        Ok(Self { photometric, bits, float, alpha, samples, palette })
    }

    /// Bytes of an unpacked sample: palette indexes keep up to 16 bits; all other samples become 8 bits.
    pub fn sample_bytes(&self) -> usize {
        if matches!(self.photometric, Photometric::Palette(_)) { 2 } else { 1 }
    }

    /// Unpacks samples to every `step`th position of a row, from `offset` on. Stored samples of 16 and more bits are in
    /// native byte order.
    pub fn unpack(&self, stored: &[u8], row: &mut [u8], step: usize, offset: usize) {
        if self.sample_bytes() == 2 {
            let bits = self.bits as usize;
            for (index, target) in row.as_chunks_mut::<2>().0.iter_mut().skip(offset).step_by(step).enumerate() {
                // Each row begins at a whole byte. A palette row with several samples per pixel contains opacity.
                *target = (bits_at(stored, index * bits, bits) as u16).to_ne_bytes();
            }
            return;
        }
        let targets = row.iter_mut().skip(offset).step_by(step);
        match (self.bits, self.float) {
            (8, _) => targets.zip(stored).for_each(|(to, from)| *to = *from),
            (16, false) => {
                targets.zip(stored.as_chunks::<2>().0).for_each(|(to, from)| *to = narrow(u16::from_ne_bytes(*from)));
            }
            (24, false) => targets.zip(stored.as_chunks::<3>().0).for_each(|(to, from)| {
                let value = from.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte));
                let value = if cfg!(target_endian = "big") { value.swap_bytes() >> 8 } else { value };
                *to = ((u64::from(value) * 255 + (1 << 23)) / 0xFF_FFFF) as u8;
            }),
            (32, false) => targets.zip(stored.as_chunks::<4>().0).for_each(|(to, from)| {
                *to = ((u64::from(u32::from_ne_bytes(*from)) * 255 + (1 << 31)) / u64::from(u32::MAX)) as u8;
            }),
            (16, true) => targets.zip(stored.as_chunks::<2>().0).for_each(|(to, from)| {
                *to = of_float(half::f16::from_ne_bytes(*from).to_f32());
            }),
            (32, true) => {
                targets.zip(stored.as_chunks::<4>().0).for_each(|(to, from)| *to = of_float(f32::from_ne_bytes(*from)));
            }
            (_, true) => targets
                .zip(stored.as_chunks::<8>().0)
                .for_each(|(to, from)| *to = of_float(f64::from_ne_bytes(*from) as f32)),
            (bits, false) => {
                let most = (1u32 << bits) - 1;
                for (index, to) in targets.enumerate() {
                    let value = bits_at(stored, index * bits as usize, bits as usize);
                    *to = ((value * 255 + most / 2) / most) as u8;
                }
            }
        }
    }

    /// Converts a row of unpacked samples to RGB.
    pub fn to_rgb(&self, row: &[u8], rgb: &mut [u8]) {
        let pixels = rgb.as_chunks_mut::<3>().0.iter_mut();
        let rows = row.chunks_exact(self.samples * self.sample_bytes());
        match self.photometric {
            Photometric::WhiteIsZero => {
                pixels.zip(rows).for_each(|(to, from)| *to = self.lay([255 - from[0]; 3], from))
            }
            Photometric::BlackIsZero => pixels.zip(rows).for_each(|(to, from)| *to = self.lay([from[0]; 3], from)),
            Photometric::Rgb => {
                pixels.zip(rows).for_each(|(to, from)| *to = self.lay([from[0], from[1], from[2]], from))
            }
            Photometric::Palette(_) => pixels.zip(rows).for_each(|(to, from)| {
                let number = usize::from(u16::from_ne_bytes([from[0], from[1]]));
                *to = self.palette.get(number).copied().unwrap_or_default();
            }),
            Photometric::Cmyk => pixels.zip(rows).for_each(|(to, from)| {
                let inks = [from[0], from[1], from[2], from[3]].map(|ink| 255 - ink);
                let mut color = [0; 3];
                cmyk_to_rgb(&inks, &mut color);
                *to = self.lay(color, from);
            }),
            Photometric::Ycbcr { luma } => {
                pixels.zip(rows).for_each(|(to, from)| *to = self.lay(ycbcr([from[0], from[1], from[2]], luma), from));
            }
            Photometric::Lab { signed } => {
                pixels.zip(rows).for_each(|(to, from)| *to = self.lay(lab([from[0], from[1], from[2]], signed), from));
            }
        }
    }

    /// Composes a colour on white by the pixel's opacity, if it has one.
    fn lay(&self, color: [u8; 3], samples: &[u8]) -> [u8; 3] {
        match self.alpha {
            Alpha::None => color,
            Alpha::Straight => {
                let alpha = samples[self.photometric.samples()];
                color.map(|value| on_white(value, alpha))
            }
            Alpha::Associated => {
                let alpha = samples[self.photometric.samples()];
                color.map(|value| value.saturating_add(255 - alpha))
            }
        }
    }
}

fn of_float(value: f32) -> u8 {
    (value.clamp(0.0, 1.0) * 255.0).round() as u8
}

/// The value of up to 16 bits at bit position `at`, highest bit first. 16-bit samples are in native byte order.
fn bits_at(bytes: &[u8], at: usize, bits: usize) -> u32 {
    if bits == 16 {
        return bytes
            .get(at / 8..)
            .and_then(|rest| rest.first_chunk())
            .map_or(0, |b| u32::from(u16::from_ne_bytes(*b)));
    }
    let byte = |index: usize| bytes.get(at / 8 + index).copied().map_or(0, u32::from);
    let window = byte(0) << 16 | byte(1) << 8 | byte(2);
    window >> (24 - at % 8 - bits) & ((1 << bits) - 1)
}

/// Undoes horizontal differencing (TIFF 6, section 14) of samples in native byte order.
pub(crate) fn undo_prediction(row: &mut [u8], samples: usize, bytes: usize) {
    match bytes {
        1 => {
            for at in samples..row.len() {
                row[at] = row[at].wrapping_add(row[at - samples]);
            }
        }
        2 => {
            let row = row.as_chunks_mut::<2>().0;
            for at in samples..row.len() {
                row[at] = u16::from_ne_bytes(row[at]).wrapping_add(u16::from_ne_bytes(row[at - samples])).to_ne_bytes();
            }
        }
        _ => {
            let row = row.as_chunks_mut::<4>().0;
            for at in samples..row.len() {
                row[at] = u32::from_ne_bytes(row[at]).wrapping_add(u32::from_ne_bytes(row[at - samples])).to_ne_bytes();
            }
        }
    }
}

/// Undoes the floating-point predictor (TIFF technical note 3): a row contains the bytes of all samples, most
/// significant bytes first, as differences. The result is in native byte order.
pub(crate) fn undo_float_prediction(row: &mut [u8], samples: usize, bytes: usize) {
    for at in samples..row.len() {
        row[at] = row[at].wrapping_add(row[at - samples]);
    }
    let count = row.len() / bytes;
    // The reordering needs a copy of the row.
    let planes = row.to_vec();
    for (index, sample) in row.chunks_exact_mut(bytes).enumerate() {
        for (place, byte) in sample.iter_mut().enumerate() {
            let plane = if cfg!(target_endian = "big") { place } else { bytes - 1 - place };
            *byte = planes[plane * count + index];
        }
    }
}

/// Converts blocks of luma samples with one sample of each chroma (TIFF 6, section 21) to rows of three samples per
/// pixel.
pub(crate) fn spread_chroma(blocks: &[u8], width: usize, (across, down): (u32, u32), rows: &mut [u8]) {
    let (across, down) = (across as usize, down as usize);
    for (column, block) in blocks.chunks_exact(across * down + 2).enumerate() {
        let chroma = [block[across * down], block[across * down + 1]];
        for (index, luma) in block[..across * down].iter().enumerate() {
            let (x, y) = (column * across + index % across, index / across);
            if x < width {
                rows[(y * width + x) * 3..][..3].copy_from_slice(&[*luma, chroma[0], chroma[1]]);
            }
        }
    }
}

fn ycbcr([y, cb, cr]: [u8; 3], [red, green, blue]: [f32; 3]) -> [u8; 3] {
    let (y, cb, cr) = (f32::from(y), f32::from(cb) - 128.0, f32::from(cr) - 128.0);
    let r = y + (2.0 - 2.0 * red) * cr;
    let b = y + (2.0 - 2.0 * blue) * cb;
    let g = (y - blue * b - red * r) / green;
    [r, g, b].map(|value| (value + 0.5).clamp(0.0, 255.0) as u8)
}

/// Converts CIE L*a*b* under D50, as Photoshop stores it, to sRGB.
fn lab([l, a, b]: [u8; 3], signed: bool) -> [u8; 3] {
    let axis = |value: u8| if signed { f32::from(value as i8) } else { f32::from(value) - 128.0 };
    let fy = (f32::from(l) / 255.0 * 100.0 + 16.0) / 116.0;
    let (fx, fz) = (fy + axis(a) / 500.0, fy - axis(b) / 200.0);
    let inverse = |f: f32| if f > 6.0 / 29.0 { f * f * f } else { 3.0 * (6.0f32 / 29.0).powi(2) * (f - 4.0 / 29.0) };
    let (x, y, z) = (0.9642 * inverse(fx), inverse(fy), 0.8249 * inverse(fz));
    // Converts XYZ under D50 to linear sRGB with Bradford's adaptation matrix (brucelindbloom.com).
    let linear = [
        3.133_856 * x - 1.616_866_7 * y - 0.490_614_6 * z,
        -0.978_768_4 * x + 1.916_141_5 * y + 0.033_454 * z,
        0.071_945_3 * x - 0.228_991_4 * y + 1.405_242_7 * z,
    ];
    linear.map(|value| {
        let value = value.clamp(0.0, 1.0);
        let encoded = if value <= 0.003_130_8 { 12.92 * value } else { 1.055 * value.powf(1.0 / 2.4) - 0.055 };
        (encoded * 255.0).round() as u8
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unpacked(bits: u32, stored: &[u8], count: usize) -> Vec<u8> {
        let (photometric, alpha) = (Photometric::BlackIsZero, Alpha::None);
        let converter = Converter { photometric, bits, float: false, alpha, samples: 1, palette: Vec::new() };
        let mut row = vec![0; count];
        converter.unpack(stored, &mut row, 1, 0);
        row
    }

    #[test]
    fn samples_of_any_width() {
        // The stored values are 7, 0, 1, 6; 31, 0, 16; 127, 0.
        assert_eq!(unpacked(3, &[0b1110_0000, 0b1110_0000], 4), [255, 0, 36, 219]);
        assert_eq!(unpacked(5, &[0b1111_1000, 0b0010_0000], 3), [255, 0, 132]);
        assert_eq!(unpacked(7, &[0b1111_1110, 0b0000_0000], 2), [255, 0]);
        let three = |value: u32| {
            if cfg!(target_endian = "big") {
                value.to_be_bytes()[1..].to_vec()
            } else {
                value.to_le_bytes()[..3].to_vec()
            }
        };
        assert_eq!(unpacked(24, &[three(0xFF_FFFF), three(0x80_0000), three(0x01_0000)].concat(), 3), [255, 128, 1]);
    }
}

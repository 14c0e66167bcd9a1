//! Converts rows of planar luma and chroma, 8 to 12 bits, to RGB (ITU-T H.273).
//!
//! The arithmetic is that of the reference, libavif: it converts with libyuv, in 64ths ([`Fixed`]), where libyuv
//! supports the matrix, and in floats otherwise ([`Colours`]).

use crate::image::heif::matrix::shares;

/// Conversion in 64ths. Its results differ from the exact ones by up to three of 255.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Fixed {
    /// The factor of 16-bit luma, in 65536ths of a 64th.
    luma: u32,
    bias: i32,
    /// The factors of chroma: red, green (V, U), blue.
    chroma: [i32; 4],
}

impl Fixed {
    /// None for matrices other than those of BT.601, BT.709 and BT.2020: these are converted in floats.
    pub fn new(matrix: u16, primaries: u16, full_range: bool) -> Option<Self> {
        if !matches!((matrix, primaries), (1 | 2 | 5 | 6 | 9, _) | (12, 1 | 2 | 5 | 6 | 9)) {
            return None;
        }
        let (kr, kb) = shares(matrix, primaries)?;
        let kg = 1.0 - kr - kb;
        let (red, blue) = (2.0 * (1.0 - kr), 2.0 * (1.0 - kb));
        let is_2020 = kr == 0.2627;
        let (scale, stretch) = match (full_range, is_2020) {
            (true, _) => (1.0f32, 1.0),
            // libyuv rounds 255/219 to three decimals for these matrices.
            (false, false) => (1.164, 255.0 / 224.0),
            (false, true) => (1.164_384, 255.0 / 224.0),
        };
        // libyuv stores the factors in bytes, so none exceeds 2. This is an error for blue in limited range, which
        // should have up to 2.14.
        let factor = |factor: f32| (64.0 * factor * stretch).round().min(128.0) as i32;
        Some(Self {
            luma: (64.0 * scale * 65536.0 / 257.0).round() as u32,
            bias: 32 - if full_range { 0 } else { (64.0f32 * scale * 16.0).round() as i32 },
            chroma: [factor(red), factor(kr * red / kg), factor(kb * blue / kg), factor(blue)],
        })
    }

    /// Converts a row of 16-bit luma and 8-bit chroma, with one chroma pair per pixel.
    pub fn row(&self, luma: impl Iterator<Item = u32>, chroma: impl Iterator<Item = [u8; 2]>, rgb: &mut [u8]) {
        let byte = |value: i32| (value >> 6).clamp(0, 255) as u8;
        let [red, green_v, green_u, blue] = self.chroma;
        for ((to, y), [u, v]) in rgb.as_chunks_mut::<3>().0.iter_mut().zip(luma).zip(chroma) {
            let y = ((y * self.luma) >> 16) as i32 + self.bias;
            let (u, v) = (i32::from(u) - 128, i32::from(v) - 128);
            *to = [byte(y + red * v), byte(y - (green_u * u + green_v * v)), byte(y + blue * u)];
        }
    }
}

/// Conversion of samples to colours in floats.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Colours {
    /// Whether the planes are green, blue and red.
    identity: bool,
    luma: (f32, f32),
    /// The factors of the chroma samples: red, green (V, U), blue.
    chroma: [f32; 4],
    middle: f32,
    co_cg: bool,
}

impl Colours {
    /// `matrix` and `primaries` are code points, `bits` is the depth. None for a matrix that is unknown or not linear.
    pub fn new(matrix: u16, primaries: u16, full_range: bool, bits: u32) -> Option<Self> {
        let most = ((1u32 << bits) - 1) as f32;
        let scale = (1u32 << (bits - 8)) as f32;
        let (start, luma, chroma) =
            if full_range { (0.0, most, most) } else { (16.0 * scale, 219.0 * scale, 224.0 * scale) };
        let (kr, kb) = shares(matrix, primaries)?;
        let kg = 1.0 - kr - kb;
        let (red, blue): (f32, f32) = (2.0 * (1.0 - kr), 2.0 * (1.0 - kb));
        let (luma_factor, chroma_factor) = (255.0 / luma, 255.0 / chroma);
        Some(Self {
            identity: matrix == 0,
            luma: (luma_factor, -start * luma_factor),
            chroma: [red, -kr * red / kg, -kb * blue / kg, blue].map(|factor| factor * chroma_factor),
            middle: (1u32 << (bits - 1)) as f32,
            co_cg: matrix == 8,
        })
    }

    /// Converts the luma, blue-difference and red-difference samples of one pixel.
    fn rgb(&self, y: f32, u: f32, v: f32) -> [u8; 3] {
        // Rust's conversion saturates at 0 and 255.
        let byte = |value: f32| (value + 0.5) as u8;
        let (scale, shift) = self.luma;
        if self.identity {
            return [v, y, u].map(|sample| byte(sample * scale + shift));
        }
        let y = y * scale + shift;
        let (u, v) = (u - self.middle, v - self.middle);
        if self.co_cg {
            // Green and orange differences.
            let (cg, co) = (u * scale, v * scale);
            return [byte(y - cg + co), byte(y + cg), byte(y - cg - co)];
        }
        let [red, green_v, green_u, blue] = self.chroma;
        [byte(y + red * v), byte(y + green_v * v + green_u * u), byte(y + blue * u)]
    }

    /// Converts a row of a grey picture.
    pub fn grey(&self, luma: impl Iterator<Item = u16>, rgb: &mut [u8]) {
        let (scale, shift) = self.luma;
        for (to, y) in rgb.as_chunks_mut::<3>().0.iter_mut().zip(luma) {
            *to = [(f32::from(y) * scale + shift + 0.5) as u8; 3];
        }
    }

    /// Converts a row of luma and chroma, with one chroma pair per pixel.
    pub fn row(&self, luma: impl Iterator<Item = u16>, chroma: impl Iterator<Item = [f32; 2]>, rgb: &mut [u8]) {
        for ((to, y), [u, v]) in rgb.as_chunks_mut::<3>().0.iter_mut().zip(luma).zip(chroma) {
            *to = self.rgb(f32::from(y), u, v);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers are those of libyuv's own tables.
    #[test]
    fn sixty_fourths() {
        let of = |matrix, range| Fixed::new(matrix, 2, range).map(|f| (f.luma, f.bias, f.chroma));
        assert_eq!(of(6, true), Some((16320, 32, [90, 46, 22, 113])));
        assert_eq!(of(1, true), Some((16320, 32, [101, 30, 12, 119])));
        assert_eq!(of(9, true), Some((16320, 32, [94, 37, 11, 120])));
        assert_eq!(of(2, false), Some((18997, -1160, [102, 52, 25, 128])));
        assert_eq!(of(1, false), Some((18997, -1160, [115, 34, 14, 128])));
        assert_eq!(of(9, false), Some((19003, -1160, [107, 42, 12, 128])));
        assert_eq!(of(0, true), None);
        assert_eq!(Fixed::new(12, 9, true), Fixed::new(9, 9, true));
        let mut rgb = [0; 6];
        let fixed = Fixed::new(6, 2, true).unwrap();
        fixed.row([65535, 0].into_iter(), [[128; 2]; 2].into_iter(), &mut rgb);
        assert_eq!(rgb, [255, 255, 255, 0, 0, 0]);
    }

    #[test]
    fn black_white_and_primaries() {
        for bits in [8, 10, 12] {
            let full = ((1u32 << bits) - 1) as f32;
            let scale = (1u32 << (bits - 8)) as f32;
            let of = |matrix, range| Colours::new(matrix, 2, range, bits).unwrap();
            let middle = 128.0 * scale;
            for matrix in [1, 2, 5, 6, 8, 9] {
                assert_eq!(of(matrix, true).rgb(full, middle, middle), [255; 3]);
                assert_eq!(of(matrix, false).rgb(16.0 * scale, middle, middle), [0; 3]);
                assert_eq!(of(matrix, false).rgb(235.0 * scale, middle, middle), [255; 3]);
            }
            assert_eq!(of(0, true).rgb(full, 0.0, 0.0), [0, 255, 0]);
        }
        // Red of BT.601.
        let [r, g, b] = Colours::new(6, 2, true, 8).unwrap().rgb(76.0, 85.0, 255.0);
        assert!(r >= 253 && g <= 2 && b <= 2, "{r} {g} {b}");
        assert_eq!(Colours::new(14, 9, true, 10), None);
    }
}

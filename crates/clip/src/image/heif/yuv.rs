//! Luma and chroma to RGB (ITU-T H.273), row by row, for pictures of 8 to 12 bits in planes.

/// The conversion of samples to colours.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Colours {
    /// Green, blue and red are stored directly.
    identity: bool,
    luma: (f32, f32),
    /// Factors of the chroma samples: red, green (of both), blue.
    chroma: [f32; 4],
    middle: f32,
    co_cg: bool,
}

impl Colours {
    /// From the code point of the matrix and the range. None for a matrix that is not linear or unknown.
    pub fn new(matrix: u16, primaries: u16, full_range: bool, bits: u32) -> Option<Self> {
        let most = ((1u32 << bits) - 1) as f32;
        let scale = (1u32 << (bits - 8)) as f32;
        let (start, luma, chroma) =
            if full_range { (0.0, most, most) } else { (16.0 * scale, 219.0 * scale, 224.0 * scale) };
        let (kr, kb) = match (matrix, primaries) {
            (1, _) | (12, 1) => (0.2126, 0.0722),
            (4, _) => (0.30, 0.11),
            (7, _) | (12, 7) => (0.212, 0.087),
            (9, _) | (12, 9) => (0.2627, 0.0593),
            (0 | 2 | 5 | 6 | 8 | 12, _) => (0.299, 0.114),
            _ => return None,
        };
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

    /// A pixel of luma, blue-difference and red-difference samples.
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

    /// A grey row.
    pub fn grey(&self, luma: impl Iterator<Item = u16>, rgb: &mut [u8]) {
        let (scale, shift) = self.luma;
        for (to, y) in rgb.as_chunks_mut::<3>().0.iter_mut().zip(luma) {
            *to = [(f32::from(y) * scale + shift + 0.5) as u8; 3];
        }
    }

    /// A row of luma and the chroma of each of its pixels.
    pub fn row(&self, luma: impl Iterator<Item = u16>, chroma: impl Iterator<Item = [f32; 2]>, rgb: &mut [u8]) {
        for ((to, y), [u, v]) in rgb.as_chunks_mut::<3>().0.iter_mut().zip(luma).zip(chroma) {
            *to = self.rgb(f32::from(y), u, v);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

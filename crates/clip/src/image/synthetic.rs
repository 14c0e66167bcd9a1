//! Synthetic photos, for measurements without real photos.

use image::RgbImage;

use crate::error::Result;
use crate::image::{Limits, jpeg};
use crate::memory;

/// A generator of pseudo-random numbers from 0 to 1.
fn random(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    move || {
        // xorshift64 (Marsaglia 2003).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 24) as f32
    }
}

/// A JPEG file (quality 90, full chroma resolution) of a picture with large shapes and grain. It has about as many
/// bytes per pixel as a photo. Equal arguments give equal files.
///
/// # Errors
/// [`Kind::Internal`](crate::Kind::Internal) if the encoder refuses the size;
/// [`Kind::OutOfMemory`](crate::Kind::OutOfMemory).
pub fn photo(width: u32, height: u32, seed: u64) -> Result<Vec<u8>> {
    photo_within(width, height, seed, &Limits::default())
}

/// Like [`photo`], but can be interrupted: a photo of 12 megapixels takes a second.
///
/// # Errors
/// The errors of [`photo`]; [`Kind::Interrupted`](crate::Kind::Interrupted).
pub fn photo_within(width: u32, height: u32, seed: u64, limits: &Limits) -> Result<Vec<u8>> {
    let mut random = random(seed);
    let waves: Vec<[f32; 5]> =
        (0..6).map(|_| [1.0 + 9.0 * random(), 1.0 + 9.0 * random(), random(), random(), random()]).collect();
    let bytes = memory::zeroed(width as usize * height as usize * 3)?;
    let mut picture = RgbImage::from_raw(width, height, bytes).expect("as many bytes as its size says");
    for (x, y, pixel) in picture.enumerate_pixels_mut() {
        if x == 0 {
            limits.check_interrupt()?;
        }
        let (u, v) = (x as f32 / width as f32, y as f32 / height as f32);
        let mut rgb = [0.5; 3];
        for [a, b, red, green, blue] in &waves {
            let wave = (a * u + b * v).sin() / 6.0;
            rgb[0] += wave * red;
            rgb[1] += wave * green;
            rgb[2] += wave * blue;
        }
        let grain = 0.06 * (random() - 0.5);
        pixel.0 = rgb.map(|value| (255.0 * (value + grain)).clamp(0.0, 255.0) as u8);
    }
    jpeg::encode(&picture, 90, limits)
}

/// An RGB picture of waves, plain rectangles and grain, whose sizes and strengths depend on the seed: some pictures are
/// nearly plain, some are mostly noise. It serves calibration, which needs the variety of photos.
pub fn picture(width: u32, height: u32, seed: u64) -> RgbImage {
    let mut random = random(seed);
    let mut picture = RgbImage::new(width, height);
    let waves: Vec<[f32; 5]> = (0..5)
        .map(|_| {
            let pitch = 40f32.powf(random());
            [pitch * (random() - 0.5), pitch * (random() - 0.5), random() - 0.5, random() - 0.5, random() - 0.5]
        })
        .collect();
    let base = [random(), random(), random()];
    let grain = 0.8 * random().powi(3);
    for (x, y, pixel) in picture.enumerate_pixels_mut() {
        let (u, v) = (x as f32 / width as f32, y as f32 / height as f32);
        let mut rgb = base;
        for [a, b, red, green, blue] in &waves {
            let wave = (6.0 * (a * u + b * v)).sin();
            for (value, strength) in rgb.iter_mut().zip([red, green, blue]) {
                *value += wave * strength;
            }
        }
        pixel.0 = rgb.map(|value| (255.0 * (value + grain * (random() - 0.5))).clamp(0.0, 255.0) as u8);
    }
    for _ in 0..(24.0 * random()) as u32 {
        let color = ::image::Rgb([random(), random(), random()].map(|value| (256.0 * value) as u8));
        let (left, top) = ((random() * width as f32) as u32, (random() * height as f32) as u32);
        let size = random().powi(2) * 0.5;
        let (right, bottom) = (left + (size * width as f32) as u32, top + (size * height as f32) as u32);
        for y in top..bottom.min(height) {
            (left..right.min(width)).for_each(|x| picture.put_pixel(x, y, color));
        }
    }
    picture
}

#[cfg(test)]
mod tests {
    use super::photo;
    use crate::image::{Limits, decode};

    #[test]
    fn photos_are_of_the_size_and_not_all_alike() {
        let files = [photo(320, 200, 1).unwrap(), photo(320, 200, 1).unwrap(), photo(320, 200, 2).unwrap()];
        assert!(files[0] == files[1] && files[0] != files[2]);
        let decoded = decode(&files[0], &Limits::default()).unwrap();
        assert_eq!(decoded.rgb.dimensions(), (320, 200));
        // Photos have 0.1 to 0.6 bytes per pixel.
        assert!((6_000..40_000).contains(&files[0].len()), "{}", files[0].len());
    }
}

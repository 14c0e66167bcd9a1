//! Converts rows of samples to RGB bytes.

use image::{ColorType, RgbImage};

use crate::error::{Error, Kind, Result};
use crate::memory;

/// Allocates a black picture.
///
/// # Errors
/// [`Kind::OutOfMemory`].
pub(crate) fn canvas((width, height): (u32, u32)) -> Result<RgbImage> {
    let length =
        usize::try_from(u64::from(width) * u64::from(height) * 3).map_err(|_| Error::out_of_memory(usize::MAX))?;
    Ok(from_raw((width, height), memory::zeroed(length)?))
}

/// A picture from a buffer of exactly width × height × 3 bytes.
pub(crate) fn from_raw((width, height): (u32, u32), bytes: Vec<u8>) -> RgbImage {
    RgbImage::from_raw(width, height, bytes).expect("sized for it")
}

/// The bytes of row `y`.
pub(crate) fn row_mut(picture: &mut RgbImage, y: usize) -> &mut [u8] {
    let stride = picture.width() as usize * 3;
    let bytes: &mut [u8] = picture;
    &mut bytes[y * stride..][..stride]
}

/// Composes a channel on white by its opacity, as Pillow's `alpha_composite` does, with its fixed-point rounding (7
/// bits).
pub(crate) fn on_white(value: u8, alpha: u8) -> u8 {
    let (value, alpha) = (u32::from(value), u32::from(alpha));
    let sum = ((value * alpha + 255 * (255 - alpha)) << 7) + (128 << 7);
    ((((sum >> 8) + sum) >> 8) >> 7) as u8
}

/// Converts a 16-bit sample to the nearest 8-bit value.
pub(crate) fn narrow(value: u16) -> u8 {
    ((u32::from(value) + 128) / 257) as u8
}

fn of_float(value: f32) -> u8 {
    // A NaN becomes 0.
    (value.clamp(0.0, 1.0) * 255.0).round() as u8
}

/// Converts one row of samples to RGB, with transparency on white. Samples of 16 bits and floats are in native byte
/// order.
///
/// # Errors
/// [`Kind::Unsupported`] for other kinds of pixels.
pub(crate) fn to_rgb(color: ColorType, row: &[u8], rgb: &mut [u8]) -> Result<()> {
    let rgb = rgb.as_chunks_mut::<3>().0.iter_mut();
    let wide = |bytes: &[u8]| -> [u8; 4] {
        let mut narrowed = [0; 4];
        for (to, from) in narrowed.iter_mut().zip(bytes.as_chunks::<2>().0) {
            *to = narrow(u16::from_ne_bytes(*from));
        }
        narrowed
    };
    let float = |bytes: &[u8]| -> [u8; 4] {
        let mut narrowed = [0; 4];
        for (to, from) in narrowed.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *to = of_float(f32::from_ne_bytes(*from));
        }
        narrowed
    };
    let opaque = |[r, g, b, a]: [u8; 4]| [on_white(r, a), on_white(g, a), on_white(b, a)];
    match color {
        ColorType::L8 => rgb.zip(row).for_each(|(to, from)| *to = [*from; 3]),
        ColorType::La8 => rgb.zip(row.as_chunks::<2>().0).for_each(|(to, [l, a])| *to = [on_white(*l, *a); 3]),
        ColorType::Rgb8 => rgb.zip(row.as_chunks::<3>().0).for_each(|(to, from)| *to = *from),
        ColorType::Rgba8 => rgb.zip(row.as_chunks::<4>().0).for_each(|(to, from)| *to = opaque(*from)),
        ColorType::L16 => rgb.zip(row.as_chunks::<2>().0).for_each(|(to, from)| *to = [wide(from)[0]; 3]),
        ColorType::La16 => rgb.zip(row.as_chunks::<4>().0).for_each(|(to, from)| {
            let [l, a, ..] = wide(from);
            *to = [on_white(l, a); 3];
        }),
        ColorType::Rgb16 => rgb.zip(row.as_chunks::<6>().0).for_each(|(to, from)| {
            let [r, g, b, _] = wide(from);
            *to = [r, g, b];
        }),
        ColorType::Rgba16 => rgb.zip(row.as_chunks::<8>().0).for_each(|(to, from)| *to = opaque(wide(from))),
        ColorType::Rgb32F => rgb.zip(row.as_chunks::<12>().0).for_each(|(to, from)| {
            let [r, g, b, _] = float(from);
            *to = [r, g, b];
        }),
        ColorType::Rgba32F => rgb.zip(row.as_chunks::<16>().0).for_each(|(to, from)| *to = opaque(float(from))),
        other => {
            return Err(Error::new(Kind::Unsupported, format!("images with {other:?} pixels are not supported"))
                .hint("Convert it to an ordinary JPEG or PNG."));
        }
    }
    Ok(())
}

/// Converts RGBA to RGB on white in place. The buffer keeps its capacity, because shrinking it would be another
/// allocation.
pub(crate) fn drop_alpha(mut bytes: Vec<u8>) -> Vec<u8> {
    let pixels = bytes.len() / 4;
    for pixel in 0..pixels {
        let [r, g, b, a] = [0, 1, 2, 3].map(|channel| bytes[pixel * 4 + channel]);
        bytes[pixel * 3..pixel * 3 + 3].copy_from_slice(&[on_white(r, a), on_white(g, a), on_white(b, a)]);
    }
    bytes.truncate(pixels * 3);
    bytes
}

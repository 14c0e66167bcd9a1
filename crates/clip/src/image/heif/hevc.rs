//! HEVC by heifer, a decoder in Rust without unsafe code.
//!
//! Samples are converted to colours as libheif converts them, so that the pixels equal pillow-heif's: 4:2:0 chroma is
//! repeated, not interpolated (with the exceptions in [`InterpolatedChroma`](super::transform::InterpolatedChroma)), and samples of more than
//! eight bits lose the other bits.

use heifer::heifer_hevc_dec::decoder;
use heifer::heifer_hevc_dec::recon::Frame;
use heifer_isobmff::{HeifFile, ItemId};

use crate::error::{Error, Result, without_panic};
use crate::image::heif::matrix::shares;
use crate::image::heif::transform::Part;
use crate::image::heif::{CodePoints, Coded, Container, Whole};
use crate::image::limits::{Limits, bytes_of};
use crate::image::picture::{Format, truncated};
use crate::image::uninterruptible::run_in_thread;
use crate::memory::Reserve;

/// Bytes that the decoder takes for each pixel of a coded picture. At 4:4:4, planes of 16 bits take 6 bytes, and there
/// are three copies if the picture is filtered and cropped; with a copy of one plane and the data of 4 × 4 blocks, the
/// maximum is 22. Noise took 7. With 40, the 33-megapixel pictures that cameras code in one piece exceeded 1 GB.
pub(super) const CODED: u64 = 24;
/// Maximum number of NAL units in a coded picture: at most 600 slices (H.265, table A.8), and some messages.
const MOST_UNITS: usize = 4096;
/// libheif's factors for samples of limited range: 255/219 and 255/224, to within 0.4 %.
const LUMA_SCALE: f32 = 1.1689;
const CHROMA_SCALE: f32 = 1.1429;
/// A coded picture of more pixels takes longer than 0.1 s to decode; a separate thread decodes it, so that it can be
/// interrupted.
const QUICK: u64 = 1 << 20;

/// Decodes one coded picture as stored.
pub(super) fn decode(container: &Container, id: ItemId, whole: &Whole, limits: &Limits) -> Result<Box<dyn Coded>> {
    let (size, format, beside) = (container.size(id)?, container.format, whole.beside);
    let frame = if bytes_of(size, 1) <= QUICK {
        frame(container.bytes, &container.file, format, id, beside)?
    } else {
        let gave_up = move || format.broken("The decoder gave up on it.");
        run_in_thread(container.bytes, limits, gave_up, move |bytes, _| {
            without_panic(gave_up, || frame(bytes, &Container::parse(bytes, format)?.file, format, id, beside))
        })?
    };
    let size = if size == (0, 0) { (frame.widths[0], frame.heights[0]) } else { size };
    if size.0 > frame.widths[0] || size.1 > frame.heights[0] {
        return Err(format.broken("Its coded picture is smaller than it says."));
    }
    let stated = container.stated(whole.id)?.or(container.stated(id)?).unwrap_or(CodePoints {
        matrix: frame.matrix_coeffs.into(),
        primaries: 2,
        full_range: frame.full_range,
    });
    let smooth = match frame.chroma_format {
        1 => whole.smooth.both,
        2 => whole.smooth.columns,
        _ => None,
    };
    // A tile is treated as a picture of its own.
    let smooth = smooth.map(|part| if whole.id == id { part } else { Part { left: 0, top: 0, size } });
    let conversion = Conversion::new(&frame, stated, smooth.is_some())
        .ok_or_else(|| format.unsupported(format!("Its colours are coded by matrix {}.", stated.matrix)))?;
    Ok(Box::new(Converted { frame, size, conversion, smooth }))
}

fn frame(bytes: &[u8], file: &HeifFile<'_>, format: Format, id: ItemId, beside: u64) -> Result<Frame> {
    let reserve = Reserve::new(usize::try_from(beside).map_err(|_| Error::out_of_memory(usize::MAX))?)?;
    let fail = |error| failed(bytes, format, error);
    let options = decoder::DecodeOptions { max_pixels: beside / CODED, ..Default::default() };
    if units(file, id).map_err(|e| fail(e.into()))? > MOST_UNITS {
        return Err(format.broken(format!("Its coded picture is in more than {MOST_UNITS} pieces.")));
    }
    let stream = file.hevc_bitstream(id).map_err(|e| fail(e.into()))?;
    let frame = decoder::decode_picture(&stream, options).map_err(|e| fail(e.into()))?;
    reserve.finish()?;
    Ok(frame)
}

/// The number of NAL units in a coded picture, counted up to one more than the maximum. The decoder keeps a record of
/// each unit, which for an empty unit is twenty times as large as the unit.
fn units(file: &HeifFile<'_>, id: ItemId) -> std::result::Result<usize, heifer_isobmff::Error> {
    let size = file.hevc_config(id)?.map_or(4, |config| usize::from(config.nal_length_size));
    let data = file.item_data(id)?;
    let (mut rest, mut count) = (&*data, 0);
    while count <= MOST_UNITS
        && let Some((length, tail)) = rest.split_at_checked(size)
        && let length = length.iter().fold(0_usize, |sum, byte| sum << 8 | usize::from(*byte))
        && let Some(next) = tail.get(length..)
    {
        (rest, count) = (next, count + 1);
        if rest.is_empty() {
            break;
        }
    }
    Ok(count)
}

fn failed(bytes: &[u8], format: Format, error: heifer::Error) -> Error {
    use heifer::Error as E;
    use heifer::heifer_hevc_dec::Error as Hevc;
    match error {
        E::Container(error) => super::failed(bytes, format, error),
        E::Hevc(Hevc::UnexpectedEof) => truncated(format, bytes.len()),
        E::Unsupported(what) => format.unsupported(format!("The decoder says: {what}.")),
        E::Hevc(Hevc::Unimplemented(what)) => format.unsupported(format!("The decoder says: {what}.")),
        other => format.broken(format!("The decoder says: {other}.")),
    }
}

/// The conversion of samples to colours.
#[derive(Clone, Copy, Debug)]
enum Conversion {
    Grey,
    /// Integer arithmetic, in 256ths, for full-range 4:2:0 samples of eight bits: the factors of red, green (V, U) and
    /// blue.
    Fixed([i32; 4]),
    /// Floating-point arithmetic, at the depth of the samples.
    Float {
        full_range: bool,
        sort: Sort,
    },
}

#[derive(Clone, Copy, Debug)]
enum Sort {
    /// The planes are green, blue and red.
    Identity,
    CoCg,
    /// The factors of red, green (V, U) and blue.
    Matrix([f32; 4]),
}

impl Conversion {
    /// None for a matrix that is unknown or not linear.
    fn new(frame: &Frame, CodePoints { matrix, primaries, full_range }: CodePoints, smooth: bool) -> Option<Self> {
        if frame.widths[1] == 0 {
            return Some(Self::Grey);
        }
        let sort = match matrix {
            0 => Sort::Identity,
            8 => Sort::CoCg,
            // For matrix 10, BT.2020 with constant luminance, libheif uses the factors of 9, without constant
            // luminance.
            10 => Sort::Matrix(factors(9, primaries)?),
            2 | 3 => Sort::Matrix([1.402, -0.714_136, -0.344_136, 1.772]),
            matrix => Sort::Matrix(factors(matrix, primaries)?),
        };
        Some(match sort {
            Sort::Matrix(factors) if full_range && frame.chroma_format == 1 && !smooth => {
                Self::Fixed(factors.map(|factor| (256.0 * factor).round() as i32))
            }
            sort => Self::Float { full_range, sort },
        })
    }
}

fn factors(matrix: u16, primaries: u16) -> Option<[f32; 4]> {
    let (kr, kb) = shares(matrix, primaries)?;
    let (red, blue) = (2.0 * (1.0 - kr), 2.0 * (1.0 - kb));
    let kg = kb + kr - 1.0;
    Some([red, kr * red / kg, kb * blue / kg, blue])
}

/// A decoded picture, whose rows are converted on request.
struct Converted {
    frame: Frame,
    size: (u32, u32),
    conversion: Conversion,
    /// The part whose chroma is interpolated.
    smooth: Option<Part>,
}

impl Converted {
    fn luma(&self, y: usize, from: usize) -> &[u16] {
        let width = self.frame.widths[0] as usize;
        &self.frame.planes[0][y * width..(y + 1) * width][from..]
    }

    /// The chroma samples for the pixels of a row, from column `from` on; subsampled chroma is repeated.
    fn chroma(&self, y: usize, from: usize) -> impl Iterator<Item = [u16; 2]> {
        let width = self.frame.widths[1] as usize;
        let (across, down) = match self.frame.chroma_format {
            1 => (1, 1),
            2 => (1, 0),
            _ => (0, 0),
        };
        let row = |plane: usize| &self.frame.planes[plane][(y >> down) * width..][..width];
        let (cb, cr) = (row(1), row(2));
        (from..).map(move |x| {
            if let Some(part) = self.smooth {
                return [1, 2].map(|plane| self.smooth(plane, part, x, y));
            }
            let x = (x >> across).min(width - 1);
            [cb[x], cr[x]]
        })
    }

    /// A chroma sample interpolated between the nearest samples of a subsampled plane, 3 to 1.
    fn smooth(&self, plane: usize, part: Part, x: usize, y: usize) -> u16 {
        let halved_rows = self.frame.chroma_format == 1;
        let (left, top) = (part.left as usize / 2, part.top as usize / if halved_rows { 2 } else { 1 });
        let (columns, rows) = (self.frame.widths[plane] as usize, self.frame.heights[plane] as usize);
        let at = |x: usize, y: usize| {
            u32::from(self.frame.planes[plane][(top + y).min(rows - 1) * columns + (left + x).min(columns - 1)])
        };
        let place = |at: usize, start: u32, side: u32| {
            let (at, side) = (at.saturating_sub(start as usize), side as usize);
            // The first sample, or, if the side is even, the last sample at the end: these have no second neighbour.
            let end = if at == 0 { Some(0) } else { (at + 1 == side && side % 2 == 0).then(|| side / 2 - 1) };
            (end, at.saturating_sub(1) / 2, if at % 2 == 1 { [3, 1] } else { [1, 3] })
        };
        let (end_x, x, across) = place(x, part.left, part.size.0);
        let pair = |a: u32, b: u32, [near, far]: [u32; 2]| ((a * near + b * far + 2) / 4) as u16;
        if !halved_rows {
            let y = y.saturating_sub(part.top as usize);
            return end_x.map_or_else(|| pair(at(x, y), at(x + 1, y), across), |x| at(x, y) as u16);
        }
        let (end_y, y, down) = place(y, part.top, part.size.1);
        match (end_x, end_y) {
            (Some(x), Some(y)) => at(x, y) as u16,
            (None, Some(y)) => pair(at(x, y), at(x + 1, y), across),
            (Some(x), None) => pair(at(x, y), at(x, y + 1), down),
            (None, None) => {
                let row = |y| at(x, y) * across[0] + at(x + 1, y) * across[1];
                ((row(y) * down[0] + row(y + 1) * down[1] + 8) / 16) as u16
            }
        }
    }
}

impl Coded for Converted {
    fn size(&self) -> (u32, u32) {
        self.size
    }

    fn row(&self, y: usize, from: usize, rgb: &mut [u8]) {
        let luma = self.luma(y, from);
        let [luma_bits, chroma_bits] = self.frame.bit_depth;
        let beyond = [luma_bits, chroma_bits].map(|bits| bits.saturating_sub(8));
        let pixels = rgb.as_chunks_mut::<3>().0.iter_mut().zip(luma);
        match self.conversion {
            Conversion::Grey => pixels.for_each(|(to, y)| *to = [(y >> beyond[0]) as u8; 3]),
            Conversion::Fixed([red, green_v, green_u, blue]) => {
                let byte = |value: i32| value.clamp(0, 255) as u8;
                let part = |sum: i32| (sum + 128) >> 8;
                for ((to, y), chroma) in pixels.zip(self.chroma(y, from)) {
                    let y = i32::from(y >> beyond[0]);
                    let [u, v] = chroma.map(|sample| i32::from(sample >> beyond[1]) - 128);
                    *to = [part(red * v), part(green_u * u + green_v * v), part(blue * u)].map(|part| byte(y + part));
                }
            }
            Conversion::Float { full_range, sort } => {
                // Brings luma and chroma to one depth. No known picture has different depths.
                let bits = luma_bits.min(chroma_bits);
                let narrower = [luma_bits - bits, chroma_bits - bits];
                let middle = f32::from(1u16 << (bits - 1));
                let start = f32::from(16u16 << (bits - 8));
                let most = ((1u32 << bits) - 1) as f32;
                // Rust's float-to-integer conversion saturates at 0.
                let byte = |value: f32| ((value + 0.5).min(most) as u16 >> (bits - 8)) as u8;
                let (luma_scale, chroma_scale) = if full_range { (1.0, 1.0) } else { (LUMA_SCALE, CHROMA_SCALE) };
                let start = if full_range { 0.0 } else { start };
                for ((to, y), [u, v]) in pixels.zip(self.chroma(y, from)) {
                    let y = (f32::from(y >> narrower[0]) - start) * luma_scale;
                    let (u, v) = (f32::from(u >> narrower[1]), f32::from(v >> narrower[1]));
                    *to = match sort {
                        Sort::Identity => [(v - start) * chroma_scale, y, (u - start) * chroma_scale],
                        Sort::CoCg => {
                            let (cg, co) = (u - middle, v - middle);
                            [y - cg + co, y + cg, y - cg - co]
                        }
                        Sort::Matrix([red, green_v, green_u, blue]) => {
                            let (u, v) = ((u - middle) * chroma_scale, (v - middle) * chroma_scale);
                            [y + red * v, y + green_u * u + green_v * v, y + blue * u]
                        }
                    }
                    .map(byte);
                }
            }
        }
    }
}

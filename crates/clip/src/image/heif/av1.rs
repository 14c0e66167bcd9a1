//! AV1 by rav1d, a port of dav1d to Rust, on a separate thread and without assembly code.
//!
//! A panic in it would end the process, because its functions use the C calling convention. It therefore runs on a
//! thread that stops permanently at a panic ([`run_in_thread_at_risk`]).

use heifer_isobmff::ItemId;
use re_rav1d::dav1d::{self, Picture, PixelLayout, PlanarImageComponent, Plane, pixel};

use crate::error::{Error, Kind, Result};
use crate::image::heif::yuv::{Colours, Fixed};
use crate::image::heif::{CodePoints, Coded, Container, Whole};
use crate::image::limits::{Limits, bytes_of};
use crate::image::picture::Format;
use crate::image::uninterruptible::run_in_thread_at_risk;
use crate::memory::Reserve;

/// Bytes that the decoder takes for each pixel of a coded picture: planes of up to 16 bits without subsampling, twice
/// if it adds film grain to a copy, and block data.
pub(super) const CODED: u64 = 16;

/// Maximum number of frames in a still picture: AV1 allows four layers.
const MOST_FRAMES: usize = 4;

/// Decodes one coded picture as stored.
pub(super) fn decode(container: &Container, id: ItemId, whole: &Whole, limits: &Limits) -> Result<Box<dyn Coded>> {
    let beside = whole.beside;
    let format = container.format;
    let size = container.size(id)?;
    let data = container.file.item_data(id).map_err(|e| container.fail(e))?;
    let frames = frames(&data).ok_or_else(|| format.broken("Its AV1 data are not made of units."))?;
    if frames > MOST_FRAMES {
        return Err(format.unsupported(format!("Its picture is coded in {frames} frames.")));
    }
    let stated = container.stated(whole.id)?.or(container.stated(id)?);
    let gave_up = move || format.broken("The decoder gave up on it.");
    let picture = run_in_thread_at_risk(&data, limits, gave_up, move |data, _| {
        let reserve = Reserve::new(usize::try_from(beside).map_err(|_| Error::out_of_memory(usize::MAX))?)?;
        let picture = picture(data, size, format)?;
        reserve.finish()?;
        Ok(picture)
    })?;
    if picture.width() < size.0 || picture.height() < size.1 {
        return Err(format.broken("Its coded picture is smaller than it says."));
    }
    Ok(Box::new(Frame::new(picture, size, stated, whole.is_clear, format)?))
}

/// The number of frames in a sequence of OBUs (AV1, 5.3), not counting repeated frames. None if a unit's length is
/// missing or beyond the data.
fn frames(data: &[u8]) -> Option<usize> {
    let (mut at, mut frames) = (0, 0);
    while at < data.len() {
        let header = data[at];
        at += 1 + usize::from(header & 4 != 0);
        let length = if header & 2 == 0 {
            // The last unit may omit its length; it then extends to the end.
            data.len().checked_sub(at)?
        } else {
            let mut length = 0usize;
            for shift in (0..56).step_by(7) {
                let byte = *data.get(at)?;
                at += 1;
                length |= usize::from(byte & 0x7F) << shift;
                if byte & 0x80 == 0 {
                    break;
                }
            }
            length
        };
        // A frame (6), or a frame header alone (3).
        frames += usize::from(matches!(header >> 3 & 15, 3 | 6));
        at = at.checked_add(length)?;
    }
    Some(frames)
}

fn picture(data: &[u8], size: (u32, u32), format: Format) -> Result<Picture> {
    let fail = |error: dav1d::Error| match error {
        dav1d::Error::NotEnoughMemory => Error::out_of_memory(bytes_of(size, CODED) as usize),
        dav1d::Error::UnsupportedBitstream => format.unsupported("The decoder doesn't know its sort of AV1."),
        error => format.broken(format!("The decoder says: {error}.")),
    };
    let mut settings = dav1d::Settings::new();
    settings.set_n_threads(1);
    settings.set_max_frame_delay(1);
    // Frames may be larger than the picture, because they are padded to whole blocks.
    let side = |side: u32| u64::from(side) + 64;
    settings.set_frame_size_limit(u32::try_from(side(size.0) * side(size.1)).unwrap_or(u32::MAX));
    let mut decoder = dav1d::Decoder::with_settings(&settings).map_err(fail)?;
    let mut copy = crate::memory::with_capacity(data.len())?;
    copy.extend_from_slice(data);
    let mut result = decoder.send_data(copy, None, None, None);
    for _ in 0..=MOST_FRAMES {
        match result {
            Ok(()) | Err(dav1d::Error::Again) => {}
            Err(error) => return Err(fail(error)),
        }
        match decoder.get_picture() {
            Ok(picture) => return Ok(picture),
            Err(dav1d::Error::Again) => result = decoder.send_pending_data(),
            Err(error) => return Err(fail(error)),
        }
    }
    Err(Error::new(Kind::InvalidInput, format!("{} image is broken", format.name())).detail("It has no picture."))
}

/// A decoded picture.
struct Frame {
    size: (u32, u32),
    luma: Samples,
    chroma: Option<Chroma>,
    conversion: Conversion,
}

#[derive(Clone, Copy)]
enum Conversion {
    Float(Colours),
    /// Integer arithmetic. `beyond` is the number of bits per sample beyond eight; they are dropped first, or,
    /// if `fine`, after chroma is interpolated. With `nearest`, chroma samples are repeated instead of interpolated.
    Fixed {
        fixed: Fixed,
        beyond: u32,
        fine: bool,
        nearest: bool,
    },
}

struct Chroma {
    u: Samples,
    v: Samples,
    /// Whether chroma has half the columns, and half the rows.
    halved: (bool, bool),
    columns: usize,
    rows: usize,
}

/// A plane of samples of 8 or more bits.
struct Samples {
    plane: Plane,
    stride: usize,
    wide: bool,
}

impl Samples {
    fn new(picture: &Picture, component: PlanarImageComponent) -> Self {
        Self {
            plane: picture.plane(component),
            stride: picture.stride(component) as usize,
            wide: picture.bit_depth() > 8,
        }
    }

    /// The samples of a row, from column `from` to the end of the plane.
    fn row(&self, y: usize, from: usize) -> impl Iterator<Item = u16> {
        let bytes = self.plane.get(y.saturating_mul(self.stride)..).unwrap_or_default();
        let step = if self.wide { 2 } else { 1 };
        let bytes = bytes.get(from * step..).unwrap_or_default();
        let wide = self.wide;
        bytes.chunks_exact(step).map(move |sample| match sample {
            [low, high] if wide => u16::from_ne_bytes([*low, *high]),
            [sample, ..] => u16::from(*sample),
            [] => 0,
        })
    }
}

impl Frame {
    /// `stated` has the container's matrix, primaries and range, which take precedence over the stream's own.
    fn new(
        picture: Picture,
        size: (u32, u32),
        stated: Option<CodePoints>,
        is_clear: bool,
        format: Format,
    ) -> Result<Self> {
        let bits = picture.bits_per_component().map_or(8, |bits| bits.0 as u32);
        let is_grey = picture.pixel_layout() == PixelLayout::I400;
        let own = || {
            use pixel::MatrixCoefficients as M;
            let matrix = match picture.matrix_coefficients() {
                M::Identity => 0,
                M::BT709 => 1,
                M::Unspecified => 2,
                M::BT470M => 4,
                M::BT470BG | M::ST170M => 6,
                M::ST240M => 7,
                M::YCgCo => 8,
                M::BT2020NonConstantLuminance => 9,
                _ => u16::MAX,
            };
            CodePoints { matrix, primaries: 2, full_range: picture.color_range() == pixel::YUVRange::Full }
        };
        let CodePoints { matrix, primaries, full_range } = stated.unwrap_or_else(own);
        // A grey picture needs no matrix.
        let matrix = if is_grey { 2 } else { matrix };
        let conversion = match Fixed::new(matrix, primaries, full_range).filter(|_| !is_grey) {
            // For a picture with transparency, the reference keeps ten bits until the end; twelve bits only with 4:2:0
            // chroma, whose samples it then repeats.
            Some(fixed) => {
                let nearest = is_clear && bits == 12 && picture.pixel_layout() == PixelLayout::I420;
                let fine = (is_clear && bits == 10) || nearest;
                Conversion::Fixed { fixed, beyond: bits - 8, fine, nearest }
            }
            None => Conversion::Float(
                Colours::new(matrix, primaries, full_range, bits)
                    .ok_or_else(|| format.unsupported(format!("Its colours are coded by matrix {matrix}.")))?,
            ),
        };
        let halved = match picture.pixel_layout() {
            PixelLayout::I420 => (true, true),
            PixelLayout::I422 => (true, false),
            PixelLayout::I444 | PixelLayout::I400 => (false, false),
        };
        let half = |side: u32, halved: bool| if halved { side.div_ceil(2) } else { side } as usize;
        let chroma = (!is_grey).then(|| Chroma {
            u: Samples::new(&picture, PlanarImageComponent::U),
            v: Samples::new(&picture, PlanarImageComponent::V),
            halved,
            columns: half(picture.width(), halved.0),
            rows: half(picture.height(), halved.1),
        });
        let luma = Samples::new(&picture, PlanarImageComponent::Y);
        Ok(Self { size, luma, chroma, conversion })
    }
}

impl Chroma {
    /// The samples of both planes in a chroma row, each shifted right by `dropped` bits.
    fn samples(&self, y: usize, dropped: u32) -> impl Iterator<Item = [u16; 2]> {
        let (u, v) = (self.u.row(y, 0), self.v.row(y, 0));
        u.zip(v).take(self.columns).map(move |(u, v)| [u >> dropped, v >> dropped])
    }

    /// The chroma for a luma row, as four times the sample. With half the rows, the nearest row is repeated.
    fn repeated(&self, y: usize) -> Vec<[u32; 2]> {
        self.samples(y / 2, 0).map(|pair| pair.map(|sample| u32::from(sample) * 4)).collect()
    }

    /// The chroma for a luma row, as four times the sample. With half the rows, it is interpolated between the two
    /// nearest rows, 3 to 1.
    fn row(&self, y: usize, dropped: u32) -> Vec<[u32; 2]> {
        let wide = |[u, v]: [u16; 2]| [u32::from(u), u32::from(v)];
        if !self.halved.1 {
            return self.samples(y, dropped).map(|pair| wide(pair).map(|sample| sample * 4)).collect();
        }
        let near = y / 2;
        let far = if y % 2 == 1 { (near + 1).min(self.rows - 1) } else { near.saturating_sub(1) };
        let both = self.samples(near, dropped).zip(self.samples(far, dropped));
        both.map(|(near, far)| blend(wide(near), wide(far))).collect()
    }
}

/// Three parts of `near` and one of `far`, for both planes.
fn blend(near: [u32; 2], far: [u32; 2]) -> [u32; 2] {
    [0, 1].map(|plane| near[plane] * 3 + far[plane])
}

impl Coded for Frame {
    fn size(&self) -> (u32, u32) {
        self.size
    }

    fn row(&self, y: usize, from: usize, rgb: &mut [u8]) {
        let luma = self.luma.row(y, from);
        let Some(chroma) = &self.chroma else {
            if let Conversion::Float(colours) = &self.conversion {
                colours.grey(luma, rgb);
            }
            return;
        };
        let (dropped, nearest) = match self.conversion {
            Conversion::Fixed { beyond, fine, nearest, .. } => (if fine { 0 } else { beyond }, nearest),
            Conversion::Float(_) => (0, false),
        };
        let row = if nearest { chroma.repeated(y) } else { chroma.row(y, dropped) };
        let Some(last) = row.len().checked_sub(1) else { return };
        let sixteenths = (from..from + rgb.len() / 3).map(|x| {
            if !chroma.halved.0 {
                return row[x.min(last)].map(|sample| sample * 4);
            }
            let near = (x / 2).min(last);
            if nearest {
                return row[near].map(|sample| sample * 4);
            }
            let far = if x % 2 == 1 { (near + 1).min(last) } else { near.saturating_sub(1) };
            blend(row[near], row[far])
        });
        match &self.conversion {
            Conversion::Float(colours) => {
                colours.row(luma, sixteenths.map(|pair| pair.map(|sample| sample as f32 / 16.0)), rgb);
            }
            Conversion::Fixed { fixed, beyond, fine, .. } => {
                let (beyond, rest) = (*beyond, if *fine { *beyond } else { 0 });
                let chroma = sixteenths.map(|pair| pair.map(|sample| (((sample + 8) >> 4) >> rest).min(255) as u8));
                // Widens the sample to 16 bits: its highest bits are repeated at the end.
                let wide = |sample: u16| match *fine {
                    true => u32::from(sample) << (8 - beyond) | u32::from(sample) >> (2 * beyond),
                    false => u32::from(sample >> beyond) * 257,
                };
                fixed.row(luma.map(wide), chroma, rgb);
            }
        }
    }
}

//! HEVC by heifer, a decoder in Rust without unsafe code.

use heifer::Image;
use heifer::heifer_hevc_dec::decoder;
use heifer_isobmff::boxes::{ColorInfo, Property};
use heifer_isobmff::{HeifFile, ItemId};

use crate::error::{Error, Result, without_panic};
use crate::image::aside::aside;
use crate::image::heif::{Coded, Container};
use crate::image::limits::{Limits, bytes_of};
use crate::image::picture::{Format, truncated};
use crate::memory::Reserve;

/// Bytes that the decoder takes for each pixel of a coded picture: planes of 16 bits before and after filtering, its
/// block data, and RGBA.
pub(super) const CODED: u64 = 40;
/// A coded picture with more pixels takes longer than 0.1 s, so it is decoded in a separate thread.
const QUICK: u64 = 1 << 20;

/// Decodes one coded picture, as stored. `beside` is the memory that the decoder may take.
pub(super) fn decode(container: &Container, id: ItemId, beside: u64, limits: &Limits) -> Result<Box<dyn Coded>> {
    let size = container.size(id)?;
    let image = if bytes_of(size, 1) <= QUICK {
        picture(container.bytes, &container.file, container.format, id, beside)?
    } else {
        let format = container.format;
        let gave_up = move || format.broken("The decoder gave up on it.");
        aside(container.bytes, limits, gave_up, move |bytes, _| {
            without_panic(gave_up, || picture(bytes, &Container::parse(bytes, format)?.file, format, id, beside))
        })?
    };
    Ok(Box::new(image))
}

fn picture(bytes: &[u8], file: &HeifFile<'_>, format: Format, id: ItemId, beside: u64) -> Result<Image<u8>> {
    let reserve = Reserve::new(usize::try_from(beside).map_err(|_| Error::out_of_memory(usize::MAX))?)?;
    let fail = |error| failed(bytes, format, error);
    let options = decoder::DecodeOptions { max_pixels: beside / CODED, ..Default::default() };
    let stream = file.hevc_bitstream(id).map_err(|e| fail(e.into()))?;
    let frame = decoder::decode_picture(&stream, options).map_err(|e| fail(e.into()))?;
    let (width, height) =
        file.image_size(id).map_err(|e| fail(e.into()))?.unwrap_or((frame.widths[0], frame.heights[0]));
    if width > frame.widths[0] || height > frame.heights[0] {
        return Err(format.broken("Its coded picture is smaller than it says."));
    }
    let stated = file.item_properties(id).map_err(|e| fail(e.into()))?.find_map(|property| match property {
        Property::Color(ColorInfo::Nclx { matrix, full_range, .. }) => {
            Some(heifer::color::ColorParams { matrix: *matrix, full_range: *full_range })
        }
        _ => None,
    });
    let colors = stated.unwrap_or_else(|| heifer::color::ColorParams::from_frame(&frame));
    let image = heifer::color::frame_to_rgba_sized(&frame, colors, width, height);
    reserve.finish()?;
    Ok(image)
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

impl Coded for Image<u8> {
    fn size(&self) -> (u32, u32) {
        (self.width, self.height)
    }

    fn row(&self, y: usize, from: usize, rgb: &mut [u8]) {
        let row = &self.data[y * self.width as usize * 4..][from * 4..];
        for (to, from) in rgb.as_chunks_mut::<3>().0.iter_mut().zip(row.as_chunks::<4>().0) {
            *to = [from[0], from[1], from[2]];
        }
    }
}

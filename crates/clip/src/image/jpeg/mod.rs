//! JPEG by libjpeg-turbo, the decoder that Pillow uses, so that the pixels equal the reference's exactly.
//!
//! `jpeg.c` decodes row by row, so that decoding can be interrupted between rows, also within each scan. All unsafe
//! code here calls `jpeg.c`, which does not unwind, or is called by it.
#![allow(unsafe_code)]

mod markers;

use std::borrow::Cow;
use std::ffi::{CStr, c_char, c_int, c_long, c_uint, c_ulong, c_void};
use std::ptr::NonNull;

use image::RgbImage;
use image::metadata::Orientation;
// Links the library that jpeg.c calls.
use turbojpeg_sys as _;

use crate::error::{Error, Kind, Result};
use crate::image::exif;
use crate::image::limits::{Limits, bytes_of};
use crate::image::picture::Taken;
use crate::image::picture::{Format, Picture, Short, truncated};
use crate::image::profile::{self, Profile};
use crate::image::{orientation, pixels};
use crate::memory;

use markers::{check_scans, frame, segments, unsupported_process};

mod sys {
    use super::{c_char, c_int, c_long, c_uint, c_ulong, c_void};

    /// `struct clip_jpeg`, which is opaque to Rust.
    #[repr(C)]
    pub struct Decoder {
        _private: [u8; 0],
    }

    /// `struct clip_jpeg_header`.
    #[repr(C)]
    #[derive(Default)]
    pub struct Header {
        pub width: c_uint,
        pub height: c_uint,
        pub precision: c_int,
        pub channels: c_int,
        pub colorspace: c_int,
        pub multiscan: c_int,
    }

    /// `JMSG_LENGTH_MAX`.
    pub const MESSAGE: usize = 200;
    pub const OK: c_int = 0;
    pub const STOPPED: c_int = 2;
    pub const MEMORY: c_int = 3;

    /// `J_COLOR_SPACE`.
    pub const UNKNOWN: c_int = 0;
    pub const GRAYSCALE: c_int = 1;
    pub const RGB: c_int = 2;
    pub const YCBCR: c_int = 3;
    pub const CMYK: c_int = 4;
    pub const YCCK: c_int = 5;

    pub type Push = extern "C" fn(*mut c_void, *const u8, c_ulong) -> c_int;
    pub type Stop = extern "C" fn(*const c_void) -> c_int;

    unsafe extern "C" {
        pub fn clip_jpeg_new() -> *mut Decoder;
        pub fn clip_jpeg_free(jpeg: *mut Decoder);
        pub fn clip_jpeg_message(jpeg: *const Decoder) -> *const c_char;
        pub fn clip_jpeg_tables(jpeg: *mut Decoder, bytes: *const u8, length: c_ulong) -> c_int;
        pub fn clip_jpeg_open(jpeg: *mut Decoder, bytes: *const u8, length: c_ulong, header: *mut Header) -> c_int;
        #[allow(clippy::too_many_arguments)]
        pub fn clip_jpeg_start(
            jpeg: *mut Decoder,
            stored: c_int,
            colorspace: c_int,
            shrink: c_uint,
            max_memory: c_long,
            stop: Stop,
            context: *const c_void,
            width: *mut c_uint,
            height: *mut c_uint,
            channels: *mut c_int,
        ) -> c_int;
        pub fn clip_jpeg_row(jpeg: *mut Decoder, row: *mut u8) -> c_int;
        pub fn clip_jpeg_finish(jpeg: *mut Decoder) -> c_int;
        pub fn clip_jpeg_encode(
            rgb: *const u8,
            width: c_uint,
            height: c_uint,
            quality: c_int,
            push: Push,
            context: *mut c_void,
            message: *mut c_char,
        ) -> c_int;
        pub fn clip_jpeg_extent(jpeg: *const Decoder, is_short: *mut c_int, rows: *mut c_uint, complete: *mut c_int);
    }
}

/// A JPEG whose header has been read.
pub(crate) struct Jpeg<'a> {
    handle: Handle,
    bytes: &'a [u8],
    header: sys::Header,
    limits: &'a Limits,
    pub width: u32,
    pub height: u32,
}

struct Handle(NonNull<sys::Decoder>);

impl Handle {
    fn new() -> Result<Self> {
        // SAFETY: no precondition; a null result is handled.
        NonNull::new(unsafe { sys::clip_jpeg_new() }).map(Self).ok_or_else(|| Error::out_of_memory(1 << 10))
    }

    /// The error for a call that returned `status`.
    fn failure(&self, status: c_int) -> Failure {
        // SAFETY: the handle is live, and the string it returns lives in it.
        let message = unsafe { CStr::from_ptr(sys::clip_jpeg_message(self.0.as_ptr())) }.to_string_lossy().into_owned();
        match status {
            sys::STOPPED => Failure::Other(Error::interrupted()),
            sys::MEMORY => Failure::Other(Error::new(Kind::OutOfMemory, "out of memory").detail(message)),
            _ => Failure::Broken(message),
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: created by clip_jpeg_new and freed only here.
        unsafe { sys::clip_jpeg_free(self.0.as_ptr()) }
    }
}

/// The reason why the decoder stopped.
enum Failure {
    /// The file is broken; contains the decoder's message.
    Broken(String),
    Other(Error),
}

extern "C" fn stop(context: *const c_void) -> c_int {
    // SAFETY: the context is the limits passed to `start`, which outlive the decoder.
    let limits = unsafe { &*context.cast::<Limits>() };
    c_int::from((limits.interrupted)())
}

impl<'a> Jpeg<'a> {
    /// Reads the header. It allocates no memory for pixels.
    pub fn open(bytes: &'a [u8], limits: &'a Limits) -> Result<Self> {
        Self::open_with(bytes, None, limits)
    }

    /// Like [`Self::open`], for a file without its own tables, such as the strips of a TIFF.
    pub fn open_with(bytes: &'a [u8], tables: Option<&[u8]>, limits: &'a Limits) -> Result<Self> {
        let handle = Handle::new()?;
        let failed = |status: c_int| match handle.failure(status) {
            Failure::Broken(message) => broken(&message),
            Failure::Other(error) => error,
        };
        if let Some(tables) = tables {
            // SAFETY: the handle is live; pointer and length are of one live slice, which is read in this call only.
            let status = unsafe { sys::clip_jpeg_tables(handle.0.as_ptr(), tables.as_ptr(), tables.len() as c_ulong) };
            if status != 0 {
                return Err(failed(status));
            }
        }
        let mut header = sys::Header::default();
        // SAFETY: the handle is live; pointer and length are of one slice that lives as long as the decoder.
        let status =
            unsafe { sys::clip_jpeg_open(handle.0.as_ptr(), bytes.as_ptr(), bytes.len() as c_ulong, &raw mut header) };
        if status != 0 {
            return Err(match unsupported_process(bytes) {
                Some(process) => Format::Jpeg.unsupported(format!("It is {process}.")),
                None => failed(status),
            });
        }
        if header.precision != 8 {
            return Err(Error::new(
                Kind::Unsupported,
                format!("JPEG with {} bits a channel is not supported", header.precision),
            )
            .hint("Convert it to an 8-bit JPEG or to PNG."));
        }
        let (width, height) = (header.width, header.height);
        Ok(Self { handle, bytes, header, limits, width, height })
    }

    /// The number of channels as stored.
    pub fn channels(&self) -> u8 {
        match self.header.colorspace {
            sys::GRAYSCALE => 1,
            sys::CMYK | sys::YCCK => 4,
            _ => 3,
        }
    }

    /// The largest divisor of the picture's size for which `ratio`, the size of the source divided by the size of the
    /// target, is still at least `spare` after the reduction.
    ///
    /// It returns only powers of two: libjpeg-turbo has SIMD code for these, and Pillow's `draft` offers the same.
    pub fn shrink(&self, ratio: f64, spare: f64) -> u32 {
        // Without a DCT there is no reduced size.
        if self.is_lossless() {
            return 1;
        }
        [8, 4, 2].into_iter().find(|shrink| ratio / f64::from(*shrink) >= spare).unwrap_or(1)
    }

    /// Whether the JPEG is lossless. In a camera's RAW file, the preview is an ordinary JPEG, and the raw data may be a
    /// lossless one.
    pub fn is_lossless(&self) -> bool {
        frame(self.bytes).is_none_or(|frame| frame.is_lossless())
    }

    /// The content of the first application segment (APP1) with this prefix.
    fn application(&self, prefix: &'static [u8]) -> Option<&'a [u8]> {
        segments(self.bytes).find_map(|(marker, payload)| (marker == 0xE1).then(|| payload.strip_prefix(prefix))?)
    }

    /// The orientation in the file's EXIF or XMP.
    pub fn orientation(&self) -> Orientation {
        let exif = self.application(b"Exif\0\0").and_then(orientation::in_exif);
        exif.or_else(|| self.application(b"http://ns.adobe.com/xap/1.0/\0").and_then(orientation::in_xmp))
            .unwrap_or(Orientation::NoTransforms)
    }

    /// The date of the picture in EXIF.
    pub fn taken(&self) -> Option<Taken> {
        self.application(b"Exif\0\0").and_then(exif::taken)
    }

    /// The colour profile in the file, which may be in several segments (ICC.1, B.4).
    pub fn profile(&self) -> Option<Profile<'a>> {
        let mut parts =
            segments(self.bytes).filter_map(|(marker, payload)| match payload.strip_prefix(b"ICC_PROFILE\0")? {
                [number, count, part @ ..] if marker == 0xE2 => Some((*number, *count, part)),
                _ => None,
            });
        let (1, count, first) = parts.next()? else { return None };
        if count == 1 {
            return Some(Profile::Icc(Cow::Borrowed(first)));
        }
        let mut profile = first.to_vec();
        for wanted in 2..=count {
            // Only segments in order are accepted: every writer stores them in order.
            let (_, _, part) = parts.next().filter(|(number, ..)| *number == wanted)?;
            profile.extend_from_slice(part);
            if profile.len() > profile::LARGEST {
                return None;
            }
        }
        Some(Profile::Icc(Cow::Owned(profile)))
    }

    /// Whether an end marker follows the start of the picture data. Picture data can't contain this marker.
    fn has_end(&self) -> bool {
        let scan = segments(self.bytes).map(|(_, payload)| payload.as_ptr_range().end as usize).last();
        let start = scan.map_or(2, |end| end - self.bytes.as_ptr() as usize);
        self.bytes[start..].windows(2).any(|pair| pair == [0xFF, 0xD9])
    }

    /// Bytes that the decoder takes in addition to the picture: rows in several forms, and, for files with several
    /// scans, every coefficient.
    fn decoder_bytes(&self) -> u64 {
        let rows = u64::from(self.width) * 128;
        let blocks = frame(self.bytes).map_or(0, |frame| frame.blocks());
        rows + if self.header.multiscan != 0 { blocks * 128 } else { 0 } + (1 << 20)
    }

    /// Decodes to RGB at 1/1, 1/2, 1/4 or 1/8 of the size, each side rounded up. CMYK and YCCK become RGB as in Pillow.
    ///
    /// A smaller size is computed from the low frequencies of each block (a smaller inverse DCT), as in Pillow's
    /// `Image.draft`. Entropy decoding is the same for every size, so every size finds the same files broken or
    /// truncated.
    ///
    /// `orientation` comes from the file or from its container.
    pub fn decode(self, shrink: u32, orientation: Orientation) -> Result<Picture> {
        let size = (self.width, self.height);
        let scans = if self.header.multiscan != 0 { Some(check_scans(self.bytes, self.limits)?) } else { None };
        let reduced = (self.width.div_ceil(shrink), self.height.div_ceil(shrink));
        let peak = Picture::peak(reduced, self.decoder_bytes(), orientation);
        self.limits.check_memory("JPEG image", size, peak)?;

        let mut rgb = pixels::canvas(reduced)?;
        let cmyk = matches!(self.header.colorspace, sys::CMYK | sys::YCCK);
        let mut inks = memory::zeroed(if cmyk { reduced.0 as usize * 4 } else { 0 })?;
        let mut rows = self.start(0, if cmyk { sys::CMYK } else { sys::RGB }, shrink)?;
        if rows.size != reduced || rows.channels != if cmyk { 4 } else { 3 } {
            return Err(Error::new(Kind::Internal, format!("the JPEG decoder does not scale by 1/{shrink}")));
        }
        for y in 0..reduced.1 as usize {
            let row = pixels::row_mut(&mut rgb, y);
            if cmyk {
                rows.read(&mut inks)?;
                cmyk_to_rgb(&inks, row);
            } else {
                rows.read(row)?;
            }
        }
        let (complete, refines) = scans.map_or((true, false), |scans| (scans.complete, scans.last_refines));
        let short = rows.finish(complete, refines)?;
        Ok(Picture { rgb, size, shrink, orientation, short, profile: None })
    }

    /// Starts decoding rows of samples in the given colours, for a part of a TIFF.
    pub fn rows(self, colors: Colors) -> Result<Rows<'a>> {
        if self.header.multiscan != 0 {
            check_scans(self.bytes, self.limits)?;
        }
        let needed = self.decoder_bytes();
        self.limits.check_memory("TIFF image", (self.width, self.height), needed)?;
        let (stored, out) = match colors {
            Colors::Grey => (sys::GRAYSCALE, sys::GRAYSCALE),
            Colors::Rgb => (sys::RGB, sys::RGB),
            Colors::YcbcrToRgb => (sys::YCBCR, sys::RGB),
            Colors::Cmyk => (sys::CMYK, sys::CMYK),
            Colors::Stored => (0, sys::UNKNOWN),
        };
        self.start(stored, out, 1)
    }

    fn start(self, stored: c_int, out: c_int, shrink: u32) -> Result<Rows<'a>> {
        let (mut width, mut height, mut channels) = (0, 0, 0);
        // SAFETY: the handle is live; the context has the type that `stop` expects, and outlives the decoder.
        let status = unsafe {
            sys::clip_jpeg_start(
                self.handle.0.as_ptr(),
                stored,
                out,
                shrink,
                c_long::try_from(self.limits.max_memory).unwrap_or(c_long::MAX),
                stop,
                std::ptr::from_ref(self.limits).cast(),
                &raw mut width,
                &raw mut height,
                &raw mut channels,
            )
        };
        if status != 0 {
            return Err(self.error(status));
        }
        Ok(Rows { size: (width, height), channels: channels.max(0) as usize, left: height, jpeg: self })
    }

    /// The error for a call that returned `status` while pixels were decoded.
    fn error(&self, status: c_int) -> Error {
        match self.handle.failure(status) {
            // A file without an end marker was truncated, regardless of the decoder's first error.
            Failure::Broken(message) if !self.has_end() || message.to_ascii_lowercase().contains("premature end") => {
                truncated(Format::Jpeg, self.bytes.len())
            }
            Failure::Broken(message) => broken(&message),
            Failure::Other(error) => error,
        }
    }
}

/// The colours of the components of a JPEG that doesn't describe them, and of the result.
#[derive(Clone, Copy)]
pub(crate) enum Colors {
    Grey,
    Rgb,
    YcbcrToRgb,
    Cmyk,
    /// All samples as stored, without conversion.
    Stored,
}

/// A JPEG whose rows are being decoded.
pub(crate) struct Rows<'a> {
    jpeg: Jpeg<'a>,
    pub size: (u32, u32),
    channels: usize,
    left: u32,
}

impl Rows<'_> {
    pub fn row_bytes(&self) -> usize {
        self.size.0 as usize * self.channels
    }

    /// Reads the next row.
    pub fn read(&mut self, row: &mut [u8]) -> Result<()> {
        if self.left == 0 || row.len() != self.row_bytes() {
            return Err(broken("it has another size"));
        }
        self.left -= 1;
        // SAFETY: the decoder was started, has rows left, and writes width × channels bytes, as checked above.
        match unsafe { sys::clip_jpeg_row(self.jpeg.handle.0.as_ptr(), row.as_mut_ptr()) } {
            0 => Ok(()),
            status => Err(self.jpeg.error(status)),
        }
    }

    /// Ends decoding and returns the part of the picture that the file lacks. `refines`: the last scan contains only
    /// details, or the last bits of earlier scans.
    fn finish(self, all_components: bool, refines: bool) -> Result<Short> {
        let handle = self.jpeg.handle.0.as_ptr();
        let (mut is_short, mut rows, mut complete) = (0, 0, 0);
        // SAFETY: the handle is live, and the decoder was started.
        unsafe { sys::clip_jpeg_extent(handle, &raw mut is_short, &raw mut rows, &raw mut complete) };
        let (complete, ended) = (complete != 0 && all_components, self.jpeg.has_end());
        if ended {
            // SAFETY: the handle is live, and all rows were read.
            match unsafe { sys::clip_jpeg_finish(handle) } {
                0 => {}
                status => return Err(self.jpeg.error(status)),
            }
        }
        if is_short == 0 {
            return Ok(if ended || complete { Short::Nothing } else { Short::Everything });
        }
        // The row of blocks in which the data end is partly decoded. In a small picture it is too large a part to
        // ignore.
        let (height, unit) = (self.jpeg.height, frame(self.jpeg.bytes).map_or(8, |frame| frame.row_height()));
        let missing = height.saturating_sub((rows + 1).saturating_mul(unit));
        if complete && refines {
            return Ok(Short::Rows(missing.div_ceil(DETAIL)));
        }
        if !complete || unit > height / 10 {
            return Ok(Short::Everything);
        }
        Ok(Short::Rows(missing))
    }
}

/// A row that is missing only from the last scan of a progressive file has all its pixels and slightly less detail.
/// This many such rows count as one missing row.
const DETAIL: u32 = 16;

/// The encoder's output.
struct Sink<'a> {
    bytes: Vec<u8>,
    limits: &'a Limits,
    error: Option<Error>,
}

/// Called by the encoder with its output. A result other than 0 stops the encoder.
extern "C" fn push(context: *mut c_void, bytes: *const u8, length: c_ulong) -> c_int {
    // SAFETY: the context is the sink on `encode`'s stack while the encoder runs; no other code uses it in the
    // meantime.
    let sink = unsafe { &mut *context.cast::<Sink<'_>>() };
    let length = length as usize;
    let room = sink
        .limits
        .check_interrupt()
        .and_then(|()| sink.bytes.try_reserve(length).map_err(|_| Error::out_of_memory(length)));
    match room {
        Ok(()) => {
            if length > 0 {
                // SAFETY: `bytes` and `length` describe the encoder's buffer, which is live during this call.
                sink.bytes.extend_from_slice(unsafe { std::slice::from_raw_parts(bytes, length) });
            }
            0
        }
        Err(error) => {
            sink.error = Some(error);
            1
        }
    }
}

/// Encodes a picture as JPEG with the given quality, 1 to 100, and full chroma resolution.
pub(crate) fn encode(rgb: &RgbImage, quality: c_int, limits: &Limits) -> Result<Vec<u8>> {
    let mut sink = Sink { bytes: Vec::new(), limits, error: None };
    let mut message = [0 as c_char; sys::MESSAGE];
    // SAFETY: the pixels are width × height × 3 bytes with packed rows; the sink outlives the call; the message has the
    // required size.
    let status = unsafe {
        sys::clip_jpeg_encode(
            rgb.as_ptr(),
            rgb.width(),
            rgb.height(),
            quality,
            push,
            (&raw mut sink).cast(),
            message.as_mut_ptr(),
        )
    };
    match (status, sink.error) {
        (sys::OK, _) => Ok(sink.bytes),
        (_, Some(error)) => Err(error),
        (sys::MEMORY, None) => Err(Error::out_of_memory(encoder_bytes(rgb.dimensions()) as usize)),
        // SAFETY: the message is all zeros, or a text that ends with a zero.
        (_, None) => Err(Error::new(Kind::Internal, "the JPEG could not be encoded")
            .detail(unsafe { CStr::from_ptr(message.as_ptr()) }.to_string_lossy().into_owned())),
    }
}

fn broken(reason: &str) -> Error {
    Error::new(Kind::InvalidInput, "JPEG image is broken").detail(format!("The decoder says: {reason}."))
}

/// Converts CMYK samples to RGB. Adobe stores CMYK inverted, and Pillow assumes this for every four-channel JPEG: with
/// stored values, `r = k - (255 - c) * k / 255`, rounded as Pillow's `MULDIV255` rounds.
pub(crate) fn cmyk_to_rgb(cmyk: &[u8], rgb: &mut [u8]) {
    for (to, &[c, m, y, k]) in rgb.as_chunks_mut::<3>().0.iter_mut().zip(cmyk.as_chunks::<4>().0) {
        *to = [c, m, y].map(|ink| {
            let product = (255 - u32::from(ink)) * u32::from(k) + 128;
            k - (((product >> 8) + product) >> 8) as u8
        });
    }
}

/// Bytes that the JPEG encoder takes for a picture of this size: its largest possible output.
pub(crate) fn encoder_bytes(size: (u32, u32)) -> u64 {
    bytes_of(size, 6) + (1 << 20)
}

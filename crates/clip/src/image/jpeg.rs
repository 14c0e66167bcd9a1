//! JPEG by libjpeg-turbo, the decoder behind Pillow, so that pixels equal the reference's to the bit.
//!
//! The unsafe calls are to its TurboJPEG API (version 3), which catches its own errors and never unwinds.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_int};
use std::ptr::NonNull;

use image::RgbImage;
use turbojpeg_sys as tj;

use crate::error::{Error, Kind, Result};

/// More scans than any encoder writes (libjpeg-turbo's own progressive script has 10); a file with
/// thousands is an attack on the decoder's time.
const MAX_SCANS: c_int = 500;

/// A JPEG whose header has been read.
pub(crate) struct Jpeg<'a> {
    handle: Handle,
    bytes: &'a [u8],
    pub width: u32,
    pub height: u32,
    colorspace: c_int,
    /// Made without a DCT (ITU-T T.81, process 14): can't be decoded at another size.
    lossless: bool,
}

/// What the decoder made of the pixel data.
pub(crate) struct Pixels {
    pub rgb: RgbImage,
    /// The file ends before its picture does; the missing part is grey.
    pub truncated: bool,
}

struct Handle(NonNull<std::ffi::c_void>);

impl Handle {
    fn get(&self, parameter: tj::TJPARAM) -> c_int {
        // SAFETY: the handle is live; reading a parameter has no other precondition.
        unsafe { tj::tj3Get(self.0.as_ptr(), parameter as c_int) }
    }

    fn set(&self, parameter: tj::TJPARAM, value: c_int) {
        // SAFETY: the handle is live; a value that is out of range is refused, not stored.
        unsafe { tj::tj3Set(self.0.as_ptr(), parameter as c_int, value) };
    }

    /// What the last call failed with.
    fn last_error(&self) -> Failure {
        // SAFETY: the handle is live, and the string it returns lives in it until the next call.
        let message = unsafe { CStr::from_ptr(tj::tj3GetErrorStr(self.0.as_ptr())) }.to_string_lossy().into_owned();
        // The library's own flag says "warning" even where a fatal error has followed one, and the message
        // is then the error's. These are the beginnings of all warnings (jerror.h, JWRN_).
        const WARNINGS: [&str; 7] = [
            "Application transferred",
            "Corrupt JPEG data",
            "Inconsistent progression",
            "Invalid SOS parameters",
            "Premature end",
            "Unknown Adobe color",
            "Warning:",
        ];
        Failure { warning: WARNINGS.iter().any(|start| message.starts_with(start)), message }
    }
}

/// What TurboJPEG says after a call that did not succeed.
struct Failure {
    message: String,
    /// There is a picture nonetheless.
    warning: bool,
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: made by tj3Init and destroyed here only.
        unsafe { tj::tj3Destroy(self.0.as_ptr()) }
    }
}

impl<'a> Jpeg<'a> {
    /// Reads the header; no pixel memory is allocated.
    pub fn open(bytes: &'a [u8]) -> Result<Self> {
        // SAFETY: no precondition; a null result is handled.
        let handle = NonNull::new(unsafe { tj::tj3Init(tj::TJINIT_TJINIT_DECOMPRESS as c_int) })
            .map(Handle)
            .ok_or_else(|| Error::new(Kind::Internal, "the JPEG decoder could not be set up"))?;
        handle.set(tj::TJPARAM_TJPARAM_SCANLIMIT, MAX_SCANS);
        // SAFETY: pointer and length are of one live slice.
        let status = unsafe { tj::tj3DecompressHeader(handle.0.as_ptr(), bytes.as_ptr(), bytes.len() as tj::size_t) };
        if status != 0 {
            let failure = handle.last_error();
            if !failure.warning {
                return Err(broken(&failure.message));
            }
        }
        let (width, height) = (handle.get(tj::TJPARAM_TJPARAM_JPEGWIDTH), handle.get(tj::TJPARAM_TJPARAM_JPEGHEIGHT));
        if width <= 0 || height <= 0 {
            return Err(broken("it has no size"));
        }
        let precision = handle.get(tj::TJPARAM_TJPARAM_PRECISION);
        if precision != 8 {
            return Err(Error::new(
                Kind::Unsupported,
                format!("JPEG with {precision} bits a channel is not supported"),
            )
            .hint("Convert it to an 8-bit JPEG or to PNG."));
        }
        let colorspace = handle.get(tj::TJPARAM_TJPARAM_COLORSPACE);
        let lossless = handle.get(tj::TJPARAM_TJPARAM_LOSSLESS) == 1;
        Ok(Self { handle, bytes, width: width as u32, height: height as u32, colorspace, lossless })
    }

    /// Channels as stored.
    pub fn channels(&self) -> u8 {
        match self.colorspace {
            cs if cs == tj::TJCS_TJCS_GRAY as c_int => 1,
            cs if cs == tj::TJCS_TJCS_CMYK as c_int || cs == tj::TJCS_TJCS_YCCK as c_int => 4,
            _ => 3,
        }
    }

    /// The most that [`Self::decode`] may shrink so that `ratio`, the source's size over the target's, is still at
    /// least `spare` afterwards.
    ///
    /// Only powers of two: libjpeg-turbo has SIMD code for these, and they are what Pillow's `draft` offers.
    pub fn shrink(&self, ratio: f64, spare: f64) -> u32 {
        if self.lossless {
            return 1;
        }
        [8, 4, 2].into_iter().find(|shrink| ratio / f64::from(*shrink) >= spare).unwrap_or(1)
    }

    /// The EXIF block's payload (what follows `Exif\0\0`), if there is one.
    pub fn exif(&self) -> Option<&'a [u8]> {
        segments(self.bytes)
            .find_map(|(marker, payload)| (marker == 0xE1).then(|| payload.strip_prefix(b"Exif\0\0"))?)
    }

    /// Whether an end marker follows the start of the picture data, in which the marker itself cannot occur.
    fn has_end(&self) -> bool {
        let scan = segments(self.bytes).map(|(_, payload)| payload.as_ptr_range().end as usize).last();
        let start = scan.map_or(2, |end| end - self.bytes.as_ptr() as usize);
        self.bytes[start..].windows(2).any(|pair| pair == [0xFF, 0xD9])
    }

    /// Decodes to RGB at 1/1, 1/2, 1/4 or 1/8 of the size, each side rounded up. CMYK and YCCK become RGB as Pillow
    /// does it.
    ///
    /// A smaller size comes from the low frequencies of each block (a smaller inverse DCT), as in Pillow's
    /// `Image.draft`. Entropy decoding is the same whatever the size, so the same files are broken or cut short.
    pub fn decode(self, shrink: u32) -> Result<Pixels> {
        let scale = tj::tjscalingfactor { num: 1, denom: shrink as c_int };
        // SAFETY: the handle is live; a factor that is not offered is refused, not stored.
        if unsafe { tj::tj3SetScalingFactor(self.handle.0.as_ptr(), scale) } != 0 {
            return Err(Error::new(Kind::Internal, format!("the JPEG decoder does not scale by 1/{shrink}")));
        }
        let (width, height) = (self.width.div_ceil(shrink), self.height.div_ceil(shrink));
        let cmyk = self.colorspace == tj::TJCS_TJCS_CMYK as c_int || self.colorspace == tj::TJCS_TJCS_YCCK as c_int;
        let (format, channels) = if cmyk { (tj::TJPF_TJPF_CMYK, 4) } else { (tj::TJPF_TJPF_RGB, 3) };
        let mut pixels = vec![0u8; width as usize * height as usize * channels];
        // SAFETY: the buffer holds width × height × channels bytes, the size in the header that this handle read
        // from these bytes, scaled as TJSCALED says (rounded up), with rows packed (pitch 0). Lossless files, for
        // which the library ignores the factor, are opened as such and never asked to shrink.
        let status = unsafe {
            tj::tj3Decompress8(
                self.handle.0.as_ptr(),
                self.bytes.as_ptr(),
                self.bytes.len() as tj::size_t,
                pixels.as_mut_ptr(),
                0,
                format,
            )
        };
        let mut truncated = false;
        if status != 0 {
            let failure = self.handle.last_error();
            // A file without an end marker has been cut, whatever the decoder stumbled over first.
            truncated = !self.has_end() || failure.message.to_ascii_lowercase().contains("premature end");
            if !failure.warning {
                return Err(if truncated {
                    crate::image::truncated(image::ImageFormat::Jpeg, self.bytes.len())
                } else {
                    broken(&failure.message)
                });
            }
        }
        if cmyk {
            pixels = cmyk_to_rgb(&pixels);
        }
        let rgb = RgbImage::from_raw(width, height, pixels).expect("the buffer was sized for it");
        Ok(Pixels { rgb, truncated })
    }
}

/// Encodes with the quality given, 1 to 100, and full chroma resolution.
pub(crate) fn encode(rgb: &RgbImage, quality: c_int) -> Result<Vec<u8>> {
    let failed = |detail: String| Error::new(Kind::Internal, "the JPEG could not be encoded").detail(detail);
    // SAFETY: no precondition; a null result is handled.
    let handle = NonNull::new(unsafe { tj::tj3Init(tj::TJINIT_TJINIT_COMPRESS as c_int) })
        .map(Handle)
        .ok_or_else(|| failed("The encoder could not be set up.".to_owned()))?;
    handle.set(tj::TJPARAM_TJPARAM_QUALITY, quality);
    handle.set(tj::TJPARAM_TJPARAM_SUBSAMP, tj::TJSAMP_TJSAMP_444 as c_int);
    let (mut buffer, mut size) = (std::ptr::null_mut::<u8>(), 0);
    // SAFETY: the pixels are width × height × 3 bytes with rows packed (pitch 0); a null buffer is allocated by the
    // library, which says how much of it is filled; it is freed by the library's own function, whatever the outcome.
    unsafe {
        let status = tj::tj3Compress8(
            handle.0.as_ptr(),
            rgb.as_ptr(),
            rgb.width() as c_int,
            0,
            rgb.height() as c_int,
            tj::TJPF_TJPF_RGB,
            &raw mut buffer,
            &raw mut size,
        );
        let encoded = (status == 0).then(|| std::slice::from_raw_parts(buffer, size as usize).to_vec());
        tj::tj3Free(buffer.cast());
        encoded.ok_or_else(|| failed(handle.last_error().message))
    }
}

fn broken(reason: &str) -> Error {
    Error::new(Kind::InvalidInput, "JPEG image is broken").detail(format!("The decoder says: {reason}."))
}

/// Walks the marker segments before the picture data: (marker, payload).
fn segments(bytes: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    let mut at = 2;
    std::iter::from_fn(move || {
        while bytes.get(at) == Some(&0xFF) && bytes.get(at + 1) == Some(&0xFF) {
            at += 1; // fill bytes
        }
        let [0xFF, marker, high, low] = *bytes.get(at..at + 4)? else { return None };
        if marker == 0xDA {
            return None; // start of scan
        }
        let length = usize::from(u16::from_be_bytes([high, low]));
        let payload = bytes.get(at + 4..at + 2 + length)?;
        at += 2 + length;
        Some((marker, payload))
    })
}

/// Adobe stores CMYK inverted, and Pillow assumes that of every four-channel JPEG:
/// with stored values, `r = k - (255 - c) * k / 255`, rounded as Pillow's `MULDIV255` rounds.
fn cmyk_to_rgb(cmyk: &[u8]) -> Vec<u8> {
    cmyk.as_chunks::<4>()
        .0
        .iter()
        .flat_map(|&[c, m, y, k]| {
            [c, m, y].map(|ink| {
                let product = (255 - u32::from(ink)) * u32::from(k) + 128;
                k - (((product >> 8) + product) >> 8) as u8
            })
        })
        .collect()
}

//! Recognises image formats by the first bytes of a file.

use crate::error::{Error, Kind, Result};
use crate::image::picture::Format;
use crate::image::raw;

/// The list of supported formats, as a hint for error messages.
fn supported() -> String {
    let names: Vec<&str> = Format::ALL.iter().map(|format| format.name()).collect();
    let (last, others) = names.split_last().expect("some formats are always built");
    format!("Supported are {} and {last}.", others.join(", "))
}

/// The format of a file, by its content.
pub(crate) fn recognise(bytes: &[u8]) -> Result<Format> {
    if bytes.is_empty() {
        return Err(Error::new(Kind::InvalidInput, "image is empty").detail("It has 0 bytes."));
    }
    sniff(bytes)
}

/// Recognises the format by content.
///
/// # Errors
/// [`Kind::Unsupported`] for formats that are recognised but not decoded, by name; [`Kind::InvalidInput`] for the rest.
pub(crate) fn sniff(bytes: &[u8]) -> Result<Format> {
    let starts = |magic: &[u8]| bytes.starts_with(magic);
    let at = |offset: usize, magic: &[u8]| bytes.get(offset..).is_some_and(|rest| rest.starts_with(magic));
    if starts(b"\xFF\xD8") {
        return Ok(Format::Jpeg);
    }
    if starts(b"\x89PNG\r\n\x1a\n") {
        return Ok(Format::Png);
    }
    if starts(b"GIF87a") || starts(b"GIF89a") {
        return Ok(Format::Gif);
    }
    if starts(b"RIFF") && at(8, b"WEBP") {
        return Ok(Format::WebP);
    }
    // Bytes 6–9 of a BMP are reserved and zero, or the hotspot of an OS/2 pointer. "BM" alone is not enough: text may
    // begin with it.
    let has_header = |length: u8| at(14, &[length, 0, 0, 0]);
    if starts(b"BM") && (at(6, &[0; 4]) || [12, 16, 40, 52, 56, 64, 108, 124].into_iter().any(has_header)) {
        return Ok(Format::Bmp);
    }
    // Classic and big TIFF in both byte orders.
    let is_tiff = [b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"].into_iter().any(|magic| starts(magic));
    if raw::is_raw(bytes, is_tiff) || (at(4, b"ftyp") && container(bytes) == raw::CR3) {
        return Ok(Format::Raw);
    }
    if is_tiff {
        return Ok(Format::Tiff);
    }
    if starts(b"\0\0\x01\0") && bytes.get(5) == Some(&0) {
        return Ok(Format::Ico);
    }
    let in_container = if at(4, b"ftyp") { container(bytes) } else { "" };
    #[cfg(feature = "heic")]
    if in_container == "HEIC" {
        return Ok(Format::Heic);
    }
    #[cfg(feature = "avif")]
    if in_container == "AVIF" {
        return Ok(Format::Avif);
    }
    let is_jxl = starts(b"\xFF\x0A") || starts(b"\0\0\0\x0CJXL \r\n\x87\n");
    #[cfg(feature = "jxl")]
    if is_jxl {
        return Ok(Format::Jxl);
    }
    let known = if !in_container.is_empty() {
        in_container
    } else if is_jxl {
        "JPEG XL"
    } else if is_dib(bytes) {
        "DIB (a BMP without its file header)"
    } else if starts(b"\0\0\0\x0CjP  ") || starts(b"\xFF\x4F\xFF\x51") {
        "JPEG 2000"
    } else if starts(b"%PDF") {
        "PDF"
    } else if starts(b"8BPS") {
        "Photoshop (PSD)"
    } else if is_svg(bytes) {
        "SVG"
    } else if starts(b"#?RADIANCE") || starts(b"#?RGBE") {
        "Radiance HDR"
    } else if starts(b"\x76\x2F\x31\x01") {
        "OpenEXR"
    } else if starts(b"qoif") {
        "QOI"
    } else if starts(b"farbfeld") {
        "farbfeld"
    } else if matches!(bytes, [b'P', b'1'..=b'7', b' ' | b'\t' | b'\n' | b'\r', ..]) {
        "PNM (PBM, PGM, PPM or PAM)"
    } else if bytes.get(6..14) == Some(b"HEAPCCDR") {
        "camera RAW (Canon CRW)"
    } else if starts(b"\0MRM") {
        "camera RAW (Minolta MRW)"
    } else if starts(b"FOVb") {
        "camera RAW (Sigma X3F)"
    } else if is_tga(bytes) {
        "TGA"
    } else {
        let shown: String = bytes.iter().take(8).map(|b| format!("{b:02x}")).collect();
        return Err(Error::new(Kind::InvalidInput, "not an image")
            .detail(format!("Its {} bytes start with {shown}, which is no image format's signature.", bytes.len()))
            .hint(supported()));
    };
    Err(Error::new(Kind::Unsupported, format!("image format {known} is not supported"))
        .hint(format!("Convert it to JPEG or PNG first. {}", supported())))
}

/// The format of an ISO base media file, by its brands: the major brand is often the general `mif1`.
fn container(bytes: &[u8]) -> &'static str {
    let length = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize;
    let brands = &bytes[8..length.clamp(8, bytes.len())];
    let any = |names: &[&[u8; 4]]| {
        brands.as_chunks::<4>().0.iter().any(|brand| names.contains(&brand))
            || bytes.get(8..12).is_some_and(|major| names.iter().any(|name| name.as_slice() == major))
    };
    if any(&[b"avif", b"avis"]) {
        "AVIF"
    } else if any(&[b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis"]) {
        "HEIC"
    } else if any(&[b"mif1", b"msf1"]) {
        // These brands don't name a codec. The tables at the beginning contain the items' type.
        let is_av1 = bytes[..bytes.len().min(1 << 16)].windows(4).any(|name| name == b"av01");
        if is_av1 { "AVIF" } else { "HEIC" }
    } else if any(&[b"crx "]) {
        raw::CR3
    } else {
        "video"
    }
}

/// A Windows in-memory bitmap: a header of a known length, one plane, and a number of bits per pixel.
fn is_dib(bytes: &[u8]) -> bool {
    let Some(&[length, 0, 0, 0]) = bytes.first_chunk::<4>() else { return false };
    let fields = match length {
        12 => bytes.get(8..12),
        40 | 52 | 56 | 108 | 124 => bytes.get(12..16),
        _ => None,
    };
    fields.is_some_and(|fields| matches!(fields, [1, 0, 1 | 4 | 8 | 16 | 24 | 32, 0]))
}

/// Whether it is a TGA: the file ends with TGA's signature, or, in files without a signature, the header's fields are
/// consistent.
fn is_tga(bytes: &[u8]) -> bool {
    let Some(header) = bytes.first_chunk::<18>() else { return false };
    let has_map = match header[1..3] {
        [0, 2 | 3 | 10 | 11] => header[3..8] == [0; 5],
        [1, 1 | 9] => matches!(header[7], 15 | 16 | 24 | 32) && (header[5], header[6]) != (0, 0),
        _ => false,
    };
    let has_size = (header[12], header[13]) != (0, 0) && (header[14], header[15]) != (0, 0);
    let has_pixels = matches!(header[16], 8 | 15 | 16 | 24 | 32) && header[17] & 0xC0 == 0;
    bytes.ends_with(b"TRUEVISION-XFILE.\0") || (has_map && has_size && has_pixels)
}

/// Whether it is an SVG: XML with an `<svg` tag in its first 64 kB, after a possible comment or declaration.
fn is_svg(bytes: &[u8]) -> bool {
    let text = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes).trim_ascii_start();
    text.starts_with(b"<") && text[..text.len().min(1 << 16)].windows(4).any(|tag| tag.eq_ignore_ascii_case(b"<svg"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Limits, bmp, png};

    #[test]
    fn refuses_by_name() {
        for (bytes, word) in [
            #[cfg(not(feature = "heic"))]
            (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic".as_slice(), "HEIC"),
            #[cfg(not(feature = "avif"))]
            (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf".as_slice(), "AVIF"),
            #[cfg(not(feature = "avif"))]
            (b"\0\0\0\x1cftypavif\0\0\0\0", "AVIF"),
            (b"\0\0\0\x20ftypisom".as_slice(), "video"),
            (b"\0\0\0\x20ftyp", "video"),
            #[cfg(not(feature = "jxl"))]
            (b"\xFF\x0A\xFA", "JPEG XL"),
            (b"%PDF-1.7", "PDF"),
            (b"<?xml version='1.0'?><svg/>", "SVG"),
            (b"8BPS\0\x01", "PSD"),
            (b"#?RADIANCE\n", "Radiance"),
            (b"\x76\x2F\x31\x01\x02", "OpenEXR"),
            (b"qoif\0\0", "QOI"),
            (b"II\x1a\0\0\0HEAPCCDR\x02\0\x01\0", "CRW"),
            (b"\0MRM\0\x01\x4e\x20", "MRW"),
            (b"FOVb\x03\0\x02\0", "X3F"),
            (b"P6\n3 3\n255\n", "PNM"),
            (b"\0\0\x02TRUEVISION-XFILE.\0", "TGA"),
            (b"\x28\0\0\0\x10\0\0\0\x10\0\0\0\x01\0\x18\0", "DIB"),
        ] {
            let error = sniff(bytes).unwrap_err();
            assert_eq!(error.kind, Kind::Unsupported, "{error}");
            assert!(error.message.contains(word), "{error}");
            assert!(error.hint.as_deref().unwrap_or_default().contains("Convert"), "{error}");
        }
        for bytes in [b"hello".as_slice(), b"BMW is a car", b"\0", b"<html></html>"] {
            let error = sniff(bytes).unwrap_err();
            assert_eq!((error.kind, error.message.as_str()), (Kind::InvalidInput, "not an image"));
        }
    }

    #[test]
    fn short_files_have_no_blocks() {
        for length in 0..30 {
            let bytes = vec![0xFF; length];
            assert!(png::header(&bytes, &Limits::default()).is_err() && bmp::ico_png(&bytes).is_none());
            assert!(!bmp::is_empty(&bytes));
        }
    }
}

//! Decodes JPEG files to RGB by three decoders in turn: median milliseconds, and the largest difference of a value to
//! libjpeg-turbo's, which is Pillow's decoder.
//!
//!     cargo run --release -- ROUNDS FILE …

use std::time::Instant;

type Decode = fn(&[u8]) -> Vec<u8>;

fn libjpeg_turbo(bytes: &[u8]) -> Vec<u8> {
    turbojpeg::decompress(bytes, turbojpeg::PixelFormat::RGB).expect("a JPEG").pixels
}

fn scaled(bytes: &[u8]) -> Vec<u8> {
    let mut decoder = turbojpeg::Decompressor::new().expect("a decoder");
    decoder.set_scaling_factor(turbojpeg::ScalingFactor::ONE_QUARTER).expect("a factor of the library's");
    let header = decoder.read_header(bytes).expect("a JPEG").scaled(turbojpeg::ScalingFactor::ONE_QUARTER);
    let mut pixels = vec![0; 3 * header.width * header.height];
    let image = turbojpeg::Image {
        pixels: pixels.as_mut_slice(),
        width: header.width,
        pitch: 3 * header.width,
        height: header.height,
        format: turbojpeg::PixelFormat::RGB,
    };
    decoder.decompress(bytes, image).expect("a JPEG");
    pixels
}

fn zune(bytes: &[u8]) -> Vec<u8> {
    let options = zune_jpeg::zune_core::options::DecoderOptions::default()
        .jpeg_set_out_colorspace(zune_jpeg::zune_core::colorspace::ColorSpace::RGB);
    let source = zune_jpeg::zune_core::bytestream::ZCursor::new(bytes);
    zune_jpeg::JpegDecoder::new_with_options(source, options).decode().expect("a JPEG")
}

fn jpeg_decoder(bytes: &[u8]) -> Vec<u8> {
    let mut decoder = jpeg_decoder::Decoder::new(bytes);
    let pixels = decoder.decode().expect("a JPEG");
    match decoder.info().expect("decoded above").pixel_format {
        jpeg_decoder::PixelFormat::L8 => pixels.iter().flat_map(|grey| [*grey; 3]).collect(),
        _ => pixels,
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let rounds: usize = arguments.next().and_then(|n| n.parse().ok()).expect("ROUNDS FILE …");
    let files: Vec<Vec<u8>> = arguments.map(|file| std::fs::read(file).expect("a file")).collect();
    let decoders: [(&str, Decode); 4] = [
        ("libjpeg-turbo", libjpeg_turbo),
        ("zune-jpeg", zune),
        ("jpeg-decoder", jpeg_decoder),
        ("libjpeg-turbo at a quarter", scaled),
    ];
    let mut times = vec![Vec::new(); decoders.len()];
    let mut ratios = vec![Vec::new(); decoders.len()];
    let mut most = vec![0; decoders.len()];
    for round in 0..=rounds {
        for file in &files {
            let mut exact: Vec<u8> = Vec::new();
            let mut first = 0.0;
            for (n, (_, decode)) in decoders.iter().enumerate() {
                let start = Instant::now();
                let pixels = decode(file);
                let ms = start.elapsed().as_secs_f64() * 1e3;
                if n == 0 {
                    (exact, first) = (pixels, ms);
                } else if pixels.len() == exact.len() {
                    let difference = pixels.iter().zip(&exact).map(|(a, b)| a.abs_diff(*b)).max();
                    most[n] = most[n].max(difference.unwrap_or(0));
                }
                if round > 0 {
                    times[n].push(ms);
                    ratios[n].push(ms / first);
                }
            }
        }
    }
    let median = |values: &mut Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    println!(
        "| {} files, {rounds} rounds | ms | times libjpeg-turbo | largest difference of 255 |\n|---|---|---|---|",
        files.len()
    );
    for (n, (name, _)) in decoders.iter().enumerate() {
        let difference = if *name == decoders[3].0 { "another size".to_owned() } else { most[n].to_string() };
        println!("| {name} | {:.2} | {:.2} | {difference} |", median(&mut times[n]), median(&mut ratios[n]));
    }
}

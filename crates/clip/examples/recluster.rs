//! Clusters the rows of a .npy file of f32, shape (n, d), and writes a .npy of u32 labels:
//!
//!     recluster INPUT.npy THRESHOLD average|single LABELS.npy [THREADS]
//!
//! Prints as JSON: the seconds of the clustering, the peak resident memory in MiB, the number of clusters, and the
//! longest time between two calls of `on_progress`.

use std::error::Error;
use std::time::Instant;

use clip::clustering::agglomerative::{Linkage, agglomerate};
use ndarray::Array2;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, input, threshold, linkage, output, threads @ ..] = arguments.as_slice() else {
        return Err("usage: recluster INPUT.npy THRESHOLD average|single LABELS.npy [THREADS]".into());
    };
    let threads = threads.first().map_or(Ok(1), |threads| threads.parse())?;
    let linkage = match linkage.as_str() {
        "average" => Linkage::Average,
        "single" => Linkage::Single,
        other => return Err(format!("no linkage \"{other}\"").into()),
    };
    let rows = read(&std::fs::read(input)?)?;
    let start = Instant::now();
    let (mut last, mut longest) = (start, 0.0f64);
    let labels = agglomerate(rows.view(), threshold.parse()?, linkage, threads, &mut |_| {
        longest = longest.max(last.elapsed().as_secs_f64());
        last = Instant::now();
    })?;
    let seconds = start.elapsed().as_secs_f64();
    longest = longest.max(last.elapsed().as_secs_f64());
    let clusters = labels.iter().max().map_or(0, |last| last + 1);
    std::fs::write(output, write(&labels))?;
    println!(
        "{{\"seconds\": {seconds:.3}, \"peak_mib\": {:.0}, \"clusters\": {clusters}, \"longest_pulse\": {longest:.3}}}",
        peak_mib()?
    );
    Ok(())
}

/// Reads the matrix in a file that numpy.save has written from C-contiguous float32 (NEP 1, version 1.0).
fn read(bytes: &[u8]) -> Result<Array2<f32>, Box<dyn Error>> {
    let length = bytes.get(8..10).ok_or("too short for a .npy file")?;
    let start = 10 + usize::from(u16::from_le_bytes([length[0], length[1]]));
    let header = std::str::from_utf8(bytes.get(10..start).ok_or("the header is cut off")?)?;
    if !bytes.starts_with(b"\x93NUMPY\x01\x00") || !header.contains("'<f4'") || !header.contains("False") {
        return Err("not a C-contiguous .npy of float32".into());
    }
    let shape = header.split(['(', ')']).nth(1).ok_or("no shape")?;
    let sizes: Vec<usize> = shape.split(',').map(|size| size.trim().parse()).collect::<Result<_, _>>()?;
    let [n, width] = sizes.as_slice() else { return Err("not a matrix".into()) };
    let values: Vec<f32> = bytes[start..].as_chunks().0.iter().map(|value| f32::from_le_bytes(*value)).collect();
    Ok(Array2::from_shape_vec((*n, *width), values)?)
}

fn write(labels: &[u32]) -> Vec<u8> {
    let header = format!("{{'descr': '<u4', 'fortran_order': False, 'shape': ({},), }}", labels.len());
    let padded = (10 + header.len() + 1).next_multiple_of(64) - 10;
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((padded as u16).to_le_bytes());
    bytes.extend(format!("{header:<width$}\n", width = padded - 1).bytes());
    bytes.extend(labels.iter().flat_map(|label| label.to_le_bytes()));
    bytes
}

/// The peak resident memory of this process (`man 5 proc`), including the input.
fn peak_mib() -> Result<f64, Box<dyn Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).ok_or("no VmHWM")?;
    Ok(line.split_whitespace().nth(1).ok_or("no figure")?.parse::<f64>()? / 1024.0)
}

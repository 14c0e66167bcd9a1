//! Unit vectors and cosines.

use std::hash::{DefaultHasher, Hasher};

use crate::error::{Error, Kind, Result};

/// Tolerance for cosines of equal vectors: components are float4, and their last bit changes a cosine by about 1e-15.
/// With this tolerance, a threshold of 1 means equal vectors.
pub const ROUNDING: f64 = 1e-12;

/// Scales a vector to length 1, in place.
///
/// # Errors
/// [`Kind::InvalidInput`] for a vector without a direction: all zero, or with a component that is not finite.
pub fn l2_normalize(vector: &mut [f32]) -> Result<()> {
    let norm = vector.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
    if !norm.is_finite() {
        return Err(Error::new(Kind::InvalidInput, "vector has a component that is not a finite number"));
    }
    if norm == 0.0 {
        return Err(Error::new(Kind::InvalidInput, "zero vector has no direction")
            .detail(format!("All of its {} components are 0.", vector.len())));
    }
    for value in vector {
        *value = (f64::from(*value) / norm) as f32;
    }
    Ok(())
}

/// The cosine of the angle between two vectors, in [-1, 1], in double precision; 0 if either is zero.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let (mut dot, mut aa, mut bb) = (0.0, 0.0, 0.0);
    for (x, y) in a.iter().zip(b) {
        let (x, y) = (f64::from(*x), f64::from(*y));
        dot += x * y;
        aa += x * x;
        bb += y * y;
    }
    let norm = (aa * bb).sqrt();
    if norm > 0.0 { (dot / norm).clamp(-1.0, 1.0) } else { 0.0 }
}

/// A hash that is equal for equal vectors: -0 and 0 have the same hash.
pub fn hash(vector: &[f32]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for value in vector {
        hasher.write_u32((value + 0.0).to_bits());
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_vectors_have_cosine_one() {
        let mut v: Vec<f32> = (1..=512).map(|i| (i as f32).sin()).collect();
        l2_normalize(&mut v).unwrap();
        assert!(cosine(&v, &v) > 1.0 - 1e-15);
        assert!(cosine(&[1.0, 0.0], &[0.0, 1.0]).abs() < 1e-15);
        assert_eq!(cosine(&[0.0, 0.0], &[0.0, 1.0]), 0.0);
    }

    #[test]
    fn vectors_without_direction_are_refused() {
        assert_eq!(l2_normalize(&mut [0.0; 4]).unwrap_err().message, "zero vector has no direction");
        assert_eq!(l2_normalize(&mut [1.0, f32::NAN]).unwrap_err().kind, Kind::InvalidInput);
        // A vector with tiny components still has a direction.
        let mut tiny = [1e-30f32, 0.0];
        l2_normalize(&mut tiny).unwrap();
        assert_eq!(tiny, [1.0, 0.0]);
    }
}

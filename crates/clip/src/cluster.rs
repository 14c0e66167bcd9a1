//! The arithmetic of grouping: unit vectors, cosines, the running centroid.

use crate::error::{Error, Kind, Result};

/// Scales a vector to length 1, in place.
///
/// # Errors
/// [`Kind::InvalidInput`] for a vector that has no direction: all zero, or with a component that is not finite.
pub fn normalise(vector: &mut [f32]) -> Result<()> {
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

/// The mean of unit vectors, kept as a direction and a length.
///
/// The direction alone forgets how far its members spread, and then a new member would pull too little or
/// too much; the length of the mean (the *mean resultant length* of directional statistics, 1 where all
/// members are equal) makes the running mean exact.
#[derive(Clone, Debug, PartialEq)]
pub struct Centroid {
    /// Unit vector.
    pub direction: Vec<f32>,
    /// Length of the mean, in (0, 1].
    pub resultant: f64,
    /// Members.
    pub size: u64,
}

impl Centroid {
    /// A group of one. `member` is a unit vector.
    pub fn found(member: Vec<f32>) -> Self {
        Self { direction: member, resultant: 1.0, size: 1 }
    }

    /// Cosine of the angle to a vector, in [-1, 1]. Equal vectors give 1 to the last bit of a double.
    pub fn cosine(&self, vector: &[f32]) -> f64 {
        assert_eq!(self.direction.len(), vector.len(), "dimensions are checked by the caller");
        let (mut dot, mut a, mut b) = (0.0, 0.0, 0.0);
        for (x, y) in self.direction.iter().zip(vector) {
            let (x, y) = (f64::from(*x), f64::from(*y));
            dot += x * y;
            a += x * x;
            b += y * y;
        }
        (dot / (a * b).sqrt()).clamp(-1.0, 1.0)
    }

    /// The centroid with one more member, a unit vector of the same length.
    ///
    /// # Errors
    /// [`Kind::InvalidInput`] where the members cancel out exactly, so that there is no mean direction.
    pub fn join(&self, member: &[f32]) -> Result<Self> {
        assert_eq!(self.direction.len(), member.len(), "dimensions are checked by the caller");
        let (n, size) = (self.size as f64, self.size + 1);
        let mean: Vec<f64> = self
            .direction
            .iter()
            .zip(member)
            .map(|(c, m)| (n * self.resultant * f64::from(*c) + f64::from(*m)) / size as f64)
            .collect();
        let resultant = mean.iter().map(|v| v * v).sum::<f64>().sqrt();
        if resultant < 1e-6 {
            return Err(Error::new(Kind::InvalidInput, "the members of the cluster cancel out")
                .detail("Their mean has no direction."));
        }
        let direction = mean.iter().map(|v| (v / resultant) as f32).collect();
        Ok(Self { direction, resultant: resultant.min(1.0), size })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn running_mean_equals_the_mean_of_all() {
        // A fixed linear congruence stands for data: 200 vectors around a direction.
        let mut state = 1u32;
        let mut random = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        let members: Vec<Vec<f32>> = (0..200)
            .map(|_| {
                let mut v: Vec<f32> = (0..16).map(|i| if i == 3 { 1.0 } else { random() }).collect();
                normalise(&mut v).unwrap();
                v
            })
            .collect();
        let mut running = Centroid::found(members[0].clone());
        for member in &members[1..] {
            running = running.join(member).unwrap();
        }
        let mut mean = vec![0.0f32; 16];
        for member in &members {
            for (m, v) in mean.iter_mut().zip(member) {
                *m += v / 200.0;
            }
        }
        let length = mean.iter().map(|v| v * v).sum::<f32>().sqrt();
        normalise(&mut mean).unwrap();
        assert_eq!(running.size, 200);
        assert!((running.resultant - f64::from(length)).abs() < 1e-5);
        for (a, b) in running.direction.iter().zip(&mean) {
            assert!((a - b).abs() < 1e-5, "{a} {b}");
        }
    }

    #[test]
    fn equal_vectors_have_cosine_one() {
        let mut v: Vec<f32> = (1..=512).map(|i| (i as f32).sin()).collect();
        normalise(&mut v).unwrap();
        let mut group = Centroid::found(v.clone());
        for _ in 0..100 {
            group = group.join(&v).unwrap();
            assert!(group.cosine(&v) > 1.0 - 1e-12);
        }
        assert!(Centroid::found(vec![1.0, 0.0]).cosine(&[0.0, 1.0]).abs() < 1e-15);
    }

    #[test]
    fn vectors_without_direction_are_refused() {
        assert_eq!(normalise(&mut [0.0; 4]).unwrap_err().message, "zero vector has no direction");
        assert_eq!(normalise(&mut [1.0, f32::NAN]).unwrap_err().kind, Kind::InvalidInput);
        assert!(Centroid::found(vec![1.0, 0.0]).join(&[-1.0, 0.0]).is_err());
        // Tiny components are still a direction.
        let mut tiny = [1e-30f32, 0.0];
        normalise(&mut tiny).unwrap();
        assert_eq!(tiny, [1.0, 0.0]);
    }
}

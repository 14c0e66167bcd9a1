//! The running centroid of a cluster.

/// The sum of a cluster's members (unit vectors), and their number.
///
/// The direction of the sum is the cluster's centroid (the normalized mean). Its length divided by the number of
/// members is the *mean resultant length* of directional statistics: it is 1 if all members are equal, decreases the
/// more they spread, and equals the mean cosine of the members to the centroid. Sums can be added and subtracted in any
/// order, so each member is written as a separate row, and readers add up the rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Sum {
    vector: Vec<f64>,
    pub size: i64,
}

impl Sum {
    /// The sum of no members, for vectors with this many dimensions.
    pub fn new(dimensions: usize) -> Self {
        Self { vector: vec![0.0; dimensions], size: 0 }
    }

    /// The number of dimensions of the vectors.
    pub fn dimensions(&self) -> usize {
        self.vector.len()
    }

    /// Adds a split sum ([`Sum::split`]): `size` members whose sum is `high + low`. To remove a member, pass size -1
    /// and the negated vector.
    pub fn add(&mut self, high: &[f32], low: Option<&[f32]>, size: i64) {
        for part in [Some(high), low].into_iter().flatten() {
            assert_eq!(part.len(), self.vector.len(), "dimensions are checked by the caller");
            self.vector.iter_mut().zip(part).for_each(|(sum, value)| *sum += f64::from(*value));
        }
        self.size += size;
    }

    /// The sum in two single-precision vectors, `high` and the remainder `low`, which together have 48 bits. With 24
    /// bits, the error of the sum would be a hundredth after a million members have joined and all but one have left.
    pub fn split(&self) -> (Vec<f32>, Vec<f32>) {
        self.vector.iter().map(|&value| (value as f32, (value - f64::from(value as f32)) as f32)).unzip()
    }

    /// The length of the sum.
    pub fn norm(&self) -> f64 {
        self.vector.iter().map(|v| v * v).sum::<f64>().sqrt()
    }

    /// The centroid, of length 1. `None` if there are no members, or if they cancel out.
    pub fn direction(&self) -> Option<Vec<f32>> {
        let norm = self.norm();
        let some = self.size > 0 && norm > 1e-6 * self.size as f64;
        some.then(|| self.vector.iter().map(|v| (v / norm) as f32).collect())
    }

    /// The cosine of the centroid to a vector, in [-1, 1]; 1 within 1e-15 for equal vectors, and 0 if either is zero.
    pub fn cosine(&self, vector: &[f32]) -> f64 {
        let dot: f64 = self.vector.iter().zip(vector).map(|(x, y)| x * f64::from(*y)).sum();
        let norm = vector.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt() * self.norm();
        if norm > 0.0 { (dot / norm).clamp(-1.0, 1.0) } else { 0.0 }
    }

    /// Whether a unit vector can be one of the members: the sum of the others can't be longer than their number.
    /// Rounding to single precision adds less than 1e-4 per member.
    pub fn may_hold(&self, member: &[f32]) -> bool {
        let rest = self.vector.iter().zip(member).map(|(s, m)| (s - f64::from(*m)).powi(2)).sum::<f64>().sqrt();
        self.size >= 1 && rest <= (self.size - 1) as f64 + 1e-4 * self.size as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vector::l2_normalize;

    /// Unit vectors around a direction, from a fixed linear congruential generator.
    fn around(count: usize) -> Vec<Vec<f32>> {
        let mut state = 1u32;
        let mut random = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        (0..count)
            .map(|_| {
                let mut v: Vec<f32> = (0..16).map(|i| if i == 3 { 1.0 } else { random() }).collect();
                l2_normalize(&mut v).unwrap();
                v
            })
            .collect()
    }

    #[test]
    fn sums_give_the_mean_of_all_in_any_grouping() {
        let members = around(200);
        let mut mean = vec![0.0f32; 16];
        for member in &members {
            mean.iter_mut().zip(member).for_each(|(m, v)| *m += v / 200.0);
        }
        let length = mean.iter().map(|v| v * v).sum::<f32>().sqrt();
        l2_normalize(&mut mean).unwrap();
        for group in [1, 7, 200] {
            let mut all = Sum::new(16);
            for chunk in members.chunks(group) {
                let mut part = Sum::new(16);
                chunk.iter().for_each(|m| part.add(m, None, 1));
                let (high, low) = part.split();
                all.add(&high, Some(&low), part.size);
            }
            assert_eq!(all.size, 200);
            assert!((all.norm() / 200.0 - f64::from(length)).abs() < 1e-6);
            for (a, b) in all.direction().unwrap().iter().zip(&mean) {
                assert!((a - b).abs() < 1e-6, "{a} {b}");
            }
            let cosines = members.iter().map(|m| all.cosine(m)).sum::<f64>() / 200.0;
            assert!((all.norm() / 200.0 - cosines).abs() < 1e-6, "the resultant is the mean cosine");
        }
    }

    #[test]
    fn members_that_leave_take_all_of_themselves_along() {
        let members = around(3000);
        let mut sum = Sum::new(16);
        let store = |sum: &mut Sum| {
            let (high, low) = sum.split();
            let size = sum.size;
            *sum = Sum::new(16);
            sum.add(&high, Some(&low), size);
        };
        for member in &members {
            sum.add(member, None, 1);
            store(&mut sum);
        }
        for member in &members[1..] {
            assert!(sum.may_hold(member));
            let negated: Vec<f32> = member.iter().map(|v| -v).collect();
            sum.add(&negated, None, -1);
            store(&mut sum);
        }
        assert_eq!(sum.size, 1);
        assert!(sum.may_hold(&members[0]) && !sum.may_hold(&members[1]));
        for (a, b) in sum.direction().unwrap().iter().zip(&members[0]) {
            assert!((a - b).abs() < 1e-6, "{a} {b}");
        }
        let negated: Vec<f32> = members[0].iter().map(|v| -v).collect();
        sum.add(&negated, None, -1);
        assert_eq!(sum.direction(), None);
    }

    #[test]
    fn equal_members_have_cosine_one_to_their_centroid() {
        let mut v: Vec<f32> = (1..=512).map(|i| (i as f32).sin()).collect();
        l2_normalize(&mut v).unwrap();
        let mut group = Sum::new(512);
        for _ in 0..100 {
            group.add(&v, None, 1);
            assert!(group.cosine(&v) > 1.0 - 1e-12);
        }
    }

    #[test]
    fn members_that_cancel_out_have_no_direction() {
        let mut opposite = Sum::new(2);
        opposite.add(&[1.0, 0.0], None, 1);
        opposite.add(&[-1.0, 0.0], None, 1);
        assert_eq!(opposite.direction(), None);
    }
}

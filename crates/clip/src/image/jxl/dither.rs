//! Converts float samples to bytes as libjxl 0.12 does: it adds blue noise of less than half a step before rounding, so
//! that smooth areas don't show bands. Without the noise, a picture's vector would differ from the vector of the pixels
//! that other programs see: the cosine was 0.978 for a photo of a night sky, where the steps are large.

/// Ranks from 0 to 255, each four times, in 32 × 32 places: one of Christoph Peters' blue noise textures, which are in
/// the public domain (CC0).
const NOISE: &[u8; 1024] = include_bytes!("blue_noise.bin");
const SIDE: usize = 32;
/// The largest amplitude of the noise, in steps of a byte.
const REACH: f32 = 0.492_19;

/// Converts a sample from 0 to 1 to a byte. Each channel reads the noise from a different offset. A multiple of 1/255
/// is not changed.
pub(super) fn byte(sample: f32, x: usize, y: usize, channel: usize) -> u8 {
    let place = (y + 13 * channel) % SIDE * SIDE + (x + 23 * channel) % SIDE;
    let noise = (f32::from(NOISE[place]) / 127.5 - 1.0) * REACH;
    // A NaN becomes 0.
    (sample * 255.0 + noise).clamp(0.0, 255.0).round_ties_even() as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_steps_stay_and_others_keep_their_mean() {
        let places = || (0..32).flat_map(|y| (0..32).map(move |x| (x, y)));
        for value in 0..=255u8 {
            assert!(places().all(|(x, y)| byte(f32::from(value) / 255.0, x, y, 0) == value));
        }
        for channel in 0..3 {
            let sum: u64 = places().map(|(x, y)| u64::from(byte(100.25 / 255.0, x, y, channel))).sum();
            let mean = sum as f64 / 1024.0;
            assert!((mean - 100.25).abs() < 0.02, "{mean}");
        }
        assert_ne!(places().map(|(x, y)| byte(0.3, x, y, 0)).collect::<Vec<_>>(), vec![byte(0.3, 0, 0, 0); 1024]);
        assert_eq!((byte(f32::NAN, 0, 0, 0), byte(-1.0, 0, 0, 0), byte(2.0, 0, 0, 0)), (0, 0, 255));
    }

    /// Each rank occurs equally often, so the mean of the noise is 0.
    #[test]
    fn the_noise_is_even() {
        let mut counts = [0; 256];
        NOISE.iter().for_each(|rank| counts[usize::from(*rank)] += 1);
        assert_eq!(counts, [4; 256]);
    }
}

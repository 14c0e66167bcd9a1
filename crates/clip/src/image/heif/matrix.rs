//! The matrix coefficients of H.273, by which red, green and blue are combined to luma and chroma.

/// The weights of red and blue in luma (Kr, Kb), by code points. None for a matrix that is unknown or not linear.
pub(super) fn shares(matrix: u16, primaries: u16) -> Option<(f32, f32)> {
    match (matrix, primaries) {
        (1, _) | (12, 1 | 2) => Some((0.2126, 0.0722)),
        (4, _) => Some((0.30, 0.11)),
        (7, _) | (12, 7) => Some((0.212, 0.087)),
        (9, _) | (12, 9) => Some((0.2627, 0.0593)),
        (0 | 2 | 5 | 6 | 8 | 12, _) => Some((0.299, 0.114)),
        _ => None,
    }
}

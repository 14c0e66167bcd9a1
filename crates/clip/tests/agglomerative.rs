//! Compares clusters with scikit-learn's from `tests/fixtures/agglomerative.py`, and checks properties of every
//! partition.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use clip::Kind;
use clip::clustering::agglomerative::{Linkage, Progress, agglomerate};
use ndarray::{Array2, ArrayView2, Axis, array};
use serde_json::Value;

/// The linear congruential generator of the fixtures' script.
struct Random(u64);

impl Random {
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as f64 / f64::from(1u32 << 31)
    }

    fn noise(&mut self, count: usize) -> Vec<f64> {
        (0..count).map(|_| self.uniform() + self.uniform() + self.uniform() + self.uniform() - 2.0).collect()
    }
}

fn unit(row: &[f64]) -> Vec<f32> {
    let norm = row.iter().map(|v| v * v).sum::<f64>().sqrt();
    row.iter().map(|v| (v / norm) as f32).collect()
}

fn matrix(rows: &[Vec<f32>]) -> Array2<f32> {
    Array2::from_shape_vec((rows.len(), rows[0].len()), rows.concat()).unwrap()
}

/// The rows of a set of the fixtures, exactly: the script does the same operations in the same order.
fn rows(set: &Value) -> Array2<f32> {
    let number = |name: &str| fraction(&set[name]);
    let flag = |name: &str| set[name].as_bool().unwrap();
    let mut random = Random(set["seed"].as_u64().unwrap());
    let (n, d, count) = (number("n") as usize, number("d") as usize, number("centres"));
    let common = random.noise(d);
    let centres: Vec<Vec<f64>> = (0..count as usize).map(|_| random.noise(d)).collect();
    let mut last = centres[0].clone();
    let mut rows: Vec<Vec<f32>> = Vec::new();
    for i in 0..n {
        let (again, which, mut of) = (random.uniform(), random.uniform(), random.uniform());
        if i > 0 && again < number("repeat") {
            rows.push(rows[(which * i as f64) as usize].clone());
            continue;
        }
        if flag("skew") {
            of = of * of * of;
        }
        let base = if flag("walk") { last } else { centres[(of * count) as usize].clone() };
        let noise = random.noise(d);
        last = (0..d).map(|k| number("shared") * common[k] + base[k] + number("spread") * noise[k]).collect();
        let mut row = last.clone();
        if flag("grid") {
            row.iter_mut().for_each(|v| *v = (1.5 * *v).trunc().clamp(-1.0, 1.0));
        }
        if row.iter().all(|v| *v == 0.0) {
            row = vec![1.0; d];
        }
        rows.push(unit(&row));
    }
    matrix(&rows)
}

/// Fractions are stored as strings, because serde_json may be off by a bit.
fn fraction(value: &Value) -> f64 {
    value.as_str().map_or_else(|| value.as_f64().unwrap(), |text| text.parse().unwrap())
}

fn sets() -> Vec<Value> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/agglomerative/partitions.json");
    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
}

fn cluster(rows: ArrayView2<'_, f32>, threshold: f64, linkage: Linkage) -> Vec<u32> {
    let labels = agglomerate(rows, threshold, linkage, 1, &mut |_| ()).unwrap();
    let by_three = agglomerate(rows, threshold, linkage, 3, &mut |_| ()).unwrap();
    assert!(labels == by_three, "three threads group otherwise than one");
    labels
}

/// Renumbers labels in the order of first appearance.
fn renumbered(labels: impl Iterator<Item = u32>) -> Vec<u32> {
    let mut seen = Vec::new();
    labels
        .map(|label| {
            let known = seen.iter().position(|s| *s == label).unwrap_or_else(|| {
                seen.push(label);
                seen.len() - 1
            });
            known as u32
        })
        .collect()
}

fn each_expected(mut check: impl FnMut(&str, &Array2<f32>, f64, Linkage, Vec<u32>)) {
    for set in sets() {
        let name = set["name"].as_str().unwrap();
        let rows = rows(&set);
        for expected in set["expected"].as_array().unwrap() {
            let linkage = if expected["linkage"] == "single" { Linkage::Single } else { Linkage::Average };
            let labels = expected["labels"].as_array().unwrap().iter().map(|l| l.as_u64().unwrap() as u32).collect();
            check(name, &rows, fraction(&expected["threshold"]), linkage, labels);
        }
    }
}

/// A permutation of 0..n.
fn shuffled(n: usize, seed: u64) -> Vec<usize> {
    let mut random = Random(seed);
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        order.swap(i, (random.uniform() * (i + 1) as f64) as usize);
    }
    order
}

/// Rows around one direction, with cosines of about 1 / (1 + spread²).
fn clique(n: usize, d: usize, spread: f64, seed: u64) -> Array2<f32> {
    let mut random = Random(seed);
    let centre = unit(&random.noise(d));
    // The sum of four uniforms has a variance of 1/3.
    let scale = spread * (3.0 / d as f64).sqrt();
    let rows: Vec<Vec<f32>> = (0..n)
        .map(|_| {
            let noise = random.noise(d);
            unit(&centre.iter().zip(noise).map(|(c, v)| f64::from(*c) + scale * v).collect::<Vec<_>>())
        })
        .collect();
    matrix(&rows)
}

#[test]
fn recipes_make_the_same_rows() {
    for set in sets() {
        let sum = rows(&set).iter().fold(0.0, |sum, v| sum + f64::from(*v));
        assert_eq!(sum, fraction(&set["sum"]), "{}", set["name"]);
    }
}

#[test]
fn partitions_are_those_of_scikit_learn() {
    let (mut checked, mut grouped) = (0, 0);
    each_expected(|name, rows, threshold, linkage, expected| {
        assert_eq!(cluster(rows.view(), threshold, linkage), expected, "{name}, {threshold}, {linkage:?}");
        checked += 1;
        grouped += usize::from(expected.iter().max().unwrap() + 1 < expected.len() as u32);
    });
    assert!(checked > 200 && grouped > 150, "{checked} {grouped}");
}

#[test]
fn order_of_rows_does_not_matter() {
    each_expected(|name, rows, threshold, linkage, expected| {
        let order = shuffled(rows.nrows(), 7);
        let found = cluster(rows.select(Axis(0), &order).view(), threshold, linkage);
        let expected = renumbered(order.iter().map(|i| expected[*i]));
        assert_eq!(found, expected, "{name}, {threshold}, {linkage:?}");
    });
}

#[test]
fn same_rows_give_same_labels() {
    for set in sets().iter().filter(|set| set["grid"] == true) {
        let rows = rows(set);
        for threshold in [0.2, 0.5, 0.7, 0.9] {
            let first = cluster(rows.view(), threshold, Linkage::Average);
            assert_eq!(first, cluster(rows.view(), threshold, Linkage::Average));
            // The layout in memory must not matter.
            let transposed = rows.t().as_standard_layout().into_owned();
            assert_eq!(first, cluster(transposed.t(), threshold, Linkage::Average));
        }
    }
}

/// With ties, several partitions are right. In all of them, no two groups reach the threshold.
#[test]
fn ties_end_where_no_groups_reach_the_threshold() {
    for set in sets().iter().filter(|set| set["grid"] == true) {
        let rows = rows(set);
        let d = rows.ncols();
        for threshold in [0.25, 0.4, 0.6, 0.8] {
            let labels = cluster(rows.view(), threshold, Linkage::Average);
            let count = *labels.iter().max().unwrap() as usize + 1;
            let mut means = Array2::<f64>::zeros((count, d));
            let mut sizes = vec![0.0; count];
            for (row, label) in rows.outer_iter().zip(&labels) {
                let label = *label as usize;
                sizes[label] += 1.0;
                means.row_mut(label).zip_mut_with(&row, |m, v| *m += f64::from(*v));
            }
            for a in 0..count {
                for b in 0..a {
                    let cosine = means.row(a).dot(&means.row(b)) / (sizes[a] * sizes[b]);
                    assert!(cosine < threshold + 1e-9, "{}: {a} and {b} at {cosine}", set["name"]);
                }
            }
            assert!(count > 1 && count < rows.nrows());
        }
    }
}

/// All cosines between different rows are 0, so all rows merge at one threshold or none do. There are more rows than a
/// list has entries.
#[test]
fn orthogonal_rows_merge_all_or_none() {
    let rows = Array2::<f32>::eye(300);
    for linkage in [Linkage::Average, Linkage::Single] {
        assert_eq!(cluster(rows.view(), 0.01, linkage), (0..300).collect::<Vec<_>>());
        assert_eq!(cluster(rows.view(), -0.01, linkage), vec![0; 300]);
        assert_eq!(cluster(rows.view(), 0.0, linkage), vec![0; 300]);
    }
}

#[test]
fn equal_rows_share_a_label() {
    let base = clique(40, 32, 2.0, 3);
    let order: Vec<usize> = shuffled(400, 5).iter().map(|i| i % 40).collect();
    let rows = base.select(Axis(0), &order);
    for linkage in [Linkage::Average, Linkage::Single] {
        let all_apart = renumbered(order.iter().map(|i| *i as u32));
        assert_eq!(cluster(rows.view(), 1.0, linkage), all_apart);
        for threshold in [0.999_999, 0.5, 0.1] {
            let labels = cluster(rows.view(), threshold, linkage);
            for (a, x) in order.iter().zip(&labels) {
                for (b, y) in order.iter().zip(&labels) {
                    assert!(a != b || x == y);
                }
            }
        }
    }
    // 0 and -0 are equal.
    assert_eq!(cluster(array![[1.0f32, 0.0], [1.0, -0.0]].view(), 1.0, Linkage::Average), [0, 0]);
}

#[test]
fn few_rows() {
    for linkage in [Linkage::Average, Linkage::Single] {
        assert!(cluster(Array2::zeros((0, 512)).view(), 0.8, linkage).is_empty());
        assert!(cluster(Array2::zeros((0, 0)).view(), 0.8, linkage).is_empty());
        assert_eq!(cluster(array![[0.6f32, 0.8]].view(), 0.8, linkage), [0]);
        assert_eq!(cluster(array![[0.6f32, 0.8], [0.8, 0.6]].view(), 0.95, linkage), [0, 0]);
        assert_eq!(cluster(array![[0.6f32, 0.8], [0.8, 0.6]].view(), 0.97, linkage), [0, 1]);
    }
}

/// The cosine is computed from the actual rows, not from normalised ones: f16 changes a length by up to 1e-3.
#[test]
fn lengths_near_one_do_not_matter() {
    let rows = clique(300, 24, 1.0, 9);
    let mut scaled = rows.clone();
    for (i, mut row) in scaled.outer_iter_mut().enumerate() {
        // Powers of two are exact; the factor 1 ± 2^-11 changes only the last bits.
        let factor = if i % 2 == 0 { 1.0 + 1.0 / 2048.0 } else { 1.0 - 1.0 / 2048.0 };
        row.mapv_inplace(|v| v * factor);
    }
    for threshold in [0.4, 0.5, 0.6] {
        let labels = cluster(rows.view(), threshold, Linkage::Average);
        assert_eq!(labels, cluster(scaled.view(), threshold, Linkage::Average));
        assert!(*labels.iter().max().unwrap() > 0);
    }
}

#[test]
fn bad_input_is_refused() {
    let refused = |rows: Array2<f32>, threshold: f64| {
        agglomerate(rows.view(), threshold, Linkage::Average, 1, &mut |_| ()).expect_err("an error")
    };
    let good = array![[1.0f32, 0.0], [0.0, 1.0]];
    for threshold in [-1.0, -2.0, 1.0 + 1e-9, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let error = refused(good.clone(), threshold);
        assert_eq!(error.kind, Kind::InvalidInput, "{threshold}");
        assert!(error.message.contains("threshold"), "{error}");
    }
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, 0.9, 1.1, f32::MAX] {
        let error = refused(array![[1.0, 0.0], [0.0, bad]], 0.5);
        assert_eq!((error.kind, error.element), (Kind::InvalidInput, Some(1)), "{bad}: {error}");
    }
    assert_eq!(refused(Array2::zeros((3, 0)), 0.5).element, Some(0));
}

/// Any progress report may unwind, and nothing remains of the call.
#[test]
fn a_report_may_unwind() {
    let rows = clique(6000, 64, 0.6, 11);
    let mut stages = Vec::new();
    let expected = agglomerate(rows.view(), 0.735, Linkage::Average, 1, &mut |p| stages.push(p.stage)).unwrap();
    assert!(stages.len() >= 3, "{stages:?}");
    for stop_at in [0, stages.len() / 2] {
        let mut seen = 0;
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            agglomerate(rows.view(), 0.735, Linkage::Average, 1, &mut |_| {
                seen += 1;
                if seen > stop_at {
                    std::panic::resume_unwind(Box::new("cancelled"));
                }
            })
        }));
        assert_eq!(outcome.expect_err("it unwinds").downcast_ref(), Some(&"cancelled"));
    }
    assert_eq!(cluster(rows.view(), 0.735, Linkage::Average), expected);
}

/// The computing time of this thread: elapsed time would include the time during which a busy machine keeps it waiting.
fn computed() -> Duration {
    let times = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(times.split_whitespace().next().unwrap().parse().unwrap())
}

/// 20,000 rows with every pair above the threshold, or half of the pairs: progress must be reported at least every half
/// second.
#[test]
fn reports_come_often() {
    let rows = clique(20_000, 32, 0.3, 13);
    for (linkage, threshold) in [(Linkage::Average, 0.5), (Linkage::Average, 0.917), (Linkage::Single, 0.5)] {
        let (mut last, mut before) = (Instant::now(), computed());
        let mut longest = Duration::ZERO;
        let mut gap = |at: Option<Progress>| {
            // Most reports come after less than this.
            if last.elapsed() > Duration::from_millis(20) {
                let now = computed();
                longest = longest.max(now - before);
                (last, before) = (Instant::now(), now);
            }
            if let Some(p) = at {
                assert!(p.done <= p.total && ["reading", "comparing", "merging"].contains(&p.stage), "{p:?}");
            }
        };
        let labels = agglomerate(rows.view(), threshold, linkage, 2, &mut |p| gap(Some(p))).unwrap();
        gap(None);
        assert!(longest < Duration::from_millis(500), "{linkage:?} at {threshold}: {longest:?}");
        assert_eq!(labels.iter().all(|l| *l == 0), threshold == 0.5, "{linkage:?} at {threshold}");
    }
}

/// Distant rows do not change a row's cluster. The many other rows span 20 axes, so the engine uses a sketch first.
#[test]
fn a_part_that_is_far_from_the_rest_has_its_own_clusters() {
    let part = clique(300, 256, 0.5, 17);
    let mut random = Random(19);
    let mut rows = Array2::<f32>::zeros((6300, 256));
    rows.slice_mut(ndarray::s![..300, ..]).assign(&part);
    let axes: Vec<Vec<f64>> = (0..20).map(|_| random.noise(256)).collect();
    let mut next = 300;
    while next < rows.nrows() {
        let weights = random.noise(20);
        let sum: Vec<f64> = (0..256).map(|k| axes.iter().zip(&weights).map(|(a, w)| a[k] * w).sum()).collect();
        let row = ndarray::Array1::from(unit(&sum));
        if part.dot(&row).iter().all(|cosine| *cosine < 0.6) {
            rows.row_mut(next).assign(&row);
            next += 1;
        }
    }
    for linkage in [Linkage::Average, Linkage::Single] {
        for threshold in [0.8, 0.82] {
            let alone = cluster(part.view(), threshold, linkage);
            let among = cluster(rows.view(), threshold, linkage);
            assert_eq!(alone, among[..300], "{linkage:?} at {threshold}");
            let last = *alone.iter().max().unwrap();
            assert!(among[300..].iter().all(|label| *label > last));
            assert_eq!(last > 0, linkage == Linkage::Average || threshold > 0.8, "{linkage:?} at {threshold}");
        }
    }
}

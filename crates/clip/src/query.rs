//! Queries of several terms, and diverse results.

use crate::error::{Error, Kind, Result};
use crate::vector::{cosine, l2_normalize};

/// The minimum length of a sum, relative to the sum of the weights' absolute values. A shorter sum is noise: rounding
/// the terms to single precision turns its direction by 6e-8 divided by this length, which is a cosine of 0.9999998
/// here and 0.998 at 1e-6.
const LEAST_LENGTH: f64 = 1e-4;

/// The direction of a weighted sum of vectors, as a vector of length 1. Of each vector only the direction counts.
///
/// # Errors
/// [`Kind::InvalidInput`] if there are no terms, if a vector has no direction, if a weight is not a finite number, if
/// all weights are 0, or if the terms cancel out.
///
/// # Panics
/// If the vectors have different lengths.
pub fn combine(terms: &[(f64, &[f32])]) -> Result<Vec<f32>> {
    let bad = |message: String| Error::new(Kind::InvalidInput, message);
    if let Some((weight, _)) = terms.iter().find(|(weight, _)| !weight.is_finite()) {
        return Err(bad(format!("weight {weight} is not a finite number")));
    }
    // Only the proportions of the weights count, so they are scaled to avoid overflow.
    let largest = terms.iter().map(|(weight, _)| weight.abs()).fold(0.0, f64::max);
    let Some((_, first)) = terms.first() else {
        return Err(bad("query has no terms".to_owned()));
    };
    if largest == 0.0 {
        return Err(bad("all weights of the query are 0".to_owned()));
    }
    let (mut sum, mut amount) = (vec![0.0f64; first.len()], 0.0);
    for (weight, vector) in terms {
        assert_eq!(vector.len(), sum.len(), "dimensions are checked by the caller");
        let mut unit = vector.to_vec();
        l2_normalize(&mut unit)?;
        let weight = weight / largest;
        amount += weight.abs();
        sum.iter_mut().zip(unit).for_each(|(sum, value)| *sum += weight * f64::from(value));
    }
    let length = sum.iter().map(|value| value * value).sum::<f64>().sqrt() / amount;
    if length < LEAST_LENGTH {
        return Err(bad("the terms of the query cancel out".to_owned())
            .detail(format!("Their weighted sum has {length:.1e} of the length that they have together."))
            .hint("Leave one of them out, or give it another weight."));
    }
    let mut direction: Vec<f32> = sum.into_iter().map(|value| value as f32).collect();
    l2_normalize(&mut direction)?;
    Ok(direction)
}

/// Chooses up to `k` candidates one after another by maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998):
/// each time the candidate with the greatest `lambda · cos(candidate, query) - (1 - lambda) · max cos(candidate,
/// chosen)`; the second part is 0 for the first choice. Returns the indexes of the chosen candidates and these values.
/// Among equal candidates the first one is chosen.
///
/// `check_interrupts` is called once per choice; it may unwind.
pub fn diversify(
    query: &[f32],
    candidates: &[&[f32]],
    k: usize,
    lambda: f64,
    check_interrupts: &mut dyn FnMut(),
) -> Vec<(usize, f64)> {
    let relevance: Vec<f64> = candidates.iter().map(|candidate| cosine(candidate, query)).collect();
    let mut likest: Vec<Option<f64>> = vec![None; candidates.len()];
    let mut left: Vec<usize> = (0..candidates.len()).collect();
    let mut chosen = Vec::new();
    while chosen.len() < k && !left.is_empty() {
        check_interrupts();
        let value = |&place: &usize| lambda * relevance[place] - (1.0 - lambda) * likest[place].unwrap_or(0.0);
        let values: Vec<f64> = left.iter().map(value).collect();
        let mut best = 0;
        for (index, value) in values.iter().enumerate() {
            if *value > values[best] {
                best = index;
            }
        }
        let place = left.remove(best);
        chosen.push((place, values[best]));
        for &other in &left {
            let likeness = cosine(candidates[other], candidates[place]);
            likest[other] = Some(likest[other].map_or(likeness, |most| most.max(likeness)));
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_add_up_by_direction() {
        let found = combine(&[(2.0, &[0.0, 3.0]), (-1.0, &[5.0, 0.0])]).unwrap();
        assert!(
            (found[0] + 1.0 / 5f32.sqrt()).abs() < 1e-6 && (found[1] - 2.0 / 5f32.sqrt()).abs() < 1e-6,
            "{found:?}"
        );
        // Only the proportions of weights count, at any magnitude.
        assert_eq!(combine(&[(1e308, &[0.0, 3.0]), (-5e307, &[5.0, 0.0])]).unwrap(), found);
        assert_eq!(combine(&[(-2e-300, &[4.0, 0.0])]).unwrap(), [-1.0, 0.0]);
    }

    #[test]
    fn what_has_no_direction_is_an_error() {
        let message = |terms: &[(f64, &[f32])]| combine(terms).unwrap_err().message;
        assert_eq!(message(&[]), "query has no terms");
        assert_eq!(message(&[(0.0, &[1.0])]), "all weights of the query are 0");
        assert_eq!(message(&[(f64::NAN, &[1.0])]), "weight NaN is not a finite number");
        assert_eq!(message(&[(1.0, &[0.0, 0.0])]), "zero vector has no direction");
        assert_eq!(message(&[(1.0, &[0.6, 0.8]), (-1.0, &[3.0, 4.0])]), "the terms of the query cancel out");
        // These terms nearly cancel out, but not quite.
        combine(&[(1.0, &[0.6, 0.8]), (-0.999, &[0.6, 0.8])]).unwrap();
    }

    #[test]
    fn the_second_choice_is_another_thing() {
        let (query, a, like_a, b) = ([1.0, 0.5], [1.0, 0.4], [1.0, 0.41], [0.4, 1.0]);
        let places = |lambda, k| {
            let all = diversify(&query, &[&like_a, &a, &b], k, lambda, &mut || ());
            all.into_iter().map(|(place, _)| place).collect::<Vec<_>>()
        };
        assert_eq!(places(1.0, 3), [0, 1, 2]);
        assert_eq!(places(0.5, 2), [0, 2]);
        assert_eq!(places(0.5, 10), [0, 2, 1]);
        assert_eq!(places(0.0, 2), [0, 2], "of equal ones the first");
        assert_eq!(diversify(&query, &[], 3, 0.5, &mut || ()), []);
    }
}

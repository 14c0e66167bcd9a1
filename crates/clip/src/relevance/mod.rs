//! Relevance: how certainly a photo shows the subject of a text, as a number from 0 to 1 with the same meaning for
//! every text, photo and model.
//!
//! A cosine alone can't measure this: 0.2 is a good match for one photo and a poor match for another. Here the text
//! competes with several thousand everyday words, the *background*. All vectors are taken relative to the mean of the
//! words, which removes the component that all texts share and most of the gap between texts and images. The score of a
//! text is the distance of its cosine above the mean of the photo's best words (one in a hundred), in units of the
//! standard deviation of the photo's cosines to all words. The score does not depend on the model's scale, so fixed
//! constants convert it to a number from 0 to 1.

mod background;
mod cache;
mod dot;
mod progress;
mod words;

pub use background::{Background, Builder, Photo, Shared};
pub use cache::Entry;
pub use progress::Progress;
pub use words::Words;

/// The minimum relevance at which a photo counts as an answer.
pub const CUT: f64 = 0.5;

/// The score whose relevance is [`CUT`]. With it, 85 % of the queries without an answer returned nothing, on the half
/// of the queries that was set aside for choosing it (benches/eval/queries.csv).
const SCORE_AT_CUT: f64 = 0.84;
/// The slope of relevance over the score, from a logistic regression on the same half.
const SLOPE: f64 = 1.34;

/// Converts a score to a number from 0 to 1.
pub fn relevance(score: f64) -> f64 {
    1.0 / (1.0 + (-SLOPE * (score - SCORE_AT_CUT)).exp())
}

//! Whether a photo shows what a text says, as a number from 0 to 1 that means the same for every text, photo and model.
//!
//! A cosine alone can't say so: 0.2 is a good match for one photo and a poor one for another. Here the text competes with some
//! thousand everyday words, the *background*. All vectors are taken relative to the words' mean, which removes what every text
//! has in common and most of what keeps texts apart from images. The score of a text is how far its cosine lies above the mean
//! of the photo's best words (one in a hundred), in units of the standard deviation of the photo's cosines to all words. That is
//! free of the model's scale, so fixed constants turn it into a number from 0 to 1.

mod background;
mod cache;
mod dot;
mod words;

pub use background::{Background, Builder, Photo, Shared};
pub use cache::Entry;
pub use words::Words;

/// From this relevance on a photo counts as an answer.
pub const CUT: f64 = 0.5;

/// The score at which relevance is [`CUT`]: there 85 % of the queries without an answer came out empty, on the half of the
/// queries that was set aside for choosing it (benches/eval/queries.csv).
const SCORE_AT_CUT: f64 = 0.84;
/// How fast relevance rises with the score: a logistic regression's on the same half.
const SLOPE: f64 = 1.34;

/// A score as a number from 0 to 1.
pub fn relevance(score: f64) -> f64 {
    1.0 / (1.0 + (-SLOPE * (score - SCORE_AT_CUT)).exp())
}

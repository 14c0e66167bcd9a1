//! The vectors of the words, and the relevance of photos computed from them.

use std::cmp::Ordering;

use crate::error::{Error, Kind, Result};
use crate::memory;
use crate::relevance::dot::Multiplier;
use crate::vector::l2_normalize;

/// The share of a photo's best words: one in this many words of the background.
const BEST: usize = 100;

/// Vectors as bytes: each component of a unit vector in steps of 1/127 of its largest component. A photo is compared
/// with all words, and 512 × 5,500 single-precision numbers would have to be read from main memory each time. The
/// scores differ by at most 0.02.
struct Codes {
    width: usize,
    codes: Vec<i8>,
    /// The size of the step, for each vector.
    steps: Vec<f32>,
}

impl Codes {
    fn encode(vector: &[f32]) -> (impl Iterator<Item = i8> + '_, f32) {
        let step = vector.iter().fold(0f32, |most, value| most.max(value.abs())) / 127.0;
        (vector.iter().map(move |value| if step > 0.0 { (value / step).round() as i8 } else { 0 }), step)
    }

    /// The cosines of a vector to the first `count` words.
    fn cosines(&self, vector: &[f32], count: usize) -> Vec<f32> {
        let (codes, step) = Self::encode(vector);
        let vector = Multiplier::new(codes.collect());
        let words = self.codes.chunks_exact(self.width).zip(&self.steps).take(count);
        words.map(|(word, of_word)| vector.dot(word) as f32 * of_word * step).collect()
    }
}

/// The words, with their vectors relative to the words' mean.
pub struct Background {
    pub words: Vec<String>,
    /// The number of words, from the first on, that photos are compared with. The others are only tags.
    pub count: usize,
    pub(super) mean: Vec<f32>,
    codes: Codes,
}

/// A photo or a text in relation to the words.
pub struct Photo {
    /// The vector relative to the words' mean, of length 1.
    vector: Vec<f32>,
    /// The mean of its cosines to its best words.
    best: f64,
    /// The standard deviation of its cosines to all words.
    deviation: f64,
}

/// A word that fits two vectors, with its score for each.
#[derive(Clone, Debug, PartialEq)]
pub struct Shared {
    pub word: usize,
    pub photo: f64,
    pub text: f64,
}

impl Photo {
    /// The score of a text, given by its vector relative to the same mean.
    pub fn score(&self, text: &[f32]) -> f64 {
        let cosine: f64 = self.vector.iter().zip(text).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
        self.score_of(cosine)
    }

    fn score_of(&self, cosine: f64) -> f64 {
        (cosine - self.best) / self.deviation
    }
}

/// Collects the vectors of the words.
pub struct Builder {
    words: Vec<String>,
    count: usize,
    width: usize,
    vectors: Vec<f32>,
}

impl Builder {
    pub fn new(words: super::Words) -> Self {
        Self { count: words.background, words: words.words, width: 0, vectors: Vec::new() }
    }

    /// The next words whose vectors are missing, at most `most`.
    pub fn next(&self, most: usize) -> &[String] {
        let start = self.vectors.len().checked_div(self.width).unwrap_or(0);
        &self.words[start..self.words.len().min(start + most)]
    }

    /// The length of the vectors, once one is known.
    pub(super) fn width(&self) -> Option<usize> {
        (self.width > 0).then_some(self.width)
    }

    /// The vectors from word `word` on, one after another, and the length of each.
    pub(super) fn vectors_from(&self, word: usize) -> (&[f32], usize) {
        (&self.vectors[word * self.width..], self.width)
    }

    /// Adds the vector of the next word.
    ///
    /// # Errors
    /// [`Kind::OutOfMemory`].
    pub fn push(&mut self, vector: &[f32]) -> Result<()> {
        if self.width == 0 {
            self.width = vector.len();
            self.vectors = memory::with_capacity(self.width * self.words.len())?;
        }
        assert_eq!(vector.len(), self.width, "one model's vectors have one width");
        self.vectors.extend_from_slice(vector);
        Ok(())
    }

    /// Converts the vectors to the background.
    ///
    /// # Errors
    /// [`Kind::OutOfMemory`]; [`Kind::BadModel`] if a word's vector equals the mean, because the model doesn't
    /// distinguish texts.
    pub fn finish(mut self) -> Result<Background> {
        let (width, count) = (self.width, self.count);
        assert_eq!(self.vectors.len(), width * self.words.len(), "a vector a word");
        let mut mean = vec![0f64; width];
        for word in self.vectors.chunks_exact(width).take(count) {
            mean.iter_mut().zip(word).for_each(|(sum, value)| *sum += f64::from(*value));
        }
        let mean: Vec<f32> = mean.into_iter().map(|sum| (sum / count as f64) as f32).collect();
        let mut codes = memory::with_capacity(self.vectors.len())?;
        let mut steps = memory::with_capacity(self.words.len())?;
        for word in self.vectors.chunks_exact_mut(width) {
            word.iter_mut().zip(&mean).for_each(|(value, mean)| *value -= mean);
            l2_normalize(word).map_err(|_| alike())?;
            let (bytes, step) = Codes::encode(word);
            codes.extend(bytes);
            steps.push(step);
        }
        Ok(Background { words: self.words, count, mean, codes: Codes { width, codes, steps } })
    }
}

fn alike() -> Error {
    Error::new(Kind::BadModel, "the model does not tell words apart")
        .detail("A word's vector equals the mean of all words' vectors.")
        .hint("Relevance needs a model whose text tower works; clip_check_model looks it over.")
}

impl Background {
    /// The length of the vectors.
    pub fn width(&self) -> usize {
        self.codes.width
    }

    /// The parts that are stored in a file: mean, steps, and codes.
    pub(super) fn parts(&self) -> (&[f32], &[f32], &[i8]) {
        (&self.mean, &self.codes.steps, &self.codes.codes)
    }

    pub(super) fn from_parts(words: super::Words, mean: Vec<f32>, steps: Vec<f32>, codes: Vec<i8>) -> Self {
        let codes = Codes { width: mean.len(), codes, steps };
        Self { count: words.background, words: words.words, mean, codes }
    }

    /// A vector relative to the words' mean, of length 1.
    ///
    /// # Errors
    /// [`Kind::InvalidInput`] for a vector without a direction.
    pub fn relative(&self, vector: &[f32]) -> Result<Vec<f32>> {
        assert_eq!(vector.len(), self.width(), "dimensions are checked by the caller");
        let mut relative = vector.to_vec();
        l2_normalize(&mut relative)?;
        relative.iter_mut().zip(&self.mean).for_each(|(value, mean)| *value -= mean);
        l2_normalize(&mut relative)?;
        Ok(relative)
    }

    /// Relates a vector to the words.
    ///
    /// # Errors
    /// The errors of [`Self::relative`]; [`Kind::BadModel`] if all words have the same cosine to it.
    pub fn photo(&self, vector: &[f32]) -> Result<Photo> {
        let vector = self.relative(vector)?;
        let mut cosines = self.codes.cosines(&vector, self.count);
        let (sum, squares) = cosines.iter().fold((0f64, 0f64), |(sum, squares), &cosine| {
            (sum + f64::from(cosine), squares + f64::from(cosine).powi(2))
        });
        let count = self.count as f64;
        let deviation = (squares / count - (sum / count).powi(2)).max(0.0).sqrt();
        let best = (self.count / BEST).max(1);
        cosines.select_nth_unstable_by(best - 1, |a, b| b.total_cmp(a));
        let best = cosines[..best].iter().map(|&cosine| f64::from(cosine)).sum::<f64>() / best as f64;
        if deviation < 1e-9 {
            return Err(alike());
        }
        Ok(Photo { vector, best, deviation })
    }

    /// The `most` words with the highest scores, including tags, best first. Equal scores are in the list's order.
    pub fn tags(&self, photo: &Photo, most: usize) -> Vec<(usize, f64)> {
        first(self.scores(photo).into_iter().enumerate().collect(), most, |one, other| {
            other.1.total_cmp(&one.1).then(one.0.cmp(&other.0))
        })
    }

    /// The score of each word, including tags.
    pub fn scores(&self, photo: &Photo) -> Vec<f64> {
        let cosines = self.codes.cosines(&photo.vector, self.words.len());
        cosines.iter().map(|&cosine| photo.score_of(f64::from(cosine))).collect()
    }

    /// The score of the word that two photos share most: the highest of the words' lower scores. `scores` are the other
    /// photo's.
    pub fn in_common(&self, photo: &Photo, scores: &[f64]) -> f64 {
        let pairs = self.scores(photo).into_iter().zip(scores);
        pairs.map(|(one, other)| one.min(*other)).fold(f64::NEG_INFINITY, f64::max)
    }

    /// The `most` words that fit both a photo and a text: those whose lower score of the two is highest.
    pub fn shared(&self, photo: &Photo, text: &Photo, most: usize) -> Vec<Shared> {
        let of_photo = self.codes.cosines(&photo.vector, self.words.len());
        let of_text = self.codes.cosines(&text.vector, self.words.len());
        let pairs = of_photo.iter().zip(&of_text).enumerate();
        let shared = pairs.map(|(word, (&a, &b))| Shared {
            word,
            photo: photo.score_of(f64::from(a)),
            text: text.score_of(f64::from(b)),
        });
        let lower = |one: &Shared| one.photo.min(one.text);
        first(shared.collect(), most, |one, other| lower(other).total_cmp(&lower(one)).then(one.word.cmp(&other.word)))
    }
}

/// The first `most` items in the given order.
fn first<T>(mut items: Vec<T>, most: usize, order: impl Fn(&T, &T) -> Ordering) -> Vec<T> {
    if most == 0 {
        return Vec::new();
    }
    if most < items.len() {
        items.select_nth_unstable_by(most - 1, &order);
        items.truncate(most);
    }
    items.sort_by(order);
    items
}

#[cfg(test)]
mod tests {
    use super::super::Words;
    use super::*;

    /// Pseudo-random vectors that are the same each time.
    fn vector(seed: u32, width: usize) -> Vec<f32> {
        let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12_345);
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        let mut vector: Vec<f32> = (0..width).map(|_| next() + 0.2).collect();
        l2_normalize(&mut vector).unwrap();
        vector
    }

    fn background(count: usize, tags: usize, width: usize) -> Background {
        let words = (0..count + tags).map(|n| format!("word {n}")).collect();
        let mut builder = Builder::new(Words { words, background: count });
        while let Some(word) = builder.next(1).first().cloned() {
            let number = word.rsplit(' ').next().unwrap().parse().unwrap();
            builder.push(&vector(number, width)).unwrap();
        }
        builder.finish().unwrap()
    }

    /// Computes the same score in double precision and in the simplest way.
    fn plainly(count: usize, photo: &[f32], text: &[f32]) -> f64 {
        let width = photo.len();
        let double = |v: &[f32]| v.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
        let words: Vec<Vec<f64>> = (0..count as u32).map(|n| double(&vector(n, width))).collect();
        let mean: Vec<f64> = (0..width).map(|i| words.iter().map(|w| w[i]).sum::<f64>() / count as f64).collect();
        let relative = |v: &[f64]| {
            let v: Vec<f64> = v.iter().zip(&mean).map(|(x, m)| x - m).collect();
            let norm = v.iter().map(|x| x * x).sum::<f64>().sqrt();
            v.into_iter().map(|x| x / norm).collect::<Vec<_>>()
        };
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
        let (photo, text) = (relative(&double(photo)), relative(&double(text)));
        let mut cosines: Vec<f64> = words.iter().map(|w| dot(&relative(w), &photo)).collect();
        let centre = cosines.iter().sum::<f64>() / count as f64;
        let deviation = (cosines.iter().map(|c| (c - centre).powi(2)).sum::<f64>() / count as f64).sqrt();
        cosines.sort_by(|a, b| b.total_cmp(a));
        let best = cosines[..count / 100].iter().sum::<f64>() / (count / 100) as f64;
        (dot(&photo, &text) - best) / deviation
    }

    #[test]
    fn scores_are_those_of_the_formula() {
        let background = background(1000, 50, 96);
        for seed in 0..20 {
            let (photo, text) = (vector(5000 + seed, 96), vector(9000 + seed, 96));
            let found = background.photo(&photo).unwrap().score(&background.relative(&text).unwrap());
            let expected = plainly(1000, &photo, &text);
            assert!((found - expected).abs() < 0.03, "{found} {expected}");
        }
    }

    #[test]
    fn a_photo_like_a_word_has_it_as_its_first_tag_and_shares_it_with_that_text() {
        let background = background(1000, 50, 96);
        for number in [3, 999, 1049] {
            let photo = background.photo(&vector(number, 96)).unwrap();
            let tags = background.tags(&photo, 3);
            assert_eq!((tags.len(), tags[0].0), (3, number as usize));
            assert!(tags[0].1 > tags[1].1 && tags[1].1 >= tags[2].1);
            let text = background.relative(&vector(number, 96)).unwrap();
            assert!((photo.score(&text) - tags[0].1).abs() < 0.1);
            assert_eq!(
                background.shared(&photo, &background.photo(&vector(number, 96)).unwrap(), 1)[0].word,
                number as usize
            );
        }
        let photo = background.photo(&vector(1, 96)).unwrap();
        let other = background.photo(&vector(2, 96)).unwrap();
        let shared = &background.shared(&photo, &other, 1)[0];
        assert_eq!(background.in_common(&photo, &background.scores(&other)), shared.photo.min(shared.text));
        assert_eq!(background.tags(&photo, 0), []);
        assert_eq!(background.tags(&photo, 5000).len(), 1050);
    }

    #[test]
    fn length_does_not_matter_and_no_direction_is_an_error() {
        let background = background(600, 0, 32);
        let (photo, text) = (vector(77, 32), background.relative(&vector(78, 32)).unwrap());
        let longer: Vec<f32> = photo.iter().map(|value| value * 40.0).collect();
        let scores = [&photo, &longer].map(|photo| background.photo(photo).unwrap().score(&text));
        assert!((scores[0] - scores[1]).abs() < 1e-3, "{scores:?}");
        assert!(background.photo(&[0.0; 32]).is_err());
    }

    #[test]
    fn equal_words_are_an_error() {
        let words = (0..600).map(|n| n.to_string()).collect();
        let mut builder = Builder::new(Words { words, background: 600 });
        (0..600).for_each(|_| builder.push(&[0.6, 0.8]).unwrap());
        assert_eq!(builder.finish().err().unwrap().kind, Kind::BadModel);
    }
}

//! Shortens long repetitions in a text, so that a short beginning gives the same tokens as the whole text.
//!
//! A text is tokenized from its start until the context is full, which usually takes a few kilobytes. Only runs that
//! give far fewer tokens than characters need more: white space that the normalizer collapses, a word over WordPiece's
//! limit that becomes one `[UNK]`, or a run of characters outside the vocabulary that becomes one `<unk>`. Three rules
//! shorten these runs without changing the ids; tests/tokens.rs compares them with the ids of whole texts.

use std::collections::{HashMap, HashSet};

use tokenizers::models::ModelWrapper;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::{Model as _, OffsetReferential, OffsetType, PreTokenizer as _, Tokenizer};

use crate::error::{Error, Result};

/// A shortened run of one character has the length of the original run modulo this number, because a tokenizer may
/// split the run into pieces of a fixed length from either end. The number is divisible by all numbers up to 10 and by
/// 12, 14, 15, 16, 18, 20, 21, 24, 28, 30, 32, 36 and 64: tokens of one repeated character have these lengths.
const PERIOD: usize = 20_160;
/// The number of characters that are kept of an unknown run. One would suffice.
const UNKNOWN: usize = 64;
/// The number of bytes between two checks for an interrupt: a few milliseconds of work.
const STRIDE: usize = 256 << 10;

/// How a tokenizer treats long runs.
pub(super) struct RunShortener {
    /// The number of characters of a run that are always kept: more than enough to fill the context.
    keep: usize,
    rule: Rule,
}

enum Rule {
    /// Only runs of one character are shortened.
    Plain,
    /// BERT's words: a word with more characters than `most` becomes one unknown token.
    Words { most: usize },
    /// The characters that occur in tokens. A run of other characters becomes one unknown token.
    Unknown { known: HashSet<char> },
}

/// The role of a character under a rule.
#[derive(Clone, Copy, PartialEq)]
enum Sort {
    /// Continues a word or an unknown run.
    Inside,
    /// Is removed by the normalizer.
    Removed,
    /// Ends the run.
    Other,
}

/// A text with shortened runs.
pub(super) struct Shortened {
    pub text: String,
    /// Whether `text` represents the whole text, not only its beginning.
    pub whole: bool,
}

impl RunShortener {
    /// Chooses the rule for a tokenizer. `context` is the maximum number of tokens.
    pub(super) fn of(tokenizer: &Tokenizer, context: usize) -> Self {
        let bert = matches!(tokenizer.get_normalizer(), Some(NormalizerWrapper::BertNormalizer(_)))
            && matches!(tokenizer.get_pre_tokenizer(), Some(PreTokenizerWrapper::BertPreTokenizer(_)));
        let added: Vec<String> =
            tokenizer.get_added_tokens_decoder().into_values().map(|token| token.content).collect();
        let rule = match tokenizer.get_model() {
            // An added token that consists of letters would be found inside a word.
            ModelWrapper::WordPiece(model)
                if bert && added.iter().all(|token| token.contains(|c: char| c.is_ascii_punctuation())) =>
            {
                Rule::Words { most: model.max_input_chars_per_word }
            }
            ModelWrapper::Unigram(model) if !model.byte_fallback() => Rule::Unknown { known: HashSet::new() },
            ModelWrapper::BPE(model) if model.fuse_unk && !model.byte_fallback && model.unk_token.is_some() => {
                Rule::Unknown { known: HashSet::new() }
            }
            _ => Rule::Plain,
        };
        let rule = match rule {
            Rule::Unknown { .. } => {
                let tokens = tokenizer.get_model().get_vocab().into_keys().chain(added);
                let mut known = HashSet::new();
                tokens.for_each(|token| known.extend(token.chars()));
                Rule::Unknown { known }
            }
            rule => rule,
        };
        // Tokens of natural text have at most 64 characters. Tokens of one repeated character may be longer; the period
        // preserves these.
        Self { keep: 64 * context, rule }
    }

    /// The text with long runs shortened, up to about `most` bytes.
    ///
    /// # Errors
    /// [`crate::Kind::OutOfMemory`].
    pub(super) fn shorten(
        &self,
        text: &str,
        most: usize,
        tokenizer: &Tokenizer,
        check_interrupts: &dyn Fn(),
    ) -> Result<Shortened> {
        let mut short = String::new();
        let room = most + 4 * (self.keep + PERIOD);
        short.try_reserve_exact(room).map_err(|_| Error::out_of_memory(room))?;
        let mut sorts: HashMap<char, Sort> = HashMap::new();
        let (mut rest, mut inside, mut looked) = (text, 0, 0);
        while let Some(c) = rest.chars().next() {
            if short.len() >= most {
                return Ok(Shortened { text: short, whole: false });
            }
            let bytes = rest.len() - rest.trim_start_matches(c).len();
            let count = bytes / c.len_utf8();
            rest = &rest[bytes..];
            let sort = *sorts.entry(c).or_insert_with(|| self.sort(c, tokenizer));
            let most_inside = match &self.rule {
                Rule::Words { most } => 4 * most,
                _ => UNKNOWN,
            };
            let kept = match sort {
                Sort::Inside => {
                    let kept = count.min(most_inside.saturating_sub(inside));
                    inside = (inside + count).min(most_inside);
                    kept
                }
                Sort::Removed => 0,
                Sort::Other => {
                    inside = 0;
                    if count > self.keep + PERIOD { self.keep + (count - self.keep) % PERIOD } else { count }
                }
            };
            short.extend(std::iter::repeat_n(c, kept));
            looked += bytes;
            if looked >= STRIDE {
                looked = 0;
                check_interrupts();
            }
        }
        Ok(Shortened { text: short, whole: true })
    }

    fn sort(&self, c: char, tokenizer: &Tokenizer) -> Sort {
        let normalized = |text: &str| {
            let vocabulary = tokenizer.get_added_vocabulary();
            let mut split = vocabulary.extract_and_normalize(tokenizer.get_normalizer(), text);
            tokenizer.get_pre_tokenizer().map(|pre| pre.pre_tokenize(&mut split));
            let parts = split.get_splits(OffsetReferential::Normalized, OffsetType::None);
            parts.into_iter().map(|(part, ..)| part.to_owned()).collect::<Vec<String>>()
        };
        match &self.rule {
            Rule::Plain => Sort::Other,
            Rule::Words { .. } => match normalized(&format!("x{c}x")).as_slice() {
                // An accent: it is removed, and its base character stays.
                [word] if word == "xx" => Sort::Removed,
                [_] => Sort::Inside,
                _ => Sort::Other,
            },
            Rule::Unknown { known } => {
                let same = normalized(&format!("x{c}x"));
                let inert = stands_alone(c) && same.len() == 1 && same[0].ends_with(&format!("{c}x"));
                if inert && !known.contains(&c) { Sort::Inside } else { Sort::Other }
            }
        }
    }
}

/// Whether a character stays unchanged next to any other: it takes no part in Unicode's composition, regardless of the
/// composed characters in the vocabulary. This holds for symbols, emoji with their joiner and selector, and ideographs.
fn stands_alone(c: char) -> bool {
    matches!(u32::from(c), 0x200D | 0xFE0F | 0x2190..=0x2BFF | 0x3400..=0x9FFF | 0x1F000..=0x1FAFF | 0x20000..=0x3FFFF)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokenizer(json: &str) -> Tokenizer {
        json.parse().unwrap()
    }

    fn shorten(tokenizer: &Tokenizer, text: &str) -> String {
        let short = RunShortener::of(tokenizer, 8).shorten(text, 1 << 20, tokenizer, &|| ()).unwrap();
        assert!(short.whole);
        short.text
    }

    const UNIGRAM: &str =
        r#"{"model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0], ["a", -1], ["猫", -2]]}}"#;
    const WORDS: &str = r###"{"normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
        "strip_accents": null, "lowercase": true}, "pre_tokenizer": {"type": "BertPreTokenizer"},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100, "vocab": {"[UNK]": 0, "a": 1}}}"###;

    #[test]
    fn runs_of_one_character_keep_their_remainder() {
        let tokenizer = tokenizer(UNIGRAM);
        for extra in [0, 1, 2, 63, PERIOD - 1] {
            let short = shorten(&tokenizer, &format!("b{}c", "a".repeat(1_000 * PERIOD + extra)));
            assert_eq!(short.len() % PERIOD, (2 + extra) % PERIOD);
            assert!(short.len() < 2 * PERIOD + 2 && short.starts_with("baa") && short.ends_with("aac"));
        }
        let near = "a".repeat(PERIOD);
        assert_eq!(shorten(&tokenizer, &near), near, "not worth it");
    }

    #[test]
    fn unknown_runs_are_shortened_and_known_characters_are_not() {
        let tokenizer = tokenizer(UNIGRAM);
        assert_eq!(shorten(&tokenizer, &"犬山".repeat(5_000)).chars().count(), UNKNOWN);
        assert_eq!(shorten(&tokenizer, &"犬猫".repeat(500)).chars().count(), 1_000);
        // Conjoining letters may combine to a known syllable.
        assert_eq!(shorten(&tokenizer, &"\u{1100}\u{1161}".repeat(500)).chars().count(), 1_000);
    }

    #[test]
    fn words_are_as_long_as_it_takes_to_be_unknown() {
        let tokenizer = tokenizer(WORDS);
        assert_eq!(shorten(&tokenizer, &format!("{} cat", "ab".repeat(5_000))), format!("{} cat", "ab".repeat(200)));
        assert_eq!(shorten(&tokenizer, &"ab, ".repeat(5_000)), "ab, ".repeat(5_000));
    }

    #[test]
    fn no_more_is_read_than_is_wanted() {
        let tokenizer = tokenizer(WORDS);
        let text = "ab ".repeat(1 << 20);
        let short = RunShortener::of(&tokenizer, 8).shorten(&text, 1000, &tokenizer, &|| ()).unwrap();
        assert!(!short.whole && (1000..1010).contains(&short.text.len()));
    }
}

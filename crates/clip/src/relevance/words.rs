//! The list of words. A file can replace the built-in one.

use crate::error::{Error, Kind, Result};

/// The built-in list, used if no file is named.
const EVERYDAY: &str = include_str!("../../../../models/words/everyday.txt");
/// The minimum and maximum number of words: the best hundredth of the background must contain several words, and each
/// word costs half a microsecond per photo.
const FEWEST: usize = 500;
const MOST: usize = 50_000;
const LONGEST: usize = 200;

/// A list of words. Photos are compared with the first `background` words; the others are only tags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Words {
    pub words: Vec<String>,
    pub background: usize,
}

impl Words {
    /// The built-in list of everyday words.
    pub fn everyday() -> Result<Self> {
        Self::parse(EVERYDAY)
    }

    /// Parses a list with one word or phrase per line. A line that begins with + is only a tag. Empty lines and lines
    /// that begin with # are skipped.
    ///
    /// # Errors
    /// [`Kind::InvalidInput`] for a list that is too short or too long, or has an unusable line.
    pub fn parse(text: &str) -> Result<Self> {
        let (mut background, mut tags) = (Vec::new(), Vec::new());
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (list, word) = match line.strip_prefix('+') {
                Some(word) => (&mut tags, word.trim()),
                None => (&mut background, line),
            };
            if word.is_empty() || word.len() > LONGEST || word.contains('\0') {
                return Err(Error::new(
                    Kind::InvalidInput,
                    format!("line {} of the list of words is no word", number + 1),
                )
                .detail(format!("It has {} bytes; a word has 1 to {LONGEST}, and no NUL.", word.len())));
            }
            list.push(word.to_owned());
        }
        let (count, all) = (background.len(), background.len() + tags.len());
        if count < FEWEST || all > MOST {
            return Err(Error::new(Kind::InvalidInput, "list of words has an unsuitable length").detail(format!(
                "It has {count} words and {} tags only; {FEWEST} words are needed, and {MOST} in all are allowed.",
                tags.len()
            )));
        }
        background.append(&mut tags);
        Ok(Self { words: background, background: count })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_that_comes_with_it_is_usable() {
        let words = Words::everyday().unwrap();
        assert!(words.background >= 5000 && words.words.len() > words.background + 500);
        let mut unique = words.words.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), words.words.len(), "no word twice");
        assert!(words.words.iter().all(|word| !word.starts_with(['+', '#'])));
    }

    #[test]
    fn lines_are_words_tags_or_comments() {
        let mut text = String::from("# a comment\n\n + scene at night \n");
        (0..FEWEST).for_each(|n| text += &format!("word{n}\n"));
        let words = Words::parse(&text).unwrap();
        assert_eq!((words.background, words.words.len()), (FEWEST, FEWEST + 1));
        assert_eq!(words.words.last().unwrap(), "scene at night");
        assert!(Words::parse("dog\ncat\n").unwrap_err().detail.unwrap().starts_with("It has 2 words"));
        assert!(Words::parse(&format!("{text}{}\n", "x".repeat(201))).unwrap_err().message.starts_with("line 504 "));
        assert!(Words::parse(&format!("{text}+\n")).is_err());
    }
}

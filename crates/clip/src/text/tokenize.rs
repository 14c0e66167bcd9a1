//! Chooses the part of a long text to tokenize, and tokenizes it with checks for interrupts.

use std::cell::RefCell;

use tokenizers::{Encoding, Model as _, OffsetType, PreTokenizer as _, Tokenizer};

use crate::error::{Error, Kind, Result};
use crate::memory::Reserve;

/// The number of bytes of a text to tokenize at first, and the maximum: minima that apply to any context.
const FIRST: usize = 32 << 10;
const LAST: usize = 256 << 10;
/// The same for each token of the context. Texts have five bytes per token, and 64 with the worst vocabularies.
const FIRST_BYTES: usize = 16;
const LAST_BYTES: usize = 64;
/// The number of bytes before a cut whose tokens may differ from those of the whole text. WordPiece treats a word over
/// a hundred characters as unknown, and BPE merges that depend on each other have a shorter range.
const MARGIN: usize = 4 << 10;
/// Bytes of memory that the tokenizers library takes for each byte of text: alignments, splits and tokens.
const MEMORY: usize = 160;

pub(super) fn first(context: usize) -> usize {
    FIRST.max(FIRST_BYTES * context)
}

pub(super) fn last(context: usize) -> usize {
    LAST.max(LAST_BYTES * context)
}

/// The beginning of a text, about `most` bytes. It is cut before nearby white space if possible, so that no word is
/// split, and never between a letter and its combining mark, because normalization would join these.
///
/// # Errors
/// [`Kind::LimitExceeded`] if a letter has thousands of marks.
pub(super) fn cut(text: &str, most: usize) -> Result<&str> {
    if text.len() <= most {
        return Ok(text);
    }
    let near = text.floor_char_boundary(most - MARGIN / 4);
    let end = text.floor_char_boundary(most);
    if let Some(space) = text[near..end].rfind(|c: char| c.is_ascii_whitespace()) {
        return Ok(&text[..near + space]);
    }
    let starts = |(_, c): &(usize, char)| unicode_normalization::char::canonical_combining_class(*c) == 0;
    match text[near..end].char_indices().rev().find(starts) {
        Some((place, _)) => Ok(&text[..near + place]),
        None => Err(Error::new(Kind::LimitExceeded, "text has too many combining marks in a row")
            .detail(format!("More than {} bytes from byte {near} on are marks on one letter.", end - near))),
    }
}

/// Tokenizes a piece of a text like [`Tokenizer::encode_fast`] without special tokens, with a check for interrupts
/// after each word. It stops after `most` tokens that are certain to equal those of the whole text. None if the piece
/// is not `whole` and has fewer such tokens.
///
/// # Errors
/// [`Kind::InvalidInput`] if the library refuses the text; [`Kind::OutOfMemory`].
pub(super) fn encode(
    tokenizer: &Tokenizer,
    piece: &str,
    whole: bool,
    most: usize,
    check_interrupts: &RefCell<&mut dyn FnMut()>,
) -> Result<Option<Encoding>> {
    let refused = |e: tokenizers::Error| {
        Error::new(Kind::InvalidInput, "text cannot be tokenized").detail(format!("The tokenizers library says: {e}."))
    };
    let reserve = Reserve::new(MEMORY * piece.len() + (1 << 20))?;
    let mut words = tokenizer.get_added_vocabulary().extract_and_normalize(tokenizer.get_normalizer(), piece);
    check_interrupts.borrow_mut()();
    if let Some(pre_tokenizer) = tokenizer.get_pre_tokenizer() {
        pre_tokenizer.pre_tokenize(&mut words).map_err(refused)?;
    }
    check_interrupts.borrow_mut()();
    let sure = if whole { piece.len() } else { piece.len().saturating_sub(MARGIN) };
    let count = RefCell::new(0);
    words
        .tokenize(|word| {
            let mut count = count.borrow_mut();
            if *count > most {
                return Ok(Vec::new());
            }
            check_interrupts.borrow_mut()();
            let tokens = tokenizer.get_model().tokenize(word.get())?;
            let (begin, end) = word.offsets_original();
            *count += if end <= sure {
                tokens.len()
            } else {
                // Within a word, positions refer to the normalized text, which has about the same length.
                let room = (word.get().len() * sure.saturating_sub(begin)) / (end - begin).max(1);
                tokens.iter().filter(|token| token.offsets.1 <= room).count()
            };
            Ok(tokens)
        })
        .map_err(refused)?;
    let encoding = words.into_encoding(None, 0, OffsetType::None).map_err(refused)?;
    reserve.finish()?;
    let enough = whole || count.into_inner() > most;
    Ok(enough.then_some(encoding))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_tears_no_word_and_no_letter() {
        let text = "word ".repeat(10_000);
        let piece = cut(&text, 20_002).unwrap();
        assert!(piece.ends_with("word") && piece.len() > 19_000, "{}", piece.len());
        assert_eq!(cut("short", 20_000).unwrap(), "short");
        let marked = "e\u{301}".repeat(20_000);
        assert!(cut(&marked, 20_000).unwrap().ends_with('\u{301}'));
        let marks = format!("e{}", "\u{301}".repeat(20_000));
        assert_eq!(cut(&marks, 20_000).unwrap_err().kind, Kind::LimitExceeded);
    }
}

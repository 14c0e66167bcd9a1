//! Text to token ids, by the model's own `tokenizer.json`.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use once_cell::unsync::OnceCell;
use tokenizers::{Encoding, PostProcessor, Tokenizer, TruncationDirection, TruncationParams, TruncationStrategy};

use crate::error::{Error, Kind, Result, without_panic};
use crate::model::{Model, read_json};
use crate::text::pieces;
use crate::text::runs::Runs;

/// CLIP's context length (Radford et al. 2021, section 2.4: 76 BPE tokens and one special, 77 in the code),
/// where neither the graph nor the tokenizer states one.
const CLIP_CONTEXT: usize = 77;

/// A model's tokenizer with its limits.
pub struct TextEncoder {
    tokenizer: Tokenizer,
    /// Most ids that a text may have, special ones included.
    pub context_length: usize,
    /// What a shorter text is filled with where the graph wants a fixed length.
    pub pad_id: u32,
    /// Ids that the post-processor adds: start and end of text.
    special: usize,
    /// The tokenizer expects its caller to have lower-cased the text and taken its punctuation out.
    canonicalize: bool,
    runs: OnceCell<Runs>,
}

/// A text's ids, special ones included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    pub ids: Vec<u32>,
    /// How many of them are the text's; what follows is padding.
    pub length: usize,
    /// The text had more, and was cut.
    pub truncated: bool,
}

impl TextEncoder {
    /// Loads the tokenizer of a model. `fixed_length` is the sequence length that the graph is bound to.
    ///
    /// The context length is the least of what the graph, `tokenizer_config.json` and `tokenizer.json`
    /// state; the padding id is the tokenizer's. `config.json` is not asked: CLIP's own says pad 1 and
    /// EOS 2 where both are 49407.
    ///
    /// # Errors
    /// [`Kind::MissingFile`] without a `tokenizer.json`, [`Kind::BadModel`] where it cannot be used.
    pub fn load(model: &Model, fixed_length: Option<usize>) -> Result<Self> {
        let file = model.tokenizer.as_ref().ok_or_else(|| {
            Error::new(Kind::MissingFile, format!("model \"{}\" has no tokenizer.json", model.name))
                .detail(format!("Looked in \"{}\".", model.directory.display()))
        })?;
        let unusable = |e: &dyn std::fmt::Display| {
            Error::new(Kind::BadModel, format!("tokenizer \"{}\" cannot be used", file.display()))
                .detail(format!("The tokenizers library says: {e}."))
        };
        let mut tokenizer = without_panic(
            || unusable(&"it gave up on the file"),
            || Tokenizer::from_file(file).map_err(|e| unusable(&e)),
        )?;
        let config = read_json(&file.with_file_name("tokenizer_config.json")).unwrap_or_default();

        // Exporters write 1e30 for "no limit".
        let stated = config["model_max_length"].as_f64().filter(|n| (1.0..1e6).contains(n)).map(|n| n as usize);
        let truncation = tokenizer.get_truncation().map(|t| t.max_length);
        // open_clip's configuration, as Immich ships it, states the context that the model was trained with.
        let open_clip = read_json(&model.text_directory.join("config.json")).unwrap_or_default();
        let open_clip = open_clip.get("model_cfg").unwrap_or(&open_clip)["text_cfg"].clone();
        let trained = open_clip["context_length"].as_u64().map(|n| n as usize);
        let canonicalize = open_clip["tokenizer_kwargs"]["clean"].as_str() == Some("canonicalize");
        let context_length =
            [fixed_length, stated, truncation, trained].into_iter().flatten().min().unwrap_or(CLIP_CONTEXT);

        let pad_token = config["pad_token"].as_str().or_else(|| config["pad_token"]["content"].as_str());
        let pad_id = pad_token
            .and_then(|token| tokenizer.token_to_id(token))
            .or_else(|| tokenizer.get_padding().map(|p| p.pad_id))
            .unwrap_or(0);

        let special = tokenizer.get_post_processor().map_or(0, |p| p.added_tokens(false));
        if context_length <= special {
            return Err(unusable(&format!(
                "a context of {context_length} tokens leaves no room beside {special} special ones"
            )));
        }
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(Some(TruncationParams {
                max_length: context_length,
                direction: TruncationDirection::Right,
                strategy: TruncationStrategy::LongestFirst,
                stride: 0,
            }))
            .map_err(|e| unusable(&e))?;
        Ok(Self { tokenizer, context_length, pad_id, special, canonicalize, runs: OnceCell::new() })
    }

    /// The ids of a text, special ones included. A longer text is cut before the special tokens are added, so that the
    /// end token stays last.
    ///
    /// # Errors
    /// As [`Self::encode_checked`].
    pub fn encode(&self, text: &str) -> Result<Tokens> {
        self.encode_checked(text, &mut || ())
    }

    /// The same, with calls of `check_interrupts` every few milliseconds, which may unwind.
    ///
    /// The tokenizers library takes some 100 bytes of memory and a microsecond for each byte of text. So a long text is
    /// given to it from the start in growing pieces, until they fill the context with tokens that are those of the
    /// whole text; see [`super::pieces`] and [`super::runs`].
    ///
    /// # Errors
    /// [`Kind::InvalidInput`] for a text with nothing in it; [`Kind::LimitExceeded`] where the longest piece does not
    /// fill the context; [`Kind::OutOfMemory`].
    pub fn encode_checked(&self, text: &str, check_interrupts: &mut dyn FnMut()) -> Result<Tokens> {
        let refused = || {
            Error::new(Kind::InvalidInput, "text cannot be tokenized").detail("The tokenizers library gave up on it.")
        };
        let check = RefCell::new(check_interrupts);
        let (first, last) = (pieces::first(self.context_length), pieces::last(self.context_length));
        let given = text;
        let shortened;
        let (text, ends) = if text.len() <= first {
            (text, true)
        } else {
            shortened = self.runs().shorten(text, last, &self.tokenizer, &|| check.borrow_mut()())?;
            (shortened.text.as_str(), shortened.whole)
        };
        let mut size = first;
        loop {
            let piece = pieces::cut(text, size)?;
            let whole = ends && piece.len() == text.len();
            let canonical = self.canonicalize.then(|| canonicalize(piece));
            let piece = canonical.as_deref().unwrap_or(piece);
            // The library panics on some texts; an interrupt that unwinds is not one of these.
            let interrupted = RefCell::new(None);
            let mut look = || {
                let result = catch_unwind(AssertUnwindSafe(|| check.borrow_mut()()));
                if let Err(panic) = result {
                    *interrupted.borrow_mut() = Some(panic);
                    resume_unwind(Box::new("interrupted"));
                }
            };
            let look: RefCell<&mut dyn FnMut()> = RefCell::new(&mut look);
            let encoded =
                without_panic(refused, || pieces::encode(&self.tokenizer, piece, whole, self.context_length, &look));
            if let Some(panic) = interrupted.into_inner() {
                resume_unwind(panic);
            }
            if let Some(encoding) = encoded? {
                return self.finish(encoding, given);
            }
            if size >= last {
                return Err(Error::new(Kind::LimitExceeded, "text is too long for what it says").detail(format!(
                    "Its first {} bytes, with long runs shortened, make fewer than the {} tokens of the context.",
                    piece.len(),
                    self.context_length
                )));
            }
            size = (4 * size).min(last);
        }
    }

    /// Cuts to the context and adds the special tokens.
    fn finish(&self, encoding: Encoding, text: &str) -> Result<Tokens> {
        let refused = |e: tokenizers::Error| {
            Error::new(Kind::InvalidInput, "text cannot be tokenized")
                .detail(format!("The tokenizers library says: {e}."))
        };
        let encoding = self.tokenizer.post_process(encoding, None, true).map_err(refused)?;
        let ids = encoding.get_ids().to_vec();
        if ids.len() <= self.special {
            return Err(empty(text));
        }
        Ok(Tokens { truncated: !encoding.get_overflowing().is_empty(), length: ids.len(), ids })
    }

    /// What the tokenizer does to long runs, found out for the first long text.
    fn runs(&self) -> &Runs {
        self.runs.get_or_init(|| Runs::of(&self.tokenizer, self.context_length))
    }
}

fn empty(text: &str) -> Error {
    let detail = match text.len() {
        0 => "It has no characters.".to_owned(),
        n => format!("Its {n} bytes are nothing but white space to the tokenizer."),
    };
    Error::new(Kind::InvalidInput, "text is empty").detail(detail).hint("Use NULL where there is no text.")
}

/// SigLIP's text cleaning as open_clip does it in code (`canonicalize_text`): underscores become spaces,
/// ASCII punctuation goes, letters are lower-cased, white space is collapsed.
fn canonicalize(text: &str) -> String {
    let text: String = text.replace('_', " ").chars().filter(|c| !c.is_ascii_punctuation()).collect();
    text.to_lowercase().split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::canonicalize;

    #[test]
    fn canonical_text_has_no_punctuation() {
        assert_eq!(canonicalize("  A Photo_of:\ta \"CAT\"!  "), "a photo of a cat");
        assert_eq!(canonicalize("naïve Äpfel—ok"), "naïve äpfel—ok");
    }
}

//! Text to token ids, by the model's own `tokenizer.json`.

use tokenizers::{PostProcessor, Tokenizer, TruncationDirection, TruncationParams, TruncationStrategy};

use crate::error::{Error, Kind, Result, without_panic};
use crate::model::{Model, read_json};

/// CLIP's context length (Radford et al. 2021, section 2.4: 76 BPE tokens and one special, 77 in the code),
/// where neither the graph nor the tokenizer states one.
const CLIP_CONTEXT: usize = 77;

/// How much of a long text is tokenized at first and at most, in bytes.
const FIRST_PIECE: usize = 64 << 10;
const LAST_PIECE: usize = 16 << 20;

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
        Ok(Self { tokenizer, context_length, pad_id, special, canonicalize })
    }

    /// The ids of a text. One that is too long is cut before the special tokens are added, so the end
    /// token stays last.
    ///
    /// The tokenizers library takes some 100 bytes of memory for each byte of text (1 GB for 10 MB), all of
    /// which but the beginning is then cut off. So a long text is given to it from the start in growing
    /// pieces, until there are more tokens than the context holds.
    ///
    /// # Errors
    /// [`Kind::InvalidInput`] for a text with nothing in it; [`Kind::LimitExceeded`] where 16 MiB of it do not
    /// fill the context.
    pub fn encode(&self, text: &str) -> Result<Tokens> {
        // 64 bytes a token, where a word has five: what the cut does to the last word is far behind the context.
        let mut size = FIRST_PIECE.max(64 * self.context_length);
        loop {
            let piece = &text[..text.floor_char_boundary(size)];
            let tokens = self.encode_piece(piece)?;
            if tokens.truncated || piece.len() == text.len() {
                return if tokens.length > self.special { Ok(tokens) } else { Err(empty(text)) };
            }
            if size >= LAST_PIECE {
                return Err(Error::new(Kind::LimitExceeded, "text is too long for what it says").detail(format!(
                    "It has {} bytes, of which the first {} make only {} tokens.",
                    text.len(),
                    piece.len(),
                    tokens.length
                )));
            }
            size *= 4;
        }
    }

    fn encode_piece(&self, text: &str) -> Result<Tokens> {
        let canonical = self.canonicalize.then(|| canonicalize(text));
        let refused = |why: String| Error::new(Kind::InvalidInput, "text cannot be tokenized").detail(why);
        let encoding = without_panic(
            || refused("The tokenizers library gave up on it.".to_owned()),
            || {
                let text = canonical.as_deref().unwrap_or(text);
                let encoded = self.tokenizer.encode_fast(text, true);
                encoded.map_err(|e| refused(format!("The tokenizers library says: {e}.")))
            },
        )?;
        let ids = encoding.get_ids().to_vec();
        Ok(Tokens { truncated: !encoding.get_overflowing().is_empty(), length: ids.len(), ids })
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

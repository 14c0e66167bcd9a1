//! Texts to token ids, with the model's own tokenizer.

use std::borrow::Cow;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use once_cell::unsync::OnceCell;
use tokenizers::{
    Encoding, PaddingDirection, PaddingStrategy, PostProcessor, Tokenizer, TruncationDirection, TruncationParams,
    TruncationStrategy,
};

use crate::error::{Error, Kind, Result, without_panic};
use crate::model::config::Config;
use crate::model::{Model, read_json};
use crate::text::cleaning::Cleaning;
use crate::text::files::TokenizerFiles;
use crate::text::prompt;
use crate::text::repetitions::RunShortener;
use crate::text::siglip;
use crate::text::tokenize;

/// A model's tokenizer, with its limits and the cleaning of texts.
pub struct TextEncoder {
    tokenizer: Tokenizer,
    /// Maximum number of ids per text, including special ids.
    pub context_length: usize,
    /// The source of the context length, for messages.
    pub context_source: String,
    /// The id that pads shorter texts if the graph needs a fixed length.
    pub pad_id: u32,
    /// Whether texts are padded at their beginning.
    pub pad_left: bool,
    /// The number of ids that the post-processor adds: start and end of text.
    special: usize,
    /// How the library's tokenizer class cleans texts before `tokenizer.json` applies.
    pub cleaning: Cleaning,
    /// Whether the tokenizer needs texts that are [`siglip::marked`].
    marks: bool,
    /// The model's prompt, which precedes every text.
    pub prompt: Option<String>,
    /// The number of ids of the prompt, including a special id at the start.
    pub prompt_length: usize,
    /// The id that is replaced by 0, for open_clip's `strip_sep_token`.
    stripped: Option<u32>,
    runs: OnceCell<RunShortener>,
}

/// A text's ids, including special ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    pub ids: Vec<u32>,
    /// The number of ids that are not padding.
    pub length: usize,
    /// Whether the text was longer than the context and was truncated.
    pub truncated: bool,
}

impl TextEncoder {
    /// Loads the tokenizer of a model. `fixed_length` is the sequence length if the graph fixes it. Guesses are added
    /// to `warnings`.
    ///
    /// The context length is the minimum of these values: the graph's fixed axis, the number of positions of the text
    /// tower (`context_length` of open_clip's configuration, `max_position_embeddings` of `config.json`), and the first
    /// of these that is stated: `max_seq_length` of `sentence_bert_config.json`, `model_max_length` of
    /// `tokenizer_config.json`, truncation and fixed padding of `tokenizer.json`. If none is stated, the family's usual
    /// length applies.
    ///
    /// The padding id is 0 for open_clip's own tokenizer, else the `pad_token` of `tokenizer_config.json`, else that of
    /// `tokenizer.json`. `config.json` is ignored: CLIP's own states pad 1 and EOS 2, although both are 49407.
    ///
    /// # Errors
    /// [`Kind::MissingFile`] if there are no tokenizer files, [`Kind::BadModel`] if they can't be used.
    pub fn load(model: &Model, fixed_length: Option<usize>, warnings: &mut Vec<Error>) -> Result<Self> {
        let source = TokenizerFiles::of(model)?;
        let unusable = |e: &dyn std::fmt::Display| {
            Error::new(Kind::BadModel, format!("tokenizer \"{}\" cannot be used", source.file.display()))
                .detail(format!("The tokenizers library says: {e}."))
        };
        let (mut tokenizer, marks) = without_panic(|| unusable(&"it gave up on the file"), || source.load())?;
        let stated = &source.config;
        let config = Config::read(&model.text_directory);

        let (context_length, context_source) =
            context(model, &tokenizer, &source.config, &config, fixed_length, warnings);

        let pad_token = stated["pad_token"].as_str().or_else(|| stated["pad_token"]["content"].as_str());
        let own_padding = || {
            let by_name = pad_token.and_then(|token| tokenizer.token_to_id(token));
            by_name.or_else(|| tokenizer.get_padding().map(|p| p.pad_id)).unwrap_or(0)
        };
        // Some exports of open_clip's models use another tokenizer without naming it.
        let simple = config.has_simple_tokenizer() && tokenizer.token_to_id("<|startoftext|>").is_some();
        let pad_id = if simple { 0 } else { own_padding() };
        let pad_left = match stated["padding_side"].as_str() {
            Some(side) => side == "left",
            None => tokenizer.get_padding().is_some_and(|p| matches!(p.direction, PaddingDirection::Left)),
        };
        let strips = config.tokenizer_options()["strip_sep_token"].as_bool() == Some(true);
        let separator = stated["sep_token"].as_str().or_else(|| stated["sep_token"]["content"].as_str());
        let stripped = if strips { separator.and_then(|token| tokenizer.token_to_id(token)) } else { None };

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
        // open_clip's own tokenizer has other names for its special tokens, so these names in a text are ordinary text.
        if simple {
            tokenizer.set_encode_special_tokens(true);
        }
        let cleaning = match Cleaning::of(&config, simple, stated) {
            Cleaning::None if sentence_config(model)["do_lower_case"].as_bool() == Some(true) => Cleaning::Lower,
            cleaning => cleaning,
        };
        let prompt = prompt::default(&model.text_directory)?;
        let mut prompt_length = 0;
        if let Some(prompt) = &prompt {
            let encoding = without_panic(
                || unusable(&"it gave up on the model's prompt"),
                || tokenizer.encode(&*prepared(cleaning, marks, prompt), true).map_err(|e| unusable(&e)),
            )?;
            let ends = encoding.get_special_tokens_mask().last() == Some(&1);
            prompt_length = encoding.get_ids().len() - usize::from(ends);
            if prompt_length + usize::from(ends) >= context_length {
                return Err(unusable(&format!(
                    "a context of {context_length} tokens leaves no room after the model's prompt of {prompt_length}"
                )));
            }
        }
        let runs = OnceCell::new();
        Ok(Self {
            tokenizer,
            context_length,
            context_source,
            pad_id,
            pad_left,
            special,
            cleaning,
            marks,
            prompt,
            prompt_length,
            stripped,
            runs,
        })
    }

    /// Pads the ids of a text to `length`. Longer ids are not changed.
    pub fn pad(&self, tokens: &mut Tokens, length: usize) {
        let missing = length.saturating_sub(tokens.ids.len());
        if self.pad_left {
            tokens.ids.splice(0..0, std::iter::repeat_n(self.pad_id, missing));
        } else {
            tokens.ids.resize(tokens.ids.len() + missing, self.pad_id);
        }
    }

    /// The ids of a text, including special ids. A text longer than the context is truncated before the special tokens
    /// are added, so that the end token stays last.
    ///
    /// # Errors
    /// The errors of [`Self::encode_checked`].
    pub fn encode(&self, text: &str) -> Result<Tokens> {
        self.encode_checked(text, &mut || ())
    }

    /// Like [`Self::encode`], and calls `check_interrupts` every few milliseconds, which may unwind.
    ///
    /// The tokenizers library takes about 100 bytes of memory and a microsecond for each byte of text. A long text is
    /// therefore tokenized from the start in growing pieces, until the tokens that are certain to equal those of the
    /// whole text fill the context; see `tokenize.rs` and `repetitions.rs`.
    ///
    /// # Errors
    /// [`Kind::InvalidInput`] for a blank text, or one that the library refuses; [`Kind::LimitExceeded`] if the longest
    /// piece does not fill the context; [`Kind::OutOfMemory`].
    pub fn encode_checked(&self, text: &str, check_interrupts: &mut dyn FnMut()) -> Result<Tokens> {
        let refused = || {
            Error::new(Kind::InvalidInput, "text cannot be tokenized").detail("The tokenizers library gave up on it.")
        };
        let check = RefCell::new(check_interrupts);
        let (first, last) = (tokenize::first(self.context_length), tokenize::last(self.context_length));
        let given = text;
        let (prompted, shortened);
        let text = match &self.prompt {
            None => text,
            Some(_) if text.trim().is_empty() => return Err(empty(text)),
            Some(prompt) => {
                let bytes = prompt.len() + text.len();
                let mut both = String::new();
                both.try_reserve_exact(bytes).map_err(|_| Error::out_of_memory(bytes))?;
                both.push_str(prompt);
                both.push_str(text);
                prompted = both;
                prompted.as_str()
            }
        };
        let (text, ends) = if text.len() <= first {
            (text, true)
        } else {
            shortened = self.runs().shorten(text, last, &self.tokenizer, &|| check.borrow_mut()())?;
            (shortened.text.as_str(), shortened.whole)
        };
        let mut size = first;
        loop {
            let piece = tokenize::cut(text, size)?;
            let whole = ends && piece.len() == text.len();
            let cleaned = prepared(self.cleaning, self.marks, piece);
            let piece = &*cleaned;
            // The library panics on some texts. An interrupt that unwinds must be distinguished from that.
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
                without_panic(refused, || tokenize::encode(&self.tokenizer, piece, whole, self.context_length, &look));
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

    /// Truncates to the context and adds the special tokens.
    fn finish(&self, encoding: Encoding, text: &str) -> Result<Tokens> {
        let refused = |e: tokenizers::Error| {
            Error::new(Kind::InvalidInput, "text cannot be tokenized")
                .detail(format!("The tokenizers library says: {e}."))
        };
        let encoding = self.tokenizer.post_process(encoding, None, true).map_err(refused)?;
        let mut ids = encoding.get_ids().to_vec();
        if let Some(stripped) = self.stripped {
            ids.iter_mut().filter(|id| **id == stripped).for_each(|id| *id = 0);
        }
        if ids.len() <= self.special {
            return Err(empty(text));
        }
        Ok(Tokens { truncated: !encoding.get_overflowing().is_empty(), length: ids.len(), ids })
    }

    /// How the tokenizer treats long runs. It is determined at the first long text.
    fn runs(&self) -> &RunShortener {
        self.runs.get_or_init(|| RunShortener::of(&self.tokenizer, self.context_length))
    }
}

/// A text as the tokenizer needs it: cleaned, and marked if necessary.
fn prepared(cleaning: Cleaning, marks: bool, text: &str) -> Cow<'_, str> {
    let cleaned = cleaning.clean(text);
    if marks { Cow::Owned(siglip::marked(&cleaned)) } else { cleaned }
}

/// sentence-transformers' configuration of a text tower, or null.
fn sentence_config(model: &Model) -> serde_json::Value {
    ["sentence_bert_config.json", "0_Transformer/sentence_bert_config.json"]
        .into_iter()
        .find_map(|name| read_json(&model.text_directory.join(name)).ok())
        .unwrap_or_default()
}

/// The context length and its source, for messages; see [`TextEncoder::load`].
fn context(
    model: &Model,
    tokenizer: &Tokenizer,
    stated: &serde_json::Value,
    config: &Config,
    fixed_length: Option<usize>,
    warnings: &mut Vec<Error>,
) -> (usize, String) {
    let fixed_padding = tokenizer.get_padding().and_then(|padding| match padding.strategy {
        PaddingStrategy::Fixed(length) => Some(length),
        PaddingStrategy::BatchLongest => None,
    });
    let sentences = sentence_config(model)["max_seq_length"].as_u64().map(|n| n as usize);
    // Exporters write 1e30 for "no limit".
    let most = stated["model_max_length"].as_f64().filter(|n| (1.0..1e6).contains(n)).map(|n| n as usize);
    // The truncation and padding in tokenizer.json are those of the last call before the file was saved. The libraries
    // replace them by the values in the files beside it.
    let unstated = sentences.or(most).is_none();
    let last_call = |length: Option<usize>| length.filter(|_| unstated);
    let candidates = [
        ("the graph", fixed_length),
        ("tokenizer_config.json", most.filter(|_| sentences.is_none())),
        ("tokenizer.json, truncation", last_call(tokenizer.get_truncation().map(|t| t.max_length))),
        ("tokenizer.json, padding", last_call(fixed_padding)),
        ("sentence_bert_config.json", sentences),
        ("the configuration's positions", config.positions()),
    ];
    let least = candidates.into_iter().filter_map(|(from, length)| Some((length?, from))).min_by_key(|(n, _)| *n);
    match least {
        Some((length, from)) => (length, format!("by {from}")),
        None => {
            let (length, known) = config.usual_context();
            if !known {
                warnings.push(
                    Error::new(Kind::MissingFile, format!("model \"{}\" does not say its context length", model.name))
                        .detail(format!("Texts are cut to {length} tokens, as CLIP's are."))
                        .hint("Put \"model_max_length\" into its tokenizer_config.json."),
                );
            }
            (length, if known { "as its family has it".to_owned() } else { "a guess".to_owned() })
        }
    }
}

fn empty(text: &str) -> Error {
    let detail = match text.len() {
        0 => "It has no characters.".to_owned(),
        n => format!("Its {n} bytes are nothing but white space to the tokenizer."),
    };
    Error::new(Kind::InvalidInput, "text is empty").detail(detail).hint("Use NULL where there is no text.")
}

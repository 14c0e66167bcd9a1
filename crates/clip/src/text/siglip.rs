//! SigLIP's tokenizer, with the results of its class in transformers, versions 4 and 5. The class is a slow tokenizer:
//! it reads `spiece.model`, SentencePiece's file, and ignores a `tokenizer.json`, which scripts create.
//!
//! Such a `tokenizer.json` differs from the class for texts that contain a special token: it has other special tokens,
//! and puts a space before the text that follows one. The resulting vectors have a cosine of 0.70 to 0.98 to the
//! class's (random weights).
//!
//! `spiece.model` is a protobuf message: field 1 is a piece (text, score, type), field 2 has the training parameters,
//! field 3 the normalization.

use std::path::Path;

use prost::Message;
use serde_json::{Value, json};
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{Precompiled, Replace, Sequence, Strip};
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::{NormalizerWrapper, Tokenizer};

use crate::error::{Error, Kind, Result};
use crate::regular_file;

/// SentencePiece's mark for a space.
const SPACE: &str = "▁";

/// Maximum bytes of the file. SigLIP's has 0.8 MB, the multilingual one 4 MB.
const LONGEST: u64 = 64 << 20;

/// SentencePiece.Type
const USER_DEFINED: i32 = 4;
const UNKNOWN: i32 = 2;
/// TrainerSpec.ModelType
const UNIGRAM: i32 = 1;

/// The parts of sentencepiece_model.proto that this module uses.
#[derive(Clone, PartialEq, Message)]
struct ModelProto {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<Piece>,
    #[prost(message, optional, tag = "2")]
    trainer: Option<TrainerSpec>,
    #[prost(message, optional, tag = "3")]
    normalizer: Option<NormalizerSpec>,
}

#[derive(Clone, PartialEq, Message)]
struct Piece {
    #[prost(string, optional, tag = "1")]
    text: Option<String>,
    #[prost(float, optional, tag = "2")]
    score: Option<f32>,
    #[prost(int32, optional, tag = "3")]
    kind: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct TrainerSpec {
    #[prost(int32, optional, tag = "3")]
    model_type: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct NormalizerSpec {
    #[prost(bytes = "vec", optional, tag = "2")]
    precompiled_charsmap: Option<Vec<u8>>,
}

/// Whether a `tokenizer_config.json` names SigLIP's class.
pub(super) fn is_class(config: &Value) -> bool {
    config["tokenizer_class"].as_str().is_some_and(|class| class.trim_end_matches("Fast") == "SiglipTokenizer")
}

/// The tokens that the class looks for in a text before it tokenizes the rest. Control pieces of SentencePiece, such as
/// `<s>`, are not among them.
fn special_tokens(config: &Value) -> Vec<String> {
    let name = |token: &Value| token.as_str().or_else(|| token["content"].as_str()).map(str::to_owned);
    let own = [("eos_token", "</s>"), ("unk_token", "<unk>"), ("pad_token", "</s>")];
    let own = own.iter().map(|(key, usual)| name(&config[*key]).unwrap_or_else(|| (*usual).to_owned()));
    let stated = ["bos_token", "sep_token", "cls_token", "mask_token"].iter().filter_map(|key| name(&config[*key]));
    let more = config["additional_special_tokens"].as_array().into_iter().flatten().filter_map(name);
    let added = config["added_tokens_decoder"].as_object().into_iter().flat_map(|tokens| tokens.values());
    let mut tokens: Vec<String> = own.chain(stated).chain(more).chain(added.filter_map(name)).collect();
    tokens.sort();
    tokens.dedup();
    tokens
}

/// An entry of `added_tokens`. White space around the token is removed from the neighbouring texts.
fn added_token(id: usize, content: &str, special: bool) -> Value {
    json!({"id": id, "content": content, "single_word": false, "lstrip": true, "rstrip": true, "normalized": false,
        "special": special})
}

/// Puts a space before the first word, as the other words have one. The class does this before it looks for special
/// tokens, so a text after a special token has none.
pub(super) fn marked(text: &str) -> String {
    let mut marked = String::with_capacity(SPACE.len() + text.len());
    marked.push_str(SPACE);
    marked.push_str(&text.replace(SPACE, " "));
    marked
}

/// The tokenizer of a `tokenizer.json` with the class's special tokens, and whether it needs texts that are [`marked`].
///
/// # Errors
/// If the library can't use it.
pub(super) fn from_json(mut content: Value, config: &Value) -> tokenizers::Result<(Tokenizer, bool)> {
    let marks = content["model"]["type"] == "Unigram" && content["pre_tokenizer"]["type"] == "Metaspace";
    let id = |token: &String| {
        let pieces = content["model"]["vocab"].as_array();
        pieces.and_then(|pieces| pieces.iter().position(|piece| piece[0].as_str() == Some(token)))
    };
    let tokens = special_tokens(config);
    let added: Vec<Value> = tokens.iter().filter_map(|token| Some(added_token(id(token)?, token, true))).collect();
    if marks && !added.is_empty() {
        content["added_tokens"] = added.into();
    }
    let mut tokenizer = content.to_string().parse()?;
    as_the_class(&mut tokenizer, None, marks)?;
    Ok((tokenizer, marks))
}

/// Sets the steps for the text between special tokens: the class removes ASCII punctuation, collapses white space, and
/// leaves the rest to SentencePiece with its `rules`; without rules, the tokenizer's own normalizer follows. With
/// `marks`, the texts are [`marked`].
fn as_the_class(tokenizer: &mut Tokenizer, rules: Option<NormalizerWrapper>, marks: bool) -> tokenizers::Result<()> {
    let replace = |pattern: &str, content: &str| {
        Replace::new(ReplacePattern::Regex(pattern.to_owned()), content).map(NormalizerWrapper::from)
    };
    // Python's `\s` includes four ASCII separators.
    let collapsed = replace(r"[\s\x1C-\x1F]+", " ")?;
    let mut steps = vec![replace(r"[!-/:-@\[-`{-~]", "")?, collapsed, Strip::new(true, true).into()];
    steps.extend(rules.or_else(|| tokenizer.get_normalizer().cloned()));
    if marks {
        // SigLIP's rules turn the mark and zero-width characters into spaces. SentencePiece then collapses spaces, but
        // keeps one at the beginning. A mark directly before a special token disappears.
        steps.extend([replace(" +", " ")?, Strip::new(false, true).into(), replace("^▁$", "")?]);
        tokenizer.with_pre_tokenizer(Some(Metaspace::new('▁', PrependScheme::Never, true)));
    }
    tokenizer.with_normalizer(Some(Sequence::new(steps)))?;
    Ok(())
}

/// The tokenizer of a `spiece.model`.
///
/// # Errors
/// [`Kind::BadModel`] if the file is not in this format.
pub(super) fn from_pieces(file: &Path, config: &Value) -> Result<Tokenizer> {
    let bad = |why: String| {
        Error::new(Kind::BadModel, format!("tokenizer \"{}\" cannot be used", file.display())).detail(why)
    };
    let length = std::fs::metadata(file).map_err(|e| bad(format!("{e}.")))?.len();
    if length > LONGEST {
        return Err(bad(format!("It has {length} bytes; SentencePiece's models have a few million.")));
    }
    let bytes = regular_file::read(file).map_err(|e| bad(format!("{e}.")))?;
    let broken = || bad("It is not a model of SentencePiece.".to_owned());
    let ModelProto { pieces, trainer, normalizer } = ModelProto::decode(bytes.as_slice()).map_err(|_| broken())?;
    let kind = trainer.and_then(|trainer| trainer.model_type).unwrap_or(UNIGRAM);
    let rules = normalizer.and_then(|normalizer| normalizer.precompiled_charsmap).unwrap_or_default();
    if kind != UNIGRAM {
        return Err(bad("Its kind is not unigram, as SigLIP's is.".to_owned()));
    }
    let place = |text: &str| pieces.iter().position(|piece| piece.text() == text);
    let unknown = pieces.iter().position(|piece| piece.kind() == UNKNOWN).ok_or_else(broken)?;
    let end = place("</s>").ok_or_else(broken)?;
    let tokens = special_tokens(config);
    let added: Vec<_> = (pieces.iter().enumerate())
        .map(|(id, piece)| (id, piece, tokens.iter().any(|token| token == piece.text())))
        .filter(|(_, piece, special)| *special || piece.kind() == USER_DEFINED)
        .map(|(id, piece, special)| added_token(id, piece.text(), special))
        .collect();
    let vocabulary: Vec<_> = pieces.iter().map(|piece| json!([piece.text(), f64::from(piece.score())])).collect();
    let content = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [end], "tokens": ["</s>"]}}},
        "decoder": null,
        "model": {"type": "Unigram", "unk_id": unknown, "vocab": vocabulary, "byte_fallback": false},
    });
    let library = |e: &dyn std::fmt::Display| bad(format!("The tokenizers library says: {e}."));
    let mut tokenizer: Tokenizer = serde_json::from_value(content).map_err(|e| library(&e))?;
    let rules = (!rules.is_empty()).then(|| Precompiled::from(&rules)).transpose().map_err(|e| library(&e))?;
    as_the_class(&mut tokenizer, rules.map(NormalizerWrapper::from), true).map_err(|e| library(&e))?;
    Ok(tokenizer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_model_of_sentencepiece_is_refused() {
        let file = std::env::temp_dir().join(format!("clip-spiece-{}.model", std::process::id()));
        for content in [b"".as_slice(), b"no message", &[0x0A, 0xFF, 0xFF, 0xFF, 0xFF, 0x0F], &[0x0A, 0x02, 0x0A, 0x00]]
        {
            std::fs::write(&file, content).unwrap();
            let error = from_pieces(&file, &Value::Null).err().unwrap();
            assert_eq!(
                (error.kind, error.detail.unwrap().as_str()),
                (Kind::BadModel, "It is not a model of SentencePiece.")
            );
        }
        std::fs::remove_file(file).unwrap();
    }
}

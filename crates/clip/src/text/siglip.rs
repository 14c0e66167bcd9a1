//! SigLIP's tokenizer from `spiece.model`, the file of SentencePiece: transformers has no fast class for it, so
//! SigLIP's repositories may have no `tokenizer.json`, and no command of transformers creates one.
//!
//! The file is a protobuf message: field 1 is a piece (text, score, type), field 2 the training parameters, field 3 the
//! normalization.

use std::path::Path;

use prost::Message;
use serde_json::json;
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{Lowercase, Precompiled, Replace, Sequence, Strip};
use tokenizers::{NormalizerWrapper, Tokenizer};

use crate::error::{Error, Kind, Result};

/// SigLIP's file has 0.8 MB, the multilingual one 4 MB.
const LONGEST: u64 = 64 << 20;

/// SentencePiece.Type of pieces that occur literally in a text, such as `</s>`: control pieces and user-defined pieces.
const CONTROL: i32 = 3;
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

/// SigLIP's tokenizer, built as by its class in transformers. `lower` is the class's `do_lower_case`.
///
/// # Errors
/// [`Kind::BadModel`] if the file is not in this format.
pub(super) fn siglip(file: &Path, lower: bool) -> Result<Tokenizer> {
    let bad = |why: String| {
        Error::new(Kind::BadModel, format!("tokenizer \"{}\" cannot be used", file.display())).detail(why)
    };
    let length = std::fs::metadata(file).map_err(|e| bad(format!("{e}.")))?.len();
    if length > LONGEST {
        return Err(bad(format!("It has {length} bytes; SentencePiece's models have a few million.")));
    }
    let bytes = std::fs::read(file).map_err(|e| bad(format!("{e}.")))?;
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
    let special: Vec<_> = (pieces.iter().enumerate())
        .filter(|(_, piece)| [CONTROL, USER_DEFINED, UNKNOWN].contains(&piece.kind()))
        .map(|(id, piece)| {
            json!({"id": id, "content": piece.text(), "single_word": false, "lstrip": true, "rstrip": true,
                "normalized": false, "special": piece.kind() != USER_DEFINED})
        })
        .collect();
    let vocabulary: Vec<_> = pieces.iter().map(|piece| json!([piece.text(), f64::from(piece.score())])).collect();
    let content = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": special,
        "normalizer": null,
        // The first word of a text is written like other words, with a space before it.
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": true},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [end], "tokens": ["</s>"]}}},
        "decoder": null,
        "model": {"type": "Unigram", "unk_id": unknown, "vocab": vocabulary, "byte_fallback": false},
    });
    let library = |e: &dyn std::fmt::Display| bad(format!("The tokenizers library says: {e}."));
    let mut tokenizer: Tokenizer = serde_json::from_value(content).map_err(|e| library(&e))?;
    let replace = |pattern: &str, content: &str| {
        Replace::new(ReplacePattern::Regex(pattern.to_owned()), content).map(NormalizerWrapper::from)
    };
    let mut steps: Vec<NormalizerWrapper> = Vec::new();
    if lower {
        steps.push(Lowercase.into());
    }
    steps.push(replace(r"[!-/:-@\[-`{-~]", "").map_err(|e| library(&e))?);
    steps.push(replace(r"\s+", " ").map_err(|e| library(&e))?);
    steps.push(Strip::new(true, true).into());
    if !rules.is_empty() {
        steps.push(Precompiled::from(&rules).map_err(|e| library(&e))?.into());
    }
    tokenizer.with_normalizer(Some(Sequence::new(steps))).map_err(|e| library(&e))?;
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
            let error = siglip(&file, true).err().unwrap();
            assert_eq!(
                (error.kind, error.detail.unwrap().as_str()),
                (Kind::BadModel, "It is not a model of SentencePiece.")
            );
        }
        std::fs::remove_file(file).unwrap();
    }
}

//! SigLIP's tokenizer from `spiece.model`, the file of SentencePiece: transformers has no fast class for it, so
//! SigLIP's repositories may have no `tokenizer.json`, and no command of transformers creates one.
//!
//! The file is a protobuf message: field 1 is a piece (text, score, type), field 2 the training parameters, field 3 the
//! normalization.

use std::path::Path;

use serde_json::json;
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{Lowercase, Precompiled, Replace, Sequence, Strip};
use tokenizers::{NormalizerWrapper, Tokenizer};

use crate::error::{Error, Kind, Result};

/// SigLIP's file has 0.8 MB, the multilingual one 4 MB.
const LONGEST: u64 = 64 << 20;

/// Types of pieces that occur literally in a text, such as `</s>`: control pieces and user-defined pieces.
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;
const UNKNOWN: u64 = 2;
const UNIGRAM: u64 = 1;

struct Piece {
    text: String,
    score: f64,
    kind: u64,
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
    let (mut pieces, mut kind, mut rules) = (Vec::new(), UNIGRAM, Vec::new());
    for (number, field) in fields(&bytes).ok_or_else(broken)? {
        match (number, field) {
            (1, Field::Bytes(piece)) => pieces.push(read_piece(piece).ok_or_else(broken)?),
            (2, Field::Bytes(training)) => {
                for (number, field) in fields(training).ok_or_else(broken)? {
                    if let (3, Field::Number(model)) = (number, field) {
                        kind = model;
                    }
                }
            }
            (3, Field::Bytes(normalization)) => {
                for (number, field) in fields(normalization).ok_or_else(broken)? {
                    if let (2, Field::Bytes(table)) = (number, field) {
                        rules = table.to_vec();
                    }
                }
            }
            _ => {}
        }
    }
    if kind != UNIGRAM {
        return Err(bad("Its kind is not unigram, as SigLIP's is.".to_owned()));
    }
    let place = |text: &str| pieces.iter().position(|piece| piece.text == text);
    let unknown = pieces.iter().position(|piece| piece.kind == UNKNOWN).ok_or_else(broken)?;
    let end = place("</s>").ok_or_else(broken)?;
    let special: Vec<_> = (pieces.iter().enumerate())
        .filter(|(_, piece)| [CONTROL, USER_DEFINED, UNKNOWN].contains(&piece.kind))
        .map(|(id, piece)| {
            json!({"id": id, "content": piece.text, "single_word": false, "lstrip": true, "rstrip": true,
                "normalized": false, "special": piece.kind != USER_DEFINED})
        })
        .collect();
    let vocabulary: Vec<_> = pieces.iter().map(|piece| json!([piece.text, piece.score])).collect();
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

fn read_piece(bytes: &[u8]) -> Option<Piece> {
    let mut piece = Piece { text: String::new(), score: 0.0, kind: 1 };
    for (number, field) in fields(bytes)? {
        match (number, field) {
            (1, Field::Bytes(text)) => piece.text = std::str::from_utf8(text).ok()?.to_owned(),
            (2, Field::Four(score)) => piece.score = f64::from(f32::from_le_bytes(score)),
            (3, Field::Number(kind)) => piece.kind = kind,
            _ => {}
        }
    }
    Some(piece)
}

enum Field<'a> {
    Number(u64),
    Four([u8; 4]),
    Bytes(&'a [u8]),
}

/// The fields of a message by their numbers; None if it is not a message.
fn fields(mut bytes: &[u8]) -> Option<Vec<(u64, Field<'_>)>> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        let field = match key & 7 {
            0 => Field::Number(varint(&mut bytes)?),
            1 => {
                bytes = bytes.get(8..)?;
                continue;
            }
            2 => {
                let length = usize::try_from(varint(&mut bytes)?).ok()?;
                let (content, rest) = bytes.split_at_checked(length)?;
                bytes = rest;
                Field::Bytes(content)
            }
            5 => {
                let (content, rest) = bytes.split_first_chunk::<4>()?;
                bytes = rest;
                Field::Four(*content)
            }
            _ => return None,
        };
        found.push((key >> 3, field));
    }
    Some(found)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7F) << shift;
        if *byte < 0x80 {
            return Some(value);
        }
    }
    None
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

//! The files of a tokenizer: `tokenizer.json`, or the files from which it can be built, which are CLIP's `vocab.json`
//! and `merges.txt`, or SigLIP's `spiece.model`.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tokenizers::Tokenizer;

use crate::error::{Error, Kind, Result};
use crate::model::{Model, read, read_json};
use crate::text::siglip;

const START: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";

/// The kind of a tokenizer's file.
enum Source {
    Json,
    /// CLIP's vocabulary; the merges are in a second file.
    Clip(PathBuf),
    /// SigLIP's `spiece.model`.
    Siglip,
}

/// The files of a tokenizer.
pub(super) struct TokenizerFiles {
    /// `tokenizer.json`, `vocab.json` or `spiece.model`.
    pub file: PathBuf,
    kind: Source,
    /// `tokenizer_config.json`, or null.
    pub config: Value,
}

impl TokenizerFiles {
    /// Finds the tokenizer files of a model.
    ///
    /// # Errors
    /// [`Kind::MissingFile`] if there are none. If there are files of a slow tokenizer, the hint has the command that
    /// converts them.
    pub(super) fn of(model: &Model) -> Result<Self> {
        let config_beside = |file: &Path| read_json(&file.with_file_name("tokenizer_config.json")).unwrap_or_default();
        if let Some(file) = &model.tokenizer {
            return Ok(Self { file: file.clone(), kind: Source::Json, config: config_beside(file) });
        }
        let folders = ["", "textual", "tokenizer", "onnx", "0_CLIPModel", "0_Transformer"];
        let folders = || folders.iter().map(|folder| model.text_directory.join(folder));
        if let Some(folder) = folders().find(|f| f.join("vocab.json").is_file() && f.join("merges.txt").is_file()) {
            let (file, merges) = (folder.join("vocab.json"), folder.join("merges.txt"));
            let config = config_beside(&file);
            return Ok(Self { file, kind: Source::Clip(merges), config });
        }
        if let Some(file) = folders().map(|folder| folder.join("spiece.model")).find(|file| file.is_file()) {
            let config = config_beside(&file);
            if siglip::is_class(&config) {
                return Ok(Self { file, kind: Source::Siglip, config });
            }
        }
        let missing = Error::new(Kind::MissingFile, format!("model \"{}\" has no tokenizer.json", model.name));
        let others = ["spiece.model", "sentencepiece.bpe.model", "tokenizer.model", "vocab.txt"];
        let other = folders().find_map(|folder| others.iter().map(|name| folder.join(name)).find(|f| f.is_file()));
        Err(match other {
            Some(file) => {
                let folder = file.parent().unwrap_or(&model.directory).display().to_string();
                missing
                    .detail(format!("It has \"{}\", which is not read.", file.display()))
                    .hint(format!(
                        "Convert it with transformers and sentencepiece: python3 -c \"from transformers import AutoTokenizer; \
                         AutoTokenizer.from_pretrained('{folder}', use_fast=True).save_pretrained('{folder}')\""
                    ))
            }
            None => missing
                .detail(format!("Looked in \"{}\".", model.text_directory.display()))
                .hint("Download tokenizer.json and tokenizer_config.json of the model beside it."),
        })
    }

    /// The tokenizer, and whether it needs texts that are [`siglip::marked`].
    ///
    /// # Errors
    /// [`Kind::BadModel`] if the files can't be used.
    pub(super) fn load(&self) -> Result<(Tokenizer, bool)> {
        let unusable = |e: tokenizers::Error| {
            Error::new(Kind::BadModel, format!("tokenizer \"{}\" cannot be used", self.file.display()))
                .detail(format!("The tokenizers library says: {e}."))
        };
        match &self.kind {
            Source::Json if siglip::is_class(&self.config) => {
                siglip::from_json(read_json(&self.file)?, &self.config).map_err(unusable)
            }
            Source::Json => Ok((Tokenizer::from_file(&self.file).map_err(unusable)?, false)),
            Source::Siglip => Ok((siglip::from_pieces(&self.file, &self.config)?, true)),
            Source::Clip(merges) => {
                let content = clip_tokenizer(&self.file, &read_json(&self.file)?, &read(merges)?)?;
                Ok((serde_json::from_value(content).map_err(|e| unusable(Box::new(e)))?, false))
            }
        }
    }
}

/// CLIP's `tokenizer.json`, as transformers builds it from the two files (`CLIPConverter`). The BPE of other models
/// splits words differently, and no file states how.
fn clip_tokenizer(file: &Path, vocabulary: &Value, merges: &str) -> Result<Value> {
    let (Some(start), Some(end)) = (vocabulary[START].as_u64(), vocabulary[END].as_u64()) else {
        return Err(Error::new(Kind::MissingFile, format!("tokenizer \"{}\" is not CLIP's", file.display()))
            .detail(format!("Its vocabulary lacks {START} or {END}, and how others split words stands in no file."))
            .hint("Download or make a tokenizer.json."));
    };
    let merges: Vec<&str> = merges.lines().filter(|line| !line.starts_with("#version") && !line.is_empty()).collect();
    let special = |id: u64, content: &str, normalized: bool| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": normalized, "special": true})
    };
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [special(start, START, true), special(end, END, false)],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "NFC"},
            {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
            {"type": "Lowercase"},
        ]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {
                "type": "Split",
                "pattern": {"Regex": r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"},
                "behavior": "Removed",
                "invert": true,
            },
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        ]},
        "post_processor": {"type": "RobertaProcessing", "sep": [END, end], "cls": [START, start],
            "trim_offsets": false, "add_prefix_space": false},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": END, "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>", "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocabulary, "merges": merges},
    }))
}

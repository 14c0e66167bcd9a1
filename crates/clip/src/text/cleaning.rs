//! Cleans texts as the libraries' tokenizer classes do in code, before `tokenizer.json` applies.
//!
//! transformers' classes for SigLIP convert to lower case and remove punctuation; open_clip cleans every text with
//! ftfy, unescapes HTML twice, and collapses white space. This module implements all of ftfy except the repair of texts
//! that were decoded in the wrong encoding ("mojibake").

use std::borrow::Cow;

use serde_json::Value;
use unicode_normalization::UnicodeNormalization as _;

use crate::model::config::{Config, Family};

/// How a text is cleaned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cleaning {
    /// No cleaning.
    None,
    /// Lower case: SigLIP 2 in transformers, and sentence-transformers with `do_lower_case`.
    Lower,
    /// SigLIP in transformers: lower case unless switched off. The tokenizer removes punctuation around special tokens
    /// itself.
    Siglip { lower: bool },
    /// open_clip: ftfy, HTML entities, white space collapsed.
    OpenClip,
    /// Like `OpenClip`, and lower case, for open_clip's own tokenizer.
    OpenClipLower,
    /// Like `OpenClip`, without punctuation and in lower case, for open_clip's SigLIP.
    OpenClipCanonical,
}

impl Cleaning {
    /// Chooses by open_clip's options (`simple`: it uses its own tokenizer), or by the class that
    /// `tokenizer_config.json` names.
    pub(super) fn of(config: &Config, simple: bool, tokenizer: &Value) -> Self {
        if config.family == Family::OpenClip {
            return match config.tokenizer_options()["clean"].as_str() {
                Some("canonicalize") => Self::OpenClipCanonical,
                Some("lower") => Self::OpenClipLower,
                Some("whitespace") => Self::OpenClip,
                _ if simple => Self::OpenClipLower,
                _ if config.names_tokenizer() => Self::OpenClip,
                // Immich's export of M-CLIP has a configuration in open_clip's format for a model of transformers.
                _ => Self::None,
            };
        }
        let class = tokenizer["tokenizer_class"].as_str().unwrap_or_default();
        let lower = tokenizer["do_lower_case"].as_bool();
        let siglip = config.family == Family::Siglip;
        match class.trim_end_matches("Fast") {
            "SiglipTokenizer" => Self::Siglip { lower: lower.unwrap_or(true) },
            // transformers 5 reads SigLIP 2's files with this class, regardless of the class that they name.
            "Siglip2Tokenizer" => {
                if lower == Some(false) {
                    Self::None
                } else {
                    Self::Lower
                }
            }
            "GemmaTokenizer" if siglip => {
                if lower == Some(false) {
                    Self::None
                } else {
                    Self::Lower
                }
            }
            _ => Self::None,
        }
    }

    pub(super) fn clean(self, text: &str) -> Cow<'_, str> {
        match self {
            Self::None => Cow::Borrowed(text),
            Self::Siglip { lower: false } => Cow::Borrowed(text),
            Self::Lower | Self::Siglip { lower: true } => Cow::Owned(text.to_lowercase()),
            Self::OpenClip => Cow::Owned(collapse(&basic(text))),
            Self::OpenClipLower => Cow::Owned(collapse(&basic(text)).to_lowercase()),
            Self::OpenClipCanonical => Cow::Owned(canonicalize(&basic(text))),
        }
    }
}

impl std::fmt::Display for Cleaning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "as they are",
            Self::Lower => "in lower case",
            Self::Siglip { lower: true } => "in lower case, without punctuation",
            Self::Siglip { lower: false } => "without punctuation",
            Self::OpenClip => "cleaned as open_clip does",
            Self::OpenClipLower => "cleaned as open_clip does, in lower case",
            Self::OpenClipCanonical => "cleaned as open_clip does, in lower case, without punctuation",
        })
    }
}

/// Replaces any run of white space by one space, and removes it at both ends.
fn collapse(text: &str) -> String {
    let mut collapsed = String::with_capacity(text.len());
    for word in text.split(is_space).filter(|word| !word.is_empty()) {
        if !collapsed.is_empty() {
            collapsed.push(' ');
        }
        collapsed.push_str(word);
    }
    collapsed
}

/// Like Python's `str.isspace`, which includes four ASCII separators.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1C}'..='\u{1F}').contains(&c)
}

/// open_clip's `canonicalize_text`: underscores become spaces, ASCII punctuation is removed, letters are lower-cased.
fn canonicalize(text: &str) -> String {
    let text: String = text.replace('_', " ").chars().filter(|c| !c.is_ascii_punctuation()).collect();
    collapse(&text.to_lowercase())
}

/// open_clip's `basic_clean`: ftfy's `fix_text`, then HTML is unescaped twice.
fn basic(text: &str) -> String {
    let fixed = fix_text(text);
    let once = htmlize::unescape(fixed.as_str());
    htmlize::unescape(once.as_ref()).trim_matches(is_space).to_owned()
}

/// ftfy's steps in its order, except `fix_encoding`.
fn fix_text(text: &str) -> String {
    if text.is_ascii()
        && !text.contains(|c: char| c == '&' || c == '\r' || (c.is_ascii_control() && c != '\n' && c != '\t'))
    {
        return text.to_owned();
    }
    // ftfy treats a text with a tag as HTML and does not change its entities.
    let unescaped = if text.contains('<') { Cow::Borrowed(text) } else { htmlize::unescape(text) };
    let mut fixed = String::with_capacity(unescaped.len());
    let mut rest = unescaped.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            // Removes terminal escape sequences, such as colours: ESC [ numbers letter.
            '\u{1B}' if rest.peek() == Some(&'[') => {
                let mut ahead = rest.clone();
                ahead.next();
                while ahead.peek().is_some_and(|c| c.is_ascii_digit() || *c == ';') {
                    ahead.next();
                }
                if ahead.next().is_some_and(|c| c.is_ascii_alphabetic()) {
                    rest = ahead;
                }
            }
            'ĳ' => fixed.push_str("ij"),
            'Ĳ' => fixed.push_str("IJ"),
            'ŉ' => fixed.push_str("ʼn"),
            'Ǆ' => fixed.push_str("DŽ"),
            'ǅ' => fixed.push_str("Dž"),
            'ǆ' => fixed.push_str("dž"),
            'Ǉ' => fixed.push_str("LJ"),
            'ǈ' => fixed.push_str("Lj"),
            'ǉ' => fixed.push_str("lj"),
            'Ǌ' => fixed.push_str("NJ"),
            'ǋ' => fixed.push_str("Nj"),
            'ǌ' => fixed.push_str("nj"),
            'Ǳ' => fixed.push_str("DZ"),
            'ǲ' => fixed.push_str("Dz"),
            'ǳ' => fixed.push_str("dz"),
            'ﬀ' => fixed.push_str("ff"),
            'ﬁ' => fixed.push_str("fi"),
            'ﬂ' => fixed.push_str("fl"),
            'ﬃ' => fixed.push_str("ffi"),
            'ﬄ' => fixed.push_str("ffl"),
            'ﬅ' | 'ﬆ' => fixed.push_str("st"),
            // Full-width and half-width forms.
            '\u{3000}' => fixed.push(' '),
            '\u{FF01}'..='\u{FFEF}' => fixed.extend(std::iter::once(c).nfkc()),
            '‘' | '’' | '‚' | '‛' | 'ʼ' => fixed.push('\''),
            '“' | '”' | '„' | '‟' => fixed.push('"'),
            '\r' => {
                rest.next_if_eq(&'\n');
                fixed.push('\n');
            }
            '\u{2028}' | '\u{2029}' | '\u{85}' => fixed.push('\n'),
            '\u{80}'..='\u{9F}' => fixed.push(windows_1252(c)),
            '\t' | '\n' | '\u{C}' => fixed.push(c),
            '\0'..='\u{1F}' | '\u{7F}' => {}
            '\u{206A}'..='\u{206F}' | '\u{FEFF}' | '\u{FFF9}'..='\u{FFFC}' => {}
            _ => fixed.push(c),
        }
    }
    fixed.nfc().collect()
}

/// The Windows-1252 character for a control character of Latin-1, as HTML also interprets it.
fn windows_1252(c: char) -> char {
    const TABLE: [char; 32] = [
        '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8D}', 'Ž', '\u{8F}', '\u{90}', '‘',
        '’', '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9D}', 'ž', 'Ÿ',
    ];
    TABLE[(c as usize - 0x80).min(31)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_text_has_no_punctuation() {
        assert_eq!(canonicalize("  A Photo_of:\ta \"CAT\"!  "), "a photo of a cat");
        assert_eq!(canonicalize("naïve Äpfel—ok"), "naïve äpfel—ok");
    }

    #[test]
    fn texts_are_cleaned_as_ftfy_does() {
        // Expected values by ftfy 6.3: html.unescape(html.unescape(ftfy.fix_text(text))).strip(), then "
        // ".join(text.split())
        for (text, cleaned) in [
            ("fish &amp; chips &lt;b&gt;&quot;menu&quot;", "fish & chips <b>\"menu\""),
            ("a &amp;amp; b", "a & b"),
            ("<b>&eacute;</b>", "<b>é</b>"),
            ("ÜBERGRÖSSE ﬁne ① ２０２６ ﬀ", "ÜBERGRÖSSE fine ① 2026 ff"),
            ("‘it’s’ “so”", "'it's' \"so\""),
            ("line one\nline two\r\nline\tthree", "line one line two line three"),
            ("a\u{1B}[36;44mb\u{7}c", "abc"),
            ("cafe\u{301}", "café"),
            ("ﾊﾝｶｸ ＬＯＵＤ　ＮＯＩＳＥＳ", "ハンカク LOUD NOISES"),
            ("  two  spaces ", "two spaces"),
        ] {
            assert_eq!(Cleaning::OpenClip.clean(text), cleaned, "{text}");
        }
        assert_eq!(Cleaning::OpenClipLower.clean("A &AMP; B"), "a & b");
        assert_eq!(Cleaning::Siglip { lower: true }.clean(" A, b_c  D! "), " a, b_c  d! ");
        assert_eq!(Cleaning::Lower.clean("A Cat"), "a cat");
        assert_eq!(Cleaning::None.clean(" A  "), " A  ");
    }
}

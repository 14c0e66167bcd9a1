//! The prompt that sentence-transformers puts before every text: the default one in
//! `config_sentence_transformers.json`. The other prompts there are chosen by the caller, so they belong in the text.

use std::path::Path;

use crate::error::{Error, Kind, Result};
use crate::model::read_json;

/// The default prompt of a directory's model; None if there is none, or if it is empty.
///
/// # Errors
/// [`Kind::BadModel`] if the file can't be used, or if the default is not among its prompts.
pub(super) fn default(directory: &Path) -> Result<Option<String>> {
    let file = directory.join("config_sentence_transformers.json");
    if !file.is_file() {
        return Ok(None);
    }
    let config = read_json(&file)?;
    let Some(name) = config["default_prompt_name"].as_str() else { return Ok(None) };
    match config["prompts"][name].as_str() {
        Some(prompt) => Ok(Some(prompt.to_owned()).filter(|prompt| !prompt.is_empty())),
        None => Err(Error::new(Kind::BadModel, format!("model file \"{}\" cannot be used", file.display()))
            .detail(format!("Its default_prompt_name \"{name}\" is not among its prompts."))
            .hint("Add the prompt, or set default_prompt_name to null.")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_one_of_the_prompts() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/test-models/prompt");
        std::fs::create_dir_all(&directory).unwrap();
        let file = directory.join("config_sentence_transformers.json");
        let read = |content: &str| {
            std::fs::write(&file, content).unwrap();
            default(&directory).map_err(|e| e.detail.unwrap())
        };
        let prompts =
            |name: &str| format!(r#"{{"prompts": {{"q": "query: ", "d": ""}}, "default_prompt_name": {name}}}"#);
        assert_eq!(read(&prompts(r#""q""#)), Ok(Some("query: ".to_owned())));
        assert_eq!(read(&prompts(r#""d""#)), Ok(None));
        assert_eq!(read(&prompts("null")), Ok(None));
        assert_eq!(read(r#"{"__version__": {}}"#), Ok(None));
        assert_eq!(read(&prompts(r#""p""#)), Err("Its default_prompt_name \"p\" is not among its prompts.".to_owned()));
        std::fs::remove_file(&file).unwrap();
        assert_eq!(default(&directory).unwrap(), None);
    }
}

//! Reads the configuration in a model's files, in the format of any supported library.
//!
//! transformers writes `config.json` with a `model_type`. open_clip writes the model under `model_cfg` in
//! `open_clip_config.json` (or alone as `config.json`, as in Immich's exports). sentence-transformers writes a list of
//! modules. A value that no file states is guessed, and guesses are recorded for the user.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{Error, Kind, Result};
use crate::image::preprocess::Preprocess;
use crate::model::{Model, read_json};

/// The family whose conventions apply to values that the files omit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// OpenAI's CLIP, and models of its architecture in transformers.
    Clip,
    /// SigLIP, and SigLIP 2 with a fixed resolution.
    Siglip,
    /// A model of open_clip, by its configuration.
    OpenClip,
    /// Another `model_type` of transformers.
    Other,
    /// The files don't say.
    Unknown,
}

/// The configuration files of one directory.
#[derive(Clone, Debug)]
pub struct Config {
    pub family: Family,
    /// transformers' `model_type`.
    pub model_type: Option<String>,
    /// The content of `config.json`, or null.
    hugging_face: Value,
    /// open_clip's `model_cfg`, or null.
    open_clip: Value,
}

impl Config {
    /// Reads the files of a directory. Missing and broken files are ignored.
    pub fn read(directory: &Path) -> Self {
        let json = |name: &str| read_json(&directory.join(name)).unwrap_or_default();
        let mut hugging_face = json("config.json");
        if hugging_face["model_type"].is_null() && hugging_face["model_cfg"].is_null() {
            // sentence-transformers stores CLIP's files one level below.
            let below = json("0_CLIPModel/config.json");
            if !below.is_null() {
                hugging_face = below;
            }
        }
        let own = json("open_clip_config.json");
        let open_clip = [own.get("model_cfg"), hugging_face.get("model_cfg"), Some(&hugging_face)]
            .into_iter()
            .flatten()
            .find(|config| config["text_cfg"].is_object() || config["vision_cfg"].is_object())
            .cloned()
            .unwrap_or_default();
        let model_type = hugging_face["model_type"].as_str().map(str::to_owned);
        let family = match model_type.as_deref() {
            _ if !open_clip.is_null() => Family::OpenClip,
            Some(kind) if kind.starts_with("siglip") => Family::Siglip,
            Some("clip" | "clip_vision_model" | "clip_text_model" | "altclip" | "metaclip_2") => Family::Clip,
            Some(_) => Family::Other,
            None => Family::Unknown,
        };
        Self { family, model_type, hugging_face, open_clip }
    }

    /// The size of the model's input images in pixels, (width, height).
    pub fn image_size(&self) -> Option<(u32, u32)> {
        let sizes = [
            &self.open_clip["vision_cfg"]["image_size"],
            &self.hugging_face["vision_config"]["image_size"],
            &self.hugging_face["image_size"],
        ];
        let number = |value: &Value| value.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0);
        sizes.into_iter().find_map(|size| match size.as_array().map(Vec::as_slice) {
            Some([height, width]) => number(width).zip(number(height)),
            _ => number(size).map(|side| (side, side)),
        })
    }

    /// The length of the vectors.
    pub fn dimensions(&self) -> Option<usize> {
        let text = &self.hugging_face["text_config"];
        let stated = [
            &self.open_clip["embed_dim"],
            &self.hugging_face["projection_dim"],
            &self.hugging_face["embed_dim"],
            &text["projection_size"],
        ];
        let stated = stated.into_iter().find_map(Value::as_u64);
        let siglip = || text["hidden_size"].as_u64().filter(|_| self.family == Family::Siglip);
        stated.or_else(siglip).map(|n| n as usize)
    }

    /// The number of positions of the text tower: open_clip's context length, or the number of position embeddings
    /// minus the two that RoBERTa models reserve for padding.
    pub fn positions(&self) -> Option<usize> {
        if let Some(length) = self.open_clip["text_cfg"]["context_length"].as_u64() {
            return Some(length as usize);
        }
        let text = match &self.hugging_face["text_config"] {
            Value::Object(_) => &self.hugging_face["text_config"],
            _ => &self.hugging_face,
        };
        let positions = text["max_position_embeddings"].as_u64()? as usize;
        let kinds = [text["model_type"].as_str(), self.model_type.as_deref()];
        let reserved = kinds
            .into_iter()
            .flatten()
            .any(|kind| kind.contains("roberta") || kind.contains("camembert") || kind.starts_with("altclip"));
        Some(if reserved { positions.saturating_sub(2) } else { positions })
    }

    /// The context length of the family's models if no file states it, and whether this is more than a guess.
    pub fn usual_context(&self) -> (usize, bool) {
        match self.family {
            // SiglipTextConfig and CLIPTextConfig have these defaults and save only values that differ from them.
            Family::Siglip => (64, true),
            Family::Clip | Family::OpenClip => (77, true),
            Family::Other | Family::Unknown => (77, false),
        }
    }

    /// open_clip's tokenizer options.
    pub fn tokenizer_options(&self) -> &Value {
        &self.open_clip["text_cfg"]["tokenizer_kwargs"]
    }

    /// Whether texts use open_clip's own tokenizer, which is CLIP's with different padding and cleaning. Otherwise they
    /// use a tokenizer of transformers, which the configuration names.
    pub fn has_simple_tokenizer(&self) -> bool {
        self.family == Family::OpenClip && !self.names_tokenizer()
    }

    /// Whether open_clip's configuration names a tokenizer or a text tower of transformers.
    pub fn names_tokenizer(&self) -> bool {
        let text = &self.open_clip["text_cfg"];
        !(text["hf_tokenizer_name"].is_null() && text["hf_model_name"].is_null())
    }

    /// Whether the model was trained with a sigmoid loss, as SigLIP was.
    pub fn is_sigmoid(&self) -> bool {
        self.family == Family::Siglip || !self.open_clip["init_logit_bias"].is_null()
    }

    /// The evidence that the weights are OpenAI's own, whose logit scale is 100: the source repository, which exports
    /// for transformers.js state, or the name of the directory, if it is that of OpenAI's or Immich's repository.
    pub fn openai(&self, directory: &Path) -> Option<String> {
        const PUBLISHED: [&str; 4] =
            ["clip-vit-base-patch32", "clip-vit-base-patch16", "clip-vit-large-patch14", "clip-vit-large-patch14-336"];
        let is_published = |name: &str| PUBLISHED.contains(&name.to_ascii_lowercase().as_str());
        let origin = self.hugging_face["_name_or_path"].as_str().unwrap_or_default();
        if origin.strip_prefix("openai/").is_some_and(is_published) {
            return Some(format!("the origin in config.json, {origin}"));
        }
        let name = directory.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let own = name.strip_prefix("openai").map(|rest| rest.trim_start_matches(['-', '_', '.']));
        let named = is_published(own.unwrap_or(name)) || name.to_ascii_lowercase().ends_with("__openai");
        named.then(|| format!("the directory's name, {name}"))
    }

    /// Whether the vectors of this architecture are projections of the towers' pooled outputs, so that a graph's
    /// `pooler_output` lacks the projection. `CLIPVisionModel` and `CLIPTextModel` have no projection.
    pub fn projects(&self) -> bool {
        const KINDS: [&str; 7] = [
            "clip",
            "clip_vision_model",
            "clip_text_model",
            "altclip",
            "chinese_clip",
            "metaclip_2",
            "vision-text-dual-encoder",
        ];
        let alone = |architecture: &Value| {
            architecture.as_str().is_some_and(|name| name.ends_with("VisionModel") || name.ends_with("TextModel"))
        };
        let architectures = self.hugging_face["architectures"].as_array();
        self.model_type.as_deref().is_some_and(|kind| KINDS.contains(&kind))
            && !architectures.is_some_and(|names| names.iter().any(alone))
    }
}

/// The preprocessing of images, and where it comes from.
pub struct Preparation {
    pub preprocess: Preprocess,
    /// The file that states it; None for a guess.
    pub file: Option<PathBuf>,
    /// A warning with the assumptions, if it is a guess.
    pub guess: Option<Error>,
}

/// The model's own preprocessing, else its family's. `graph` is the graph's input size, (height, width), if it is
/// fixed.
///
/// # Errors
/// [`Kind::BadModel`] and [`Kind::Unsupported`] if the file can't be used; [`Kind::MissingFile`] if there is no file
/// and the models of the family differ in their preprocessing.
pub fn preparation(model: &Model, graph: Option<(usize, usize)>) -> Result<Preparation> {
    let config = Config::read(&model.directory);
    if let Some(file) = &model.preprocess {
        let named = |e: Error| Error { message: format!("{} (\"{}\")", e.message, file.display()), ..e };
        let json = read_json(file).map_err(named)?;
        let section = section(&json, &config).unwrap_or(json);
        let preprocess = Preprocess::parse(&section.to_string()).map_err(named)?;
        return Ok(Preparation { preprocess, file: Some(file.clone()), guess: None });
    }
    let stated = config.image_size().map(|(width, height)| (height as usize, width as usize));
    let (height, width) = graph.or(stated).unwrap_or((224, 224));
    let message = format!("model \"{}\" has no preprocessor_config.json", model.name);
    let hint =
        "Download preprocessor_config.json, processor_config.json or open_clip_config.json of the model beside it.";
    let missing = Error::new(Kind::MissingFile, message).hint(hint);
    let size = match (height == width, config.is_sigmoid() && config.family != Family::OpenClip) {
        (true, _) | (false, true) => format!("{width}×{height}"),
        (false, false) => {
            return Err(
                missing.detail(format!("Its images of {width}×{height} pixels are not prepared as CLIP's are."))
            );
        }
    };
    match config.family {
        Family::Siglip => {
            // These are the defaults of SiglipImageProcessor; SigLIP 2 states its filter in the file.
            let json = serde_json::json!({
                "image_processor_type": "SiglipImageProcessor",
                "size": {"height": height, "width": width},
            });
            let preprocess = Preprocess::parse(&json.to_string())?;
            let detail =
                format!("SigLIP's preprocessing is used: squashed to {size}, mean and standard deviation 0.5.");
            Ok(Preparation { preprocess, file: None, guess: Some(missing.detail(detail)) })
        }
        Family::OpenClip if config.is_sigmoid() => Err(missing.detail(
            "It is a model of SigLIP's kind by its configuration, and CLIP's preprocessing would give other vectors.",
        )),
        Family::Other
            if ["chinese_clip", "mobileclip", "siglip2_vision_model", "clipseg", "blip", "blip-2"]
                .contains(&config.model_type.as_deref().unwrap_or_default()) =>
        {
            Err(missing.detail(format!(
                "Models of type \"{}\" are not prepared as CLIP's are.",
                config.model_type.unwrap_or_default()
            )))
        }
        _ => {
            let side = height as u32;
            let detail = format!(
                "CLIP's preprocessing is used: shortest edge {side} by bicubic resampling, centre crop, CLIP's mean and \
                 standard deviation."
            );
            Ok(Preparation { preprocess: Preprocess::clip(side), file: None, guess: Some(missing.detail(detail)) })
        }
    }
}

/// The image part of a configuration: `image_processor` of transformers 5's `processor_config.json`, or
/// `preprocess_cfg` of `open_clip_config.json`, with the size from the model's part.
fn section(json: &Value, config: &Config) -> Option<Value> {
    if let Some(nested) = json.get("image_processor").filter(|value| value.is_object()) {
        return Some(nested.clone());
    }
    let open_clip = json.get("preprocess_cfg").filter(|value| value.is_object());
    let is_open_clip = open_clip.is_some() || json.get("model_cfg").is_some() || json.get("resize_mode").is_some();
    if !is_open_clip {
        return None;
    }
    let mut section = open_clip.or_else(|| Some(json).filter(|json| json.get("model_cfg").is_none())).cloned();
    let map = section.get_or_insert_with(|| Value::Object(Default::default())).as_object_mut()?;
    if map.get("size").is_none_or(Value::is_null)
        && let Some((width, height)) = config.image_size()
    {
        map.insert("size".to_owned(), serde_json::json!([height, width]));
    }
    // This key marks open_clip's dialect.
    map.entry("resize_mode").or_insert_with(|| Value::from("shortest"));
    section
}

/// The file with the preprocessing of images: the first of these files that states it.
pub(super) fn preprocess_file(directory: &Path) -> Option<PathBuf> {
    let names = [
        "preprocessor_config.json",
        "processor_config.json",
        "image_processor/preprocessor_config.json",
        "preprocess_cfg.json",
        "visual/preprocess_cfg.json",
        "open_clip_config.json",
        "onnx/preprocessor_config.json",
        "0_CLIPModel/preprocessor_config.json",
        "0_CLIPModel/processor_config.json",
    ];
    names.into_iter().map(|name| directory.join(name)).filter(|file| file.is_file()).find(|file| {
        // transformers 4 writes a processor_config.json for texts and images together, which states no preprocessing.
        !file.ends_with("processor_config.json")
            || read_json(file).is_ok_and(|json| {
                ["image_processor", "image_processor_type", "size"].iter().any(|key| !json[*key].is_null())
            })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(test: &str, files: &[(&str, &str)]) -> PathBuf {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/test-models/config").join(test);
        let _ = std::fs::remove_dir_all(&directory);
        for (name, content) in files {
            let path = directory.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        directory
    }

    #[test]
    fn families_are_told_by_their_files() {
        let family = |name: &str, content: &str| Config::read(&of("family", &[(name, content)])).family;
        assert_eq!(family("config.json", r#"{"model_type": "clip"}"#), Family::Clip);
        assert_eq!(family("0_CLIPModel/config.json", r#"{"model_type": "clip"}"#), Family::Clip);
        assert_eq!(family("config.json", r#"{"model_type": "siglip2"}"#), Family::Siglip);
        assert_eq!(family("config.json", r#"{"text_cfg": {"context_length": 77}}"#), Family::OpenClip);
        assert_eq!(family("open_clip_config.json", r#"{"model_cfg": {"vision_cfg": {}}}"#), Family::OpenClip);
        assert_eq!(family("config.json", r#"{"model_type": "nomic_bert"}"#), Family::Other);
        assert_eq!(family("config.json", "{"), Family::Unknown);
    }

    #[test]
    fn positions_are_those_that_a_text_may_take() {
        let positions = |content: &str| Config::read(&of("positions", &[("config.json", content)])).positions();
        assert_eq!(positions(r#"{"model_type": "siglip", "text_config": {"max_position_embeddings": 64}}"#), Some(64));
        assert_eq!(positions(r#"{"model_type": "xlm-roberta", "max_position_embeddings": 514}"#), Some(512));
        assert_eq!(positions(r#"{"model_type": "bert", "max_position_embeddings": 512}"#), Some(512));
        assert_eq!(positions(r#"{"text_cfg": {"context_length": 32}}"#), Some(32));
        assert_eq!(positions(r#"{"model_type": "clip"}"#), None);
    }

    #[test]
    fn images_are_prepared_by_whichever_file_says_how() {
        let siglip = r#"{"image_processor": {"image_processor_type": "SiglipImageProcessor", "size": {"height": 64, "width": 64},
            "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}, "processor_class": "SiglipProcessor"}"#;
        let directory = of("v5", &[("processor_config.json", siglip)]);
        let file = preprocess_file(&directory).unwrap();
        let json = read_json(&file).unwrap();
        let found = Preprocess::parse(&section(&json, &Config::read(&directory)).unwrap().to_string()).unwrap();
        assert_eq!((found.output_size(), found.mean), (Some((64, 64)), [0.5; 3]));

        let directory = of("v4", &[("processor_config.json", r#"{"processor_class": "CLIPProcessor"}"#)]);
        assert_eq!(preprocess_file(&directory), None);

        let open_clip = r#"{"model_cfg": {"embed_dim": 8, "vision_cfg": {"image_size": [96, 64]}},
            "preprocess_cfg": {"mean": [0.1, 0.2, 0.3], "interpolation": "bilinear", "resize_mode": "squash"}}"#;
        let directory = of("open_clip", &[("open_clip_config.json", open_clip)]);
        let json = read_json(&preprocess_file(&directory).unwrap()).unwrap();
        let found = Preprocess::parse(&section(&json, &Config::read(&directory)).unwrap().to_string()).unwrap();
        assert_eq!((found.output_size(), found.mean), (Some((64, 96)), [0.1, 0.2, 0.3]));
        assert_eq!(Config::read(&directory).dimensions(), Some(8));
    }
}

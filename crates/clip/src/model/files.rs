//! Model directories: finds them in a search path, and finds the files in them.
//!
//! A model is a directory in one of the usual layouts of ONNX exports. The code knows no model by its name: it reads
//! every property from the model's files.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{Error, Kind, Result};
use crate::model::config::{Config, preprocess_file};
use crate::regular_file;

/// Maximum bytes of a model's name: Linux's limit for the name of a directory.
const LONGEST_NAME: usize = 255;

/// Paths of the two towers in the usual export layouts, without the extension: Hugging Face's `onnx/` (Xenova, optimum
/// split), the same at the top level, Immich's `visual/` and `textual/`, and flat exports of open_clip. The last ones
/// are from tutorials for OpenAI's own code.
const VISION: [&str; 6] = ["onnx/vision_model", "vision_model", "visual/model", "visual", "onnx/visual", "clip_visual"];
const TEXT: [&str; 6] = ["onnx/text_model", "text_model", "textual/model", "textual", "onnx/textual", "clip_textual"];
/// One graph for both towers, or the graph of a single tower: optimum's plain export, Qdrant's, jina-clip-v2.
const EITHER: [&str; 2] = ["onnx/model", "model"];

/// Names of PyTorch weights in the layouts of Hugging Face, sentence-transformers and open_clip. Weights in several
/// files have an index.
const WEIGHTS: [&str; 8] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "0_CLIPModel/model.safetensors",
    "0_CLIPModel/pytorch_model.bin",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
];

/// The variant that this crate creates from the float32 graphs ([`crate::model::quantize`]).
pub const AUTO_INT8: &str = "auto-int8";

/// The files of one model.
#[derive(Clone, Debug)]
pub struct Model {
    /// The name that the user passed, including the variant if given.
    pub name: String,
    pub directory: PathBuf,
    pub vision: Option<PathBuf>,
    pub text: Option<PathBuf>,
    /// Whether `vision` and `text` are the same file, which may contain both towers or only one.
    pub combined: bool,
    /// A graph of both towers that may exist in addition; only its logit scale is used.
    pub whole: Option<PathBuf>,
    /// The directory of the text tower's other files: `directory`, unless the model is a pair of directories.
    pub text_directory: PathBuf,
    pub tokenizer: Option<PathBuf>,
    pub preprocess: Option<PathBuf>,
    /// Whether the image tower runs quantized.
    pub int8_vision: bool,
    /// Whether the text tower runs quantized.
    pub int8_text: bool,
}

impl Model {
    /// Finds a model in the directories of `search`; the first match wins.
    ///
    /// `spec` is `name` or `name:variant`. Two of these joined by `+` are a pair, the first for images and the second
    /// for texts, for models that are published with one tower per directory.
    ///
    /// # Errors
    /// [`Kind::UnknownModel`] if the model does not exist, with a list of the available models; [`Kind::MissingFile`]
    /// if its directory lacks the variant.
    pub fn find(search: &[PathBuf], spec: &str) -> Result<Self> {
        let Some((image, text)) = spec.split_once('+') else { return Self::find_one(search, spec) };
        let (image, text) = (Self::find_one(search, image)?, Self::find_one(search, text)?);
        Ok(Self {
            name: spec.to_owned(),
            combined: false,
            whole: None,
            text: text.text,
            text_directory: text.directory,
            tokenizer: text.tokenizer,
            int8_text: text.int8_text,
            ..image
        })
    }

    fn find_one(search: &[PathBuf], spec: &str) -> Result<Self> {
        let (name, variant) = match spec.split_once(':') {
            Some((name, variant)) => (name, Some(variant)),
            None => (spec, None),
        };
        check_name(spec)?;
        let Some(directory) = search.iter().map(|dir| dir.join(name)).find(|dir| dir.is_dir()) else {
            let known: Vec<String> = Self::list(search).into_iter().map(|model| model.name).collect();
            let places: Vec<String> = search.iter().map(|dir| format!("\"{}\"", dir.display())).collect();
            let error = Error::new(Kind::UnknownModel, format!("model \"{name}\" does not exist"));
            let put = format!("ut the model's directory into {}.", places.join(" or "));
            return Err(match known.len() {
                0 => error.detail(format!("There is no model in {}.", places.join(", "))).hint(format!("P{put}")),
                _ => error
                    .detail(format!("Models found: {}.", known.join(", ")))
                    .hint(format!("Choose one of them, or p{put}")),
            });
        };
        let int8 = variant == Some(AUTO_INT8);
        let mut model = Self::open(spec, &directory, variant.filter(|_| !int8));
        (model.int8_vision, model.int8_text) = (int8, int8);
        if model.vision.is_none() && model.text.is_none() {
            return Err(no_graph(spec, name, &directory, variant));
        }
        Ok(model)
    }

    /// Every model in the directories of `search`, sorted by name. The first model with a name hides later ones.
    pub fn list(search: &[PathBuf]) -> Vec<Self> {
        let mut models: Vec<Self> = Vec::new();
        for directory in
            search.iter().filter_map(|dir| dir.read_dir().ok()).flatten().flatten().map(|entry| entry.path())
        {
            let Some(name) = directory.file_name().and_then(|n| n.to_str()).filter(|n| is_name(n)) else { continue };
            let model = Self::open(name, &directory, None);
            if (model.vision.is_some() || model.text.is_some()) && models.iter().all(|m| m.name != name) {
                models.push(model);
            }
        }
        models.sort_by(|a, b| a.name.cmp(&b.name));
        models
    }

    fn open(name: &str, directory: &Path, variant: Option<&str>) -> Self {
        let suffix = variant.map(|v| format!("_{v}")).unwrap_or_default();
        let graph = |stems: &[&str]| {
            stems.iter().map(|stem| directory.join(format!("{stem}{suffix}.onnx"))).find(|file| file.is_file())
        };
        let first = |names: &[&str]| names.iter().map(|name| directory.join(name)).find(|file| file.is_file());
        let (vision, text) = (graph(&VISION), graph(&TEXT));
        let whole = graph(&EITHER);
        let either = if vision.is_none() && text.is_none() { whole.clone() } else { None };
        Self {
            name: name.to_owned(),
            combined: either.is_some(),
            whole,
            vision: vision.or_else(|| either.clone()),
            text: text.or(either),
            text_directory: directory.to_owned(),
            tokenizer: first(&[
                "tokenizer.json",
                "textual/tokenizer.json",
                "onnx/tokenizer.json",
                "tokenizer/tokenizer.json",
                "0_CLIPModel/tokenizer.json",
                "0_Transformer/tokenizer.json",
            ]),
            preprocess: preprocess_file(directory),
            directory: directory.to_owned(),
            int8_vision: false,
            int8_text: false,
        }
    }

    /// The length of the vectors by the configuration, without loading a graph.
    pub fn stated_dimensions(&self) -> Option<usize> {
        Config::read(&self.directory).dimensions()
    }
}

/// The graphs in a directory and one level below, as relative paths.
fn graphs_in(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut look = |folder: &Path| -> Vec<PathBuf> {
        let entries: Vec<PathBuf> =
            folder.read_dir().into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        let graphs = entries.iter().filter(|path| path.extension().is_some_and(|end| end == "onnx") && path.is_file());
        found
            .extend(graphs.filter_map(|path| path.strip_prefix(directory).ok()).map(|path| path.display().to_string()));
        entries.into_iter().filter(|path| path.is_dir()).collect()
    };
    for folder in look(directory) {
        look(&folder);
    }
    found.sort();
    found
}

/// The error for a directory without a graph of an expected name; it lists the graphs that exist.
fn no_graph(spec: &str, name: &str, directory: &Path, variant: Option<&str>) -> Error {
    let suffix = variant.map(|v| format!(" of variant \"{v}\"")).unwrap_or_default();
    let ending = variant.map(|v| format!("_{v}")).unwrap_or_default();
    let error = Error::new(Kind::MissingFile, format!("model \"{spec}\" has no ONNX file{suffix}"));
    let looked = format!(
        "Looked in \"{}\" for {}{ending}.onnx, {}{ending}.onnx and the other usual names.",
        directory.display(),
        VISION[0],
        TEXT[0]
    );
    let graphs = graphs_in(directory);
    if graphs.is_empty() {
        let hint = "Download the ONNX export of the model, with its onnx/ folder";
        return error.detail(looked).hint(match how_to_export(directory) {
            Some(command) => format!("{hint}, or make one: {command}"),
            None => format!("{hint}."),
        });
    }
    let stems = || VISION.iter().chain(&TEXT).chain(&EITHER);
    let mut variants: Vec<String> = graphs
        .iter()
        .filter_map(|graph| {
            let stem = graph.strip_suffix(".onnx")?;
            stems().find_map(|usual| stem.strip_prefix(usual)?.strip_prefix('_').map(str::to_owned))
        })
        .filter(|variant| is_name(variant))
        .collect();
    variants.sort();
    variants.dedup();
    let error = error.detail(format!("{looked} ONNX files found: {}.", shown(&graphs)));
    if !variants.is_empty() {
        let names: Vec<String> = variants.iter().map(|variant| format!("{name}:{variant}")).collect();
        return error.hint(format!("Name one of its variants: {}.", shown(&names)));
    }
    let is_plain = |graph: &String| stems().any(|usual| graph.strip_suffix(".onnx") == Some(*usual));
    if variant.is_some() && graphs.iter().any(is_plain) {
        return error.hint(format!("The model has no variants: use \"{name}\", or add the files of the variant."));
    }
    error.hint(format!("Rename the image tower to {}.onnx and the text tower to {}.onnx.", VISION[0], TEXT[0]))
}

/// The command that exports the PyTorch weights in a directory, if it has any.
fn how_to_export(directory: &Path) -> Option<String> {
    let weights = WEIGHTS.into_iter().find(|file| directory.join(file).is_file())?;
    if weights.starts_with("open_clip") {
        return Some(format!("\"{weights}\" is exported with open_clip and torch.onnx.export."));
    }
    // optimum recognises sentence-transformers' models by this file, and exports both towers of their CLIP under this
    // task.
    let task = match directory.join("modules.json").is_file() {
        true => "feature-extraction",
        false => "zero-shot-image-classification",
    };
    let folder = directory.display();
    Some(format!("optimum-cli export onnx --task {task} --model '{folder}' '{folder}/onnx'"))
}

/// A list for a message, shortened if it is long.
fn shown(names: &[String]) -> String {
    match names.len() {
        0..=12 => names.join(", "),
        more => format!("{} and {} more", names[..12].join(", "), more - 12),
    }
}

/// Checks the form of a model's name, with or without a variant; whether the model exists is not checked.
///
/// # Errors
/// [`Kind::UnknownModel`].
pub fn check_name(spec: &str) -> Result<()> {
    if spec.len() > LONGEST_NAME {
        return Err(Error::new(Kind::UnknownModel, format!("a text of {} bytes is not a model name", spec.len()))
            .detail(format!("It begins with \"{}\".", spec.chars().take(40).collect::<String>()))
            .hint(format!("A model is named by its directory, in {LONGEST_NAME} bytes at most.")));
    }
    let (name, variant) = spec.split_once(':').map_or((spec, None), |(name, variant)| (name, Some(variant)));
    if !is_name(name) || variant.is_some_and(|v| !is_name(v)) {
        return Err(Error::new(Kind::UnknownModel, format!("\"{spec}\" is not a model name"))
            .hint("A model is named by its directory: letters, digits, dots, dashes and underscores, then optionally a colon and a variant."));
    }
    Ok(())
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with('.')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
}

/// Reads a file of the model.
pub(crate) fn read(path: &Path) -> Result<String> {
    regular_file::read_to_string(path).map_err(|e| {
        let kind = if e.kind() == std::io::ErrorKind::NotFound { Kind::MissingFile } else { Kind::BadModel };
        Error::new(kind, format!("model file \"{}\" cannot be read", path.display())).detail(format!("{e}."))
    })
}

pub(crate) fn read_json(path: &Path) -> Result<Value> {
    serde_json::from_str(&read(path)?).map_err(|e| {
        Error::new(Kind::BadModel, format!("model file \"{}\" is not JSON", path.display()))
            .detail(format!("The parser says: {e}."))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(test: &str, files: &[&str]) -> PathBuf {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/test-models").join(test);
        let _ = std::fs::remove_dir_all(&root);
        for file in files {
            let path = root.join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        root
    }

    #[test]
    fn finds_layouts_and_variants() {
        let root = directory(
            "layouts",
            &[
                "xenova/onnx/vision_model.onnx",
                "xenova/onnx/text_model.onnx",
                "xenova/onnx/text_model_quantized.onnx",
                "immich/visual/model.onnx",
                "immich/textual/model.onnx",
                "immich/visual/preprocess_cfg.json",
                "empty/readme.txt",
            ],
        );
        let search = [root.clone()];
        let names: Vec<_> = Model::list(&search).into_iter().map(|m| m.name).collect();
        assert_eq!(names, ["immich", "xenova"]);
        let immich = Model::find(&search, "immich").unwrap();
        assert_eq!(immich.preprocess.unwrap(), root.join("immich/visual/preprocess_cfg.json"));
        let quantized = Model::find(&search, "xenova:quantized").unwrap();
        assert!(quantized.text.unwrap().ends_with("onnx/text_model_quantized.onnx"));
        assert!(quantized.vision.is_none());
        let error = Model::find(&search, "xenova:int4").unwrap_err();
        assert_eq!(error.kind, Kind::MissingFile);
        assert_eq!(error.hint.as_deref(), Some("Name one of its variants: xenova:quantized."));
        assert_eq!(Model::find(&search, "empty").unwrap_err().kind, Kind::MissingFile);
    }

    #[test]
    fn graphs_of_other_names_are_listed() {
        let root = directory("names", &["odd/image.onnx", "odd/export/text.onnx", "q/onnx/vision_model_int8.onnx"]);
        let error = Model::find(std::slice::from_ref(&root), "odd").unwrap_err();
        assert!(error.detail.unwrap().ends_with("ONNX files found: export/text.onnx, image.onnx."));
        assert!(error.hint.unwrap().starts_with("Rename the image tower to onnx/vision_model.onnx"));
        let error = Model::find(&[root], "q").unwrap_err();
        assert_eq!(error.hint.as_deref(), Some("Name one of its variants: q:int8."));
    }

    #[test]
    fn weights_without_a_graph_name_the_export() {
        let root = directory(
            "weights",
            &[
                "hf/model.safetensors.index.json",
                "st/modules.json",
                "st/0_CLIPModel/pytorch_model.bin",
                "laion/open_clip_pytorch_model.bin",
                "none/config.json",
            ],
        );
        let hint = |name: &str| Model::find(std::slice::from_ref(&root), name).unwrap_err().hint.unwrap();
        let at = |name: &str| root.join(name).display().to_string();
        assert_eq!(
            hint("hf"),
            format!(
                "Download the ONNX export of the model, with its onnx/ folder, or make one: optimum-cli export onnx \
                 --task zero-shot-image-classification --model '{0}' '{0}/onnx'",
                at("hf")
            )
        );
        assert!(hint("st").ends_with(&format!("--task feature-extraction --model '{0}' '{0}/onnx'", at("st"))));
        assert!(
            hint("laion")
                .ends_with("\"open_clip_pytorch_model.bin\" is exported with open_clip and torch.onnx.export.")
        );
        assert_eq!(hint("none"), "Download the ONNX export of the model, with its onnx/ folder.");
    }

    #[test]
    fn an_unknown_name_lists_the_known() {
        let root = directory("unknown", &["photo-mini/onnx/text_model.onnx"]);
        let error = Model::find(&[root], "clip").unwrap_err();
        assert_eq!(error.kind, Kind::UnknownModel);
        assert_eq!(error.message, "model \"clip\" does not exist");
        assert_eq!(error.detail.as_deref(), Some("Models found: photo-mini."));
    }

    #[test]
    fn names_stay_inside_the_search_path() {
        for name in ["", "..", "../photo-mini", "/etc", "a/b", ".hidden", "a:../b", "a b", "ä"] {
            let error = Model::find(&[PathBuf::from("/")], name).unwrap_err();
            assert_eq!(error.kind, Kind::UnknownModel, "{name}");
            assert!(error.message.contains("is not a model name"), "{error}");
        }
        let error = Model::find(&[PathBuf::from("/")], &"ä".repeat(50_000)).unwrap_err();
        assert_eq!(error.message, "a text of 100000 bytes is not a model name");
        assert_eq!(error.detail.map(|detail| detail.chars().count()), Some(58));
    }
}

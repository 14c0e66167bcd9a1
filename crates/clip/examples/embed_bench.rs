//! Runs the engine for benchmarks: reads requests as JSON lines on stdin, and writes answers as JSON lines on stdout.
//!
//! `benches/peers/embed.py` drives it, so that both sides take turns on the same files in one run.
//!
//! ```text
//! embed_bench LIBONNXRUNTIME MODEL_DIRECTORY [VARIANT [CACHE]]
//! {"op": "images", "files": […], "exact": false}   → {"ms": whole call, "vectors": […]}
//! {"op": "stages", "files": [one], "exact": false} → {"decode": ms, "prepare": ms, "normalise": ms, "run": ms, "shrink": n}
//! {"op": "texts", "texts": […]}                    → {"ms": whole call, "vectors": […]}
//! {"op": "ids", "ids": […]}                        → {"ms": the bare text tower}
//! ```
//!
//! Files are read before the clock starts. A request that fails gets the answer `{"error": …}`.

use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use clip::embedder::Embedder;
use clip::image::preprocess::Preprocess;
use clip::image::{Limits, decode_for, to_tensor};
use clip::model::Model;
use clip::model::session::{Runtime, Tower};
use ort::value::Tensor;
use serde_json::{Value, json};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn milliseconds(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}

struct Bench {
    embedder: Embedder,
    library: PathBuf,
    preprocess: Preprocess,
    /// Second copies of the towers, which run without the rest of the engine.
    vision: Option<Tower>,
    text: Option<Tower>,
}

fn tower<'a>(slot: &'a mut Option<Tower>, file: Option<&Path>, library: &Path) -> Result<&'a mut Tower> {
    if slot.is_none() {
        *slot = Some(Tower::load(Runtime::load(library)?, file.ok_or("the model lacks this tower")?, 1, None)?);
    }
    Ok(slot.as_mut().expect("set above"))
}

fn strings(value: &Value) -> Result<Vec<&str>> {
    value.as_array().ok_or("a list is missing")?.iter().map(|v| v.as_str().ok_or("not a string".into())).collect()
}

impl Bench {
    fn answer(&mut self, request: &Value) -> Result<Value> {
        let limits = Limits { exact_jpeg: request["exact"] == true, ..Limits::default() };
        match request["op"].as_str().ok_or("no \"op\"")? {
            "images" => {
                let files =
                    strings(&request["files"])?.iter().map(std::fs::read).collect::<std::io::Result<Vec<_>>>()?;
                let files: Vec<&[u8]> = files.iter().map(Vec::as_slice).collect();
                let start = Instant::now();
                let vectors = self.embedder.embed_images(&files, &limits, &mut || ())?;
                Ok(json!({"ms": milliseconds(start), "vectors": vectors}))
            }
            "stages" => {
                let file = std::fs::read(strings(&request["files"])?.first().ok_or("no file")?)?;
                let start = Instant::now();
                let decoded = decode_for(&file, &limits, &self.preprocess)?;
                let decode = milliseconds(start);
                let start = Instant::now();
                let pixels = decoded.prepare(&self.preprocess, &Limits::default()).unwrap();
                let prepare = milliseconds(start);
                let start = Instant::now();
                let mut tensor = ndarray::Array4::zeros((1, 3, pixels.height() as usize, pixels.width() as usize));
                to_tensor(&pixels, &self.preprocess, tensor.index_axis_mut(ndarray::Axis(0), 0));
                let to_tensor = milliseconds(start);
                let vision = tower(&mut self.vision, self.embedder.model.vision.as_deref(), &self.library)?;
                let (input, output) = (vision.inputs[0].name.clone(), vision.outputs[0].name.clone());
                let start = Instant::now();
                vision.run(vec![(input, Tensor::from_array(tensor)?.into())], &output)?;
                let run = milliseconds(start);
                Ok(json!({"decode": decode, "prepare": prepare, "normalise": to_tensor, "run": run,
                          "shrink": decoded.shrink}))
            }
            "texts" => {
                let texts = strings(&request["texts"])?;
                let start = Instant::now();
                let embedded = self.embedder.embed_texts(&texts, true, &mut || ())?;
                let ms = milliseconds(start);
                Ok(json!({"ms": ms, "vectors": embedded.into_iter().map(|e| e.vector).collect::<Vec<_>>()}))
            }
            "ids" => {
                let ids: Vec<i64> = serde_json::from_value(request["ids"].clone())?;
                let text = tower(&mut self.text, self.embedder.model.text.as_deref(), &self.library)?;
                let output = text.outputs[0].name.clone();
                let start = Instant::now();
                let mut inputs = Vec::new();
                for port in &text.inputs {
                    // All inputs except the ids are masks of ones or types of zeros.
                    let values = match port.name.as_str() {
                        "input_ids" => ids.clone(),
                        "token_type_ids" => vec![0; ids.len()],
                        _ => vec![1; ids.len()],
                    };
                    inputs.push((port.name.clone(), Tensor::from_array(([1, ids.len()], values))?.into()));
                }
                text.run(inputs, &output)?;
                Ok(json!({"ms": milliseconds(start)}))
            }
            other => Err(format!("unknown op \"{other}\"").into()),
        }
    }
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (library, directory, variant, cache) = match arguments.as_slice() {
        [library, directory] => (library, Path::new(directory), None, None),
        [library, directory, variant] => (library, Path::new(directory), Some(variant), None),
        [library, directory, variant, cache] => (library, Path::new(directory), Some(variant), Some(cache)),
        _ => return Err("usage: embed_bench LIBONNXRUNTIME MODEL_DIRECTORY [VARIANT [CACHE]]".into()),
    };
    let name = directory.file_name().ok_or("the model has no name")?.to_string_lossy();
    let spec = variant.map_or(name.to_string(), |variant| format!("{name}:{variant}"));
    let model = Model::find(&[directory.parent().unwrap_or(Path::new(".")).to_owned()], &spec)?;
    let preprocess = match &model.preprocess {
        Some(file) => Preprocess::parse(&std::fs::read_to_string(file)?)?,
        None => Preprocess::clip(224),
    };
    let library = PathBuf::from(library);
    let mut embedder = Embedder::new(model, library.clone(), 1).with_cache(cache.map(PathBuf::from));
    if cache.is_some() {
        // As in a server that preloads the model. Otherwise a graph from the cache would run twenty times before its
        // weights are laid out.
        embedder.load()?;
    }
    let mut bench = Bench { embedder, library, preprocess, vision: None, text: None };
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let answer = serde_json::from_str(&line?).map_err(Into::into).and_then(|request| bench.answer(&request));
        writeln!(out, "{}", answer.unwrap_or_else(|e| json!({"error": e.to_string()})))?;
        out.flush()?;
    }
    Ok(())
}

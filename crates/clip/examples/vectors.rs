//! Prints the vectors of files and texts, for comparisons with the libraries' own pipelines: one JSON object per line
//! on standard input and on standard output.
//!
//! ```text
//! {"models": "DIRECTORY", "model": "NAME", "images": ["FILE", …], "texts": ["a cat", …]}
//! → {"check": [["item", "value"], …], "images": [[…], "an error", …], "texts": […], "warnings": […]}
//! ```
//! JPEGs are decoded at full size. The program needs ORT_DYLIB_PATH.

use std::io::BufRead;
use std::path::PathBuf;

use clip::embedder::Embedder;
use clip::image::Limits;
use clip::model::Model;
use serde_json::{Value, json};

fn main() {
    let library = std::env::var_os("ORT_DYLIB_PATH").map(PathBuf::from).expect("set ORT_DYLIB_PATH");
    for line in std::io::stdin().lock().lines() {
        let request: Value = serde_json::from_str(&line.expect("text")).expect("a JSON object a line");
        let models = [PathBuf::from(request["models"].as_str().expect("\"models\" is a directory"))];
        let name = request["model"].as_str().expect("\"model\" is a name");
        println!("{}", answer(&models, name, &request, &library));
    }
}

fn answer(models: &[PathBuf], name: &str, request: &Value, library: &std::path::Path) -> Value {
    let model = match Model::find(models, name) {
        Ok(model) => model,
        Err(error) => return json!({"error": format!("{error} {}", error.hint.clone().unwrap_or_default())}),
    };
    let check = Embedder::new(model.clone(), library.to_owned(), 1).check(|_| "ORT_DYLIB_PATH");
    let mut embedder = Embedder::new(model, library.to_owned(), 1);
    let limits = Limits { exact_jpeg: true, ..Limits::default() };
    let strings = |key: &str| -> Vec<String> {
        request[key].as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
    };
    let images: Vec<Value> = strings("images")
        .iter()
        .map(|file| match embedder.embed_images(&[&std::fs::read(file).expect("a file")], &limits, &mut || ()) {
            Ok(vectors) => json!(vectors[0]),
            Err(error) => json!(error.to_string()),
        })
        .collect();
    let texts: Vec<Value> = strings("texts")
        .iter()
        .map(|text| match embedder.embed_texts(&[text], true, &mut || ()) {
            Ok(vectors) => json!(vectors[0].vector),
            Err(error) => json!(error.to_string()),
        })
        .collect();
    let logits = embedder.logits().map(|logits| logits.to_string()).unwrap_or_else(|error| error.to_string());
    let warnings: Vec<String> = embedder.take_warnings().iter().map(|warning| warning.message.clone()).collect();
    json!({"check": check, "images": images, "texts": texts, "logits": logits, "warnings": warnings})
}

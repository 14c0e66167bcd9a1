//! Reads the operators of a graph from its file, as the engine does before ONNX Runtime loads it.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use clip::model::operators::quantizes_dynamically;
use libfuzzer_sys::fuzz_target;

static FILE: LazyLock<PathBuf> = LazyLock::new(|| {
    let memory = PathBuf::from("/dev/shm");
    let folder = if memory.is_dir() { memory } else { std::env::temp_dir() };
    folder.join(format!("clip-fuzz-{}.onnx", std::process::id()))
});

fuzz_target!(|bytes: &[u8]| {
    std::fs::write(&*FILE, bytes).expect("a file can be written");
    let found = quantizes_dynamically(&FILE);
    // The file contains the operator's name as plain bytes.
    assert!(!found || bytes.windows(11).any(|name| name == b"DynamicQuan"));
});

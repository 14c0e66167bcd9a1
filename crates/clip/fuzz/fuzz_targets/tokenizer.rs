//! Converts texts to token ids with the test model's tokenizer.
#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use clip::model::Model;
use clip::text::TextEncoder;
use libfuzzer_sys::fuzz_target;

struct Encoder(TextEncoder);
// SAFETY: libFuzzer calls the target on one thread.
unsafe impl Send for Encoder {}
// SAFETY: as for Send, only one thread uses it.
unsafe impl Sync for Encoder {}

static ENCODER: LazyLock<Encoder> = LazyLock::new(|| {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../tests/fixtures");
    Encoder(TextEncoder::load(&Model::find(&[fixtures], "clip-mini").unwrap(), None, &mut Vec::new()).unwrap())
});

fuzz_target!(|bytes: &[u8]| {
    // PostgreSQL passes only valid text.
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(tokens) = ENCODER.0.encode(text) {
        assert!(tokens.ids.len() <= ENCODER.0.context_length);
    }
});

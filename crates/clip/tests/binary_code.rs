//! Codes and blocks as databases have them stored, against a second implementation (`tests/fixtures/codes.py`): what is
//! different today makes every stored code worthless.

use std::path::Path;

use clip::clustering::binary_code::{BLOCK, BYTES, Block, Entry};
use clip::clustering::binary_code::{Coder, distance, from_bytes, to_bytes, unpack};
use serde_json::Value;

fn golden() -> Value {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/codes.json");
    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
}

fn bytes(hex: &Value) -> Vec<u8> {
    let digits = hex.as_str().unwrap();
    (0..digits.len()).step_by(2).map(|place| u8::from_str_radix(&digits[place..place + 2], 16).unwrap()).collect()
}

fn vector(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|number| number.as_i64().unwrap() as f32).collect()
}

#[test]
fn codes_are_those_that_are_stored() {
    let golden = golden();
    let vectors = golden["vectors"].as_array().unwrap();
    assert_eq!(vectors.len(), 21);
    for set in vectors {
        let vector = vector(&set["vector"]);
        let code = to_bytes(&Coder::new(vector.len()).encode(&vector));
        assert_eq!(code, bytes(&set["code"]), "of {} dimensions", vector.len());
        assert_eq!(code.len(), BYTES);
    }
}

#[test]
fn blocks_are_those_that_are_stored() {
    let golden = golden();
    let first = from_bytes(&bytes(&golden["vectors"][0]["code"])).unwrap();
    let entries: Vec<Entry> = golden["ids"]
        .as_array()
        .unwrap()
        .iter()
        .enumerate()
        .map(|(number, id)| {
            let mut code = first;
            code[number / 64] ^= 1 << (number % 64);
            Entry { id: id.as_i64().unwrap(), sequence_number: 7, code }
        })
        .collect();
    let stored = golden["blocks"].as_array().unwrap();
    let blocks = Block::pack(&entries);
    assert_eq!(blocks.len(), stored.len());
    for (block, stored) in blocks.iter().zip(stored) {
        assert_eq!(block.first, stored["first"].as_i64().unwrap());
        assert_eq!(block.entries, bytes(&stored["entries"]));
    }
    assert_eq!(blocks[0].entries.len(), BLOCK * 36);
    let unpacked: Vec<_> = stored
        .iter()
        .flat_map(|block| unpack(block["first"].as_i64().unwrap(), &bytes(&block["entries"])).collect::<Vec<_>>())
        .collect();
    assert_eq!(unpacked, entries.iter().map(|entry| (entry.id, entry.code)).collect::<Vec<_>>());
}

#[test]
fn each_bit_that_differs_counts_once() {
    let golden = golden();
    let codes: Vec<_> = golden["vectors"].as_array().unwrap().iter().map(|set| bytes(&set["code"])).collect();
    for one in &codes {
        for other in &codes {
            let bits: u32 = one.iter().zip(other).map(|(a, b)| (a ^ b).count_ones()).sum();
            assert_eq!(distance(&from_bytes(one).unwrap(), &from_bytes(other).unwrap()), bits);
        }
    }
}

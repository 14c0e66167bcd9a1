//! Compares stored codes and blocks with a second implementation (`tests/fixtures/codes.py`), because any difference
//! would make every stored code useless.

use std::path::Path;

use clip::clustering::binary_code::{BLOCK, BYTES, Block, Candidate, Entry, Nearest};
use clip::clustering::binary_code::{Coder, distance, from_bytes, to_bytes, unpack};
use clip::clustering::likelihood::Likelihood;
use clip::vector::l2_normalize;
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

#[test]
fn scores_are_those_of_the_second_implementation() {
    let golden = golden();
    let sets = golden["likelihood"].as_array().unwrap();
    assert_eq!(sets.len(), 3);
    for set in sets {
        let mut vector = vector(&set["vector"]);
        l2_normalize(&mut vector).unwrap();
        let coder = Coder::new(vector.len());
        let codes = set["codes"].as_array().unwrap();
        let candidates: Vec<Candidate> = (0..)
            .zip(codes)
            .map(|(id, code)| Candidate { id, distance: 7, code: from_bytes(&bytes(code)).unwrap() })
            .collect();
        let cosine = set["cosine"].as_f64().unwrap();
        let likelihood = Likelihood::new(&coder.rotate(&vector), coder.width(), cosine, &candidates);
        let expected: Vec<f64> =
            set["scores"].as_array().unwrap().iter().map(|score| score.as_f64().unwrap()).collect();
        for (candidate, expected) in candidates.iter().zip(&expected) {
            let found = likelihood.score(&candidate.code);
            assert!((found - expected).abs() < 0.02, "{} dimensions: {found}, not {expected}", vector.len());
        }
        // The vector's own cluster ranks first, with the expected score.
        let ranked = likelihood.rank(candidates.clone());
        assert!(ranked[0].1.id == 0 && ranked[0].0 > -3.3);
        let mut sorted = expected.clone();
        sorted.sort_by(|a, b| b.total_cmp(a));
        assert!(ranked.iter().zip(sorted).all(|((score, _), expected)| (score - expected).abs() < 0.02));
        // Among equal scores, the nearer cluster ranks first, then the older one.
        let twin = |id, distance| Candidate { id, distance, ..candidates[0] };
        let twins = likelihood.rank(vec![twin(2, 8), twin(3, 7), twin(1, 7)]);
        assert_eq!(twins.iter().map(|(_, twin)| twin.id).collect::<Vec<_>>(), [1, 3, 2]);
    }
}

#[test]
fn no_cosine_and_no_candidates_are_no_panic() {
    let coder = Coder::new(3);
    let rotated = coder.rotate(&[0.6, 0.8, 0.0]);
    let code = coder.encode(&[0.6, 0.8, 0.0]);
    for cosine in [-1.0, 0.0, 0.5, 1.0] {
        let likelihood = Likelihood::new(&rotated, coder.width(), cosine, &[]);
        assert!(likelihood.score(&code).is_finite());
    }
    // If the cosine says nothing, no code is unlikely.
    assert_eq!(Likelihood::new(&rotated, coder.width(), -0.5, &[]).score(&code), 0.0);
}

/// Data read from a table are checked: a block of any bytes is scanned without a panic, and a block that is not a whole
/// number of entries counts as empty.
#[test]
fn damaged_blocks_are_no_panic() {
    let coder = Coder::new(8);
    let query = coder.encode(&[0.5, -0.5, 0.1, 0.7, -0.2, 0.0, 0.3, 0.9]);
    let mut state = 7_u32;
    for length in 0..200 {
        let bytes: Vec<u8> = (0..length)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                // Most bytes are 0xFF, as in a block that fuzzing found.
                if state >> 30 == 0 { (state >> 20) as u8 } else { 0xFF }
            })
            .collect();
        for first in [i64::MIN, -1, 0, 1, i64::MAX] {
            for limit in [1, 3] {
                let mut nearest = Nearest::new(query, 256, limit);
                nearest.scan(first, &bytes);
                let found = nearest.into_sorted().count();
                let whole = if length % 36 == 0 { length / 36 } else { 0 };
                assert!(found <= whole, "{found} of {whole} in {length} bytes");
                assert_eq!(unpack(first, &bytes).count(), whole);
            }
        }
    }
}

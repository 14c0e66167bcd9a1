//! Binary codes of unit vectors. With 32 bytes per centroid, they find the centroids that can be near among a million.
//!
//! A code contains the signs of a vector's components after a random rotation. Two vectors at an angle θ differ in each
//! bit with probability θ/π (Charikar, *Similarity estimation techniques from rounding algorithms*, 2002), so the
//! Hamming distance of two codes estimates the angle. Only the few centroids with the smallest distances are compared
//! exactly. The rotation is three rounds of random signs and a Walsh–Hadamard transform (Andoni et al., *Practical and
//! optimal LSH for angular distance*, 2015), which needs no matrix.
//!
//! The unsafe calls are a function compiled for a CPU feature that was detected before the call, and a prefetch hint.
#![allow(unsafe_code)]

/// Bits of a code. With 256 bits, unrelated vectors differ in 128 ± 8 bits, and vectors with cosine 0.82 in 50 ± 6.
pub const BITS: usize = 256;
const WORDS: usize = BITS / 64;
/// Bytes of a stored code.
pub const BYTES: usize = BITS / 8;

/// A code: bit `i` is bit `i % 64` of word `i / 64`.
pub type Code = [u64; WORDS];

/// The rotation for vectors of one dimension. Its signs are fixed, because another rotation would make stored codes
/// useless.
pub struct Coder {
    dimensions: usize,
    signs: [Vec<f32>; 3],
}

impl Coder {
    /// The rotation for vectors with this many dimensions.
    pub fn new(dimensions: usize) -> Self {
        let width = dimensions.max(BITS).next_power_of_two();
        // SplitMix64 (Steele et al. 2014) from a fixed seed.
        let mut state = 0x0063_6c69_705f_7321_u64;
        let mut sign = || {
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            if (z ^ (z >> 31)) & 1 == 0 { 1.0 } else { -1.0 }
        };
        let signs = [(); 3].map(|()| (0..width).map(|_| sign()).collect());
        Self { dimensions, signs }
    }

    /// The number of dimensions of a vector before the rotation.
    pub fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// The number of components of a vector after the rotation.
    pub fn width(&self) -> usize {
        self.signs[0].len()
    }

    /// The code of a vector, whose length doesn't matter.
    ///
    /// # Panics
    /// If the vector has another number of dimensions.
    pub fn encode(&self, vector: &[f32]) -> Code {
        let mut code = [0; WORDS];
        for (bit, value) in self.transform(vector)[..BITS].iter().enumerate() {
            code[bit / 64] |= u64::from(*value >= 0.0) << (bit % 64);
        }
        code
    }

    /// The components of a vector after the rotation whose signs form the code: the first [`BITS`] of [`Self::width`].
    /// The rotation keeps the vector's length.
    pub fn rotate(&self, vector: &[f32]) -> Vec<f32> {
        let mut values = self.transform(vector);
        values.truncate(BITS);
        let scale = (self.width() as f32).powf(-1.5);
        values.iter_mut().for_each(|value| *value *= scale);
        values
    }

    /// The rotation without scaling: it multiplies the vector's length by `width` to the power of 1.5.
    fn transform(&self, vector: &[f32]) -> Vec<f32> {
        assert_eq!(vector.len(), self.dimensions, "dimensions are checked by the caller");
        let mut values = vec![0.0; self.width()];
        values[..vector.len()].copy_from_slice(vector);
        for signs in &self.signs {
            values.iter_mut().zip(signs).for_each(|(value, sign)| *value *= sign);
            hadamard(&mut values);
        }
        values
    }
}

/// The fast Walsh–Hadamard transform, not scaled.
fn hadamard(values: &mut [f32]) {
    let mut half = 1;
    while half < values.len() {
        for pair in values.chunks_exact_mut(2 * half) {
            let (low, high) = pair.split_at_mut(half);
            for (a, b) in low.iter_mut().zip(high) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half *= 2;
    }
}

/// The number of bits in which two codes differ.
pub fn distance(a: &Code, b: &Code) -> u32 {
    a.iter().zip(b).map(|(a, b)| (a ^ b).count_ones()).sum()
}

/// A code in its stored form.
pub fn to_bytes(code: &Code) -> Vec<u8> {
    code.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// A code from its stored form. None if the number of bytes is not [`BYTES`].
pub fn from_bytes(bytes: &[u8]) -> Option<Code> {
    let mut code = [0; WORDS];
    for (word, bytes) in code.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = u64::from_le_bytes(bytes.try_into().ok()?);
    }
    (bytes.len() == BYTES).then_some(code)
}

/// The maximum distance between the codes of two vectors with at least this cosine: the expected distance, plus 3.5
/// standard deviations (two in 10,000 vectors lie beyond), plus `drift` bits by which a stored code may be out of date.
pub fn reach(cosine: f64, drift: u32) -> u32 {
    let p = cosine.clamp(-1.0, 1.0).acos() / std::f64::consts::PI;
    let bits = BITS as f64;
    ((bits * p + deviations(p)).ceil() as u32 + drift).min(BITS as u32)
}

fn deviations(p: f64) -> f64 {
    3.5 * (BITS as f64 * p * (1.0 - p)).sqrt()
}

/// A cluster's id and code.
#[derive(Clone, Copy)]
pub struct Entry {
    pub id: i64,
    /// The number by which readers recognise newer entries.
    pub sequence_number: i64,
    pub code: Code,
}

/// A block of ids and codes in its stored form: the offsets of the ids from the first id (4 bytes each, little-endian),
/// then the codes.
pub struct Block {
    pub first: i64,
    /// The highest sequence number of the entries.
    pub sequence_number: i64,
    pub entries: Vec<u8>,
}

const ENTRY: usize = 4 + BYTES;
/// The maximum number of entries in a block: they fit in a row of a PostgreSQL page (8192 bytes), with room for the
/// row's other columns.
pub const BLOCK: usize = 216;

impl Block {
    /// Packs entries into blocks of up to [`BLOCK`]. The ids must be in ascending order.
    pub fn pack(entries: &[Entry]) -> Vec<Self> {
        let mut blocks = Vec::new();
        let mut rest = entries;
        while let Some(&Entry { id: first, .. }) = rest.first() {
            let fits = rest.iter().take(BLOCK).take_while(|entry| u32::try_from(entry.id - first).is_ok()).count();
            let (taken, left) = rest.split_at(fits);
            let mut bytes = Vec::with_capacity(taken.len() * ENTRY);
            bytes.extend(taken.iter().flat_map(|entry| ((entry.id - first) as u32).to_le_bytes()));
            bytes.extend(taken.iter().flat_map(|entry| to_bytes(&entry.code)));
            let sequence_number = taken.iter().map(|entry| entry.sequence_number).max().unwrap_or_default();
            blocks.push(Self { first, sequence_number, entries: bytes });
            rest = left;
        }
        blocks
    }
}

/// The ids and codes of a stored block.
pub fn unpack(first: i64, entries: &[u8]) -> impl Iterator<Item = (i64, Code)> {
    let (offsets, codes) = halves(entries);
    offsets.chunks_exact(4).zip(codes.chunks_exact(BYTES)).map(move |(offset, code)| {
        let offset = u32::from_le_bytes(offset.try_into().expect("four bytes"));
        (first.wrapping_add(i64::from(offset)), from_bytes(code).expect("as many bytes as a code has"))
    })
}

/// The offsets and the codes of a stored block; both are empty if the bytes are not a whole number of entries.
fn halves(entries: &[u8]) -> (&[u8], &[u8]) {
    let entries = if entries.len().is_multiple_of(ENTRY) { entries } else { &[] };
    entries.split_at(entries.len() / ENTRY * 4)
}

/// The number of bytes to prefetch ahead. A million codes don't fit in a cache, so most of the time is spent waiting
/// for memory. At the end of a page, the prefetched bytes are the beginning of the next page if pages are in order.
const AHEAD: usize = 2048;

#[inline(always)]
fn prefetch(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint; it reads no data, and no address causes a fault.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// A cluster whose code is near a vector's code.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    pub id: i64,
    /// The number of bits in which its code differs from the vector's.
    pub distance: u32,
    pub code: Code,
}

/// Collects the nearest codes: at most `limit` codes, plus ties at the greatest distance, and none beyond the reach.
pub struct Nearest {
    query: Code,
    limit: usize,
    /// Codes at this distance or farther are not kept.
    cut: usize,
    kept: usize,
    /// Ids and codes by distance.
    buckets: Vec<Vec<(i64, Code)>>,
    popcnt: bool,
}

impl Nearest {
    /// Keeps the `limit` codes nearest to `query`, and none that differs from it in more than `reach` bits.
    pub fn new(query: Code, reach: u32, limit: usize) -> Self {
        let cut = reach as usize + 1;
        #[cfg(target_arch = "x86_64")]
        let popcnt = std::arch::is_x86_feature_detected!("popcnt");
        #[cfg(not(target_arch = "x86_64"))]
        let popcnt = false;
        Self { query, limit, cut, kept: 0, buckets: vec![Vec::new(); cut], popcnt }
    }

    /// Compares all codes of a block with the query. Invalid `entries` are skipped.
    pub fn scan(&mut self, first: i64, entries: &[u8]) {
        #[cfg(target_arch = "x86_64")]
        if self.popcnt {
            // SAFETY: `popcnt` is set only if the CPU has the feature.
            return unsafe { self.scan_popcnt(first, entries) };
        }
        self.scan_with(first, entries);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "popcnt")]
    fn scan_popcnt(&mut self, first: i64, entries: &[u8]) {
        self.scan_with(first, entries);
    }

    #[inline(always)]
    fn scan_with(&mut self, first: i64, entries: &[u8]) {
        let (offsets, codes) = halves(entries);
        for (index, code) in codes.chunks_exact(BYTES).enumerate() {
            prefetch(code.as_ptr().wrapping_add(AHEAD));
            let mut distance = 0;
            for (word, bytes) in self.query.iter().zip(code.chunks_exact(8)) {
                distance += (word ^ u64::from_le_bytes(bytes.try_into().expect("eight bytes"))).count_ones() as usize;
            }
            if distance < self.cut {
                let offset = u32::from_le_bytes(offsets[4 * index..][..4].try_into().expect("four bytes"));
                let code = from_bytes(code).expect("as many bytes as a code has");
                self.keep(distance, first.wrapping_add(i64::from(offset)), code);
            }
        }
    }

    fn keep(&mut self, distance: usize, id: i64, code: Code) {
        self.buckets[distance].push((id, code));
        self.kept += 1;
        // Drops the farthest codes while the nearer ones are enough.
        while self.kept - self.buckets[self.cut - 1].len() >= self.limit {
            self.cut -= 1;
            self.kept -= std::mem::take(&mut self.buckets[self.cut]).len();
        }
    }

    /// The collected codes, nearest first.
    pub fn into_sorted(self) -> impl Iterator<Item = Candidate> {
        self.buckets
            .into_iter()
            .zip(0..)
            .flat_map(|(found, distance)| found.into_iter().map(move |(id, code)| Candidate { id, distance, code }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Vectors with standard normal components, from a linear congruential generator and the sum of twelve uniform
    /// numbers.
    fn random(count: usize, dimensions: usize) -> Vec<Vec<f32>> {
        let mut state = 7_u64;
        let mut normal = move || {
            (0..12)
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    (state >> 40) as f32 / (1 << 24) as f32
                })
                .sum::<f32>()
                - 6.0
        };
        (0..count).map(|_| (0..dimensions).map(|_| normal()).collect()).collect()
    }

    fn cosine(a: &[f32], b: &[f32]) -> f64 {
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(x * y)).sum::<f64>();
        dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
    }

    #[test]
    fn distances_estimate_angles() {
        for dimensions in [3, 48, 512, 768] {
            let coder = Coder::new(dimensions);
            let (mut off, mut furthest, mut pairs) = (0.0, 0.0f64, 0.0);
            for pair in random(400, dimensions).chunks_exact(2) {
                for share in [0.05, 0.3, 1.0] {
                    let near: Vec<f32> = pair[0].iter().zip(&pair[1]).map(|(a, b)| a + share * b).collect();
                    let p = cosine(&pair[0], &near).acos() / std::f64::consts::PI;
                    let found = f64::from(distance(&coder.encode(&pair[0]), &coder.encode(&near)));
                    let deviation = (BITS as f64 * p * (1.0 - p)).sqrt();
                    let score = (found - BITS as f64 * p) / deviation;
                    off += score;
                    furthest = furthest.max(score.abs());
                    pairs += 1.0;
                }
            }
            assert!(f64::abs(off / pairs) < 0.25, "{dimensions}: the mean is off by {} deviations", off / pairs);
            assert!(furthest < 4.5, "{dimensions}: one is off by {furthest} deviations");
        }
    }

    #[test]
    fn a_code_ignores_length_and_only_that() {
        let coder = Coder::new(512);
        let v = &random(1, 512)[0];
        let doubled: Vec<f32> = v.iter().map(|x| 2.0 * x).collect();
        let negated: Vec<f32> = v.iter().map(|x| -x).collect();
        assert_eq!(coder.encode(v), coder.encode(&doubled));
        assert_eq!(from_bytes(&to_bytes(&coder.encode(v))), Some(coder.encode(v)));
        assert_eq!(from_bytes(&[0; 31]), None);
        assert_eq!(distance(&coder.encode(v), &coder.encode(&negated)), BITS as u32);
        // If the number of components equals the number of bits, the rotation keeps length and angles.
        let coder = Coder::new(BITS);
        let (a, b) = (&random(2, BITS)[0], &random(2, BITS)[1]);
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(x * y)).sum::<f64>();
        assert!((dot(&coder.rotate(a), &coder.rotate(b)) - dot(a, b)).abs() < 1e-3);
        assert!((dot(&coder.rotate(a), &coder.rotate(a)) / dot(a, a) - 1.0).abs() < 1e-5);
        let signs = coder.rotate(a).iter().rev().fold(Vec::new(), |mut bits, v| {
            bits.insert(0, *v >= 0.0);
            bits
        });
        assert!((0..BITS).all(|bit| (coder.encode(a)[bit / 64] >> (bit % 64) & 1 == 1) == signs[bit]));
        assert_eq!((Coder::new(512).width(), Coder::new(513).width(), Coder::new(3).width()), (512, 1024, BITS));
    }

    #[test]
    fn the_nearest_of_many_blocks_are_found_in_order() {
        let coder = Coder::new(64);
        let vectors = random(3000, 64);
        let entries: Vec<Entry> = vectors
            .iter()
            .zip(0..)
            .map(|(v, i)| Entry {
                id: 5 + 3 * i + if i > 1000 { 1 << 40 } else { 0 },
                sequence_number: 9000 - i,
                code: coder.encode(v),
            })
            .collect();
        let blocks = Block::pack(&entries);
        // The ids jump after 1001 entries, which starts a new block.
        assert_eq!(blocks.len(), 1001usize.div_ceil(BLOCK) + 1999usize.div_ceil(BLOCK));
        assert!(blocks.iter().all(|b| b.entries.len() <= BLOCK * 36));
        assert_eq!((blocks[0].sequence_number, blocks[1].sequence_number), (9000, 9000 - BLOCK as i64));
        let unpacked: Vec<_> = blocks.iter().flat_map(|block| unpack(block.first, &block.entries)).collect();
        assert_eq!(unpacked, entries.iter().map(|entry| (entry.id, entry.code)).collect::<Vec<_>>());
        assert_eq!(unpack(1, b"not a block").count(), 0);
        let query = coder.encode(&vectors[1234]);
        let mut truth: Vec<(u32, i64)> = entries.iter().map(|e| (distance(&query, &e.code), e.id)).collect();
        truth.sort();
        let mut nearest = Nearest::new(query, BITS as u32, 50);
        let mut short = Nearest::new(query, truth[4].0, 50);
        for block in &blocks {
            nearest.scan(block.first, &block.entries);
            short.scan(block.first, &block.entries);
        }
        let sorted = |nearest: Nearest| -> Vec<(u32, i64)> {
            let codes: std::collections::HashMap<i64, Code> = entries.iter().map(|e| (e.id, e.code)).collect();
            let found: Vec<Candidate> = nearest.into_sorted().collect();
            assert!(found.iter().all(|candidate| candidate.code == codes[&candidate.id]));
            found.iter().map(|candidate| (candidate.distance, candidate.id)).collect()
        };
        let found = sorted(nearest);
        // All codes at the last distance are kept, so that no tie is split.
        assert!(found.len() >= 50 && found[0] == (0, entries[1234].id));
        assert_eq!(found, truth[..found.len()]);
        let within = truth.iter().filter(|(d, _)| *d <= truth[4].0).count();
        assert_eq!(sorted(short), truth[..within]);
    }

    #[test]
    fn blocks_of_any_bytes_are_scanned_without_a_panic() {
        let code = [u64::MAX; WORDS];
        for length in 0..4 * ENTRY {
            let bytes = vec![0xff; length];
            let mut nearest = Nearest::new(code, BITS as u32, 10);
            // The id exceeds the largest id: the result is meaningless, but there is no panic.
            nearest.scan(i64::MAX, &bytes);
            let whole = if length % ENTRY == 0 { length / ENTRY } else { 0 };
            assert_eq!(nearest.into_sorted().count(), whole, "{length} bytes");
            assert_eq!(unpack(i64::MAX, &bytes).count(), whole, "{length} bytes");
        }
    }

    #[test]
    fn reach_grows_with_the_angle_and_never_misses_by_drift() {
        assert_eq!(reach(1.0, 0), 0);
        assert_eq!(reach(-1.0, 16), BITS as u32);
        assert!((reach(0.0, 0) as i32 - 156).abs() <= 1);
        assert_eq!(reach(0.82, 16), reach(0.82, 0) + 16);
    }
}

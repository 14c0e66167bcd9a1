//! Images that a connection has embedded recently. `ORDER BY embedding <=> clip_embed_image(…)` embeds the same image
//! once per row without an index, and once per returned row with an index.

use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroUsize;

use clip::image::Limits;
use lru::LruCache;
use siphasher::sip128::SipHasher13;

/// A file's identity: 128 bits of a keyed hash of its bytes. The key is secret and new in every connection, so a user
/// can't create a file with the same hash as another.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(u64, u64);

thread_local! {
    /// The standard library gets the keys of a RandomState from the system; hashes under these keys are equally secret.
    static KEYS: (u64, u64) = (RandomState::new().hash_one(0), RandomState::new().hash_one(1));
}

impl Fingerprint {
    pub fn of(file: &[u8]) -> Self {
        let (first, second) = KEYS.with(|keys| *keys);
        let hash = SipHasher13::new_with_keys(first, second).hash(file);
        Self(hash.h1, hash.h2)
    }
}

/// The settings that affect an image: its pixels, and whether it is refused.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Settings(u64, u64, u64, bool, bool);

impl Settings {
    fn of(limits: &Limits) -> Self {
        Self(limits.max_pixels, limits.max_bytes, limits.max_memory, limits.allow_truncated, limits.exact_jpeg)
    }
}

/// The least recently used images are evicted. The cache belongs to a loaded model and is dropped with it.
pub struct ImageMemo(LruCache<(Fingerprint, Settings), Vec<f32>>);

impl ImageMemo {
    pub fn new() -> Self {
        Self(LruCache::new(NonZeroUsize::MIN))
    }

    /// Sets the maximum number of images.
    pub fn resize(&mut self, most: usize) {
        match NonZeroUsize::new(most) {
            Some(most) if self.0.cap() != most => self.0.resize(most),
            Some(_) => {}
            None => self.0.clear(),
        }
    }

    pub fn get(&mut self, file: Fingerprint, limits: &Limits) -> Option<Vec<f32>> {
        self.0.get(&(file, Settings::of(limits))).cloned()
    }

    pub fn put(&mut self, file: Fingerprint, limits: &Limits, vector: Vec<f32>) {
        self.0.put((file, Settings::of(limits)), vector);
    }
}

//! Divides a list among several processes.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};

/// Shard `index` of `count`; `index` counts from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    pub index: u32,
    pub count: u32,
}

/// Maximum number of shards: more than anybody has processors.
const MOST: u32 = 1_000_000;

impl Shard {
    /// The shard of a key: the first 64 bits of its SHA-256, modulo the number of shards, plus 1. It is the same on
    /// every machine and in every version, and other programs can compute it.
    pub fn of(key: &str, count: u32) -> u32 {
        let digest = Sha256::digest(key);
        let first = digest.iter().take(8).fold(0u64, |number, &byte| (number << 8) | u64::from(byte));
        (first % u64::from(count)) as u32 + 1
    }

    pub fn takes(self, key: &str) -> bool {
        Self::of(key, self.count) == self.index
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.count)
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('/').and_then(|(index, count)| Some((index.parse().ok()?, count.parse().ok()?)));
        match parts {
            Some((index, count)) if (1..=count).contains(&index) && count <= MOST => Ok(Self { index, count }),
            Some((_, count)) if (1..=MOST).contains(&count) => {
                Err(format!("{count} shards are counted from 1/{count} to {count}/{count}"))
            }
            _ => Err(format!("not I/N, with N from 1 to {MOST}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_one_shard_forever() {
        // Expected: SELECT ('x' || left(encode(sha256(key::bytea), 'hex'), 16))::bit(64), as a number modulo 7, plus 1.
        for (key, shard) in [("cat.jpg", 7), ("größe.jpg", 2), ("42", 3), ("", 2)] {
            assert_eq!(Shard::of(key, 7), shard, "{key}");
        }
        let counts = (0..7000).map(|key| Shard::of(&key.to_string(), 7)).fold([0; 8], |mut counts, shard| {
            counts[shard as usize] += 1;
            counts
        });
        assert!(counts[0] == 0 && counts[1..].iter().all(|count| (900..1100).contains(count)), "{counts:?}");
    }

    #[test]
    fn it_is_written_as_a_fraction() {
        assert_eq!("2/3".parse(), Ok(Shard { index: 2, count: 3 }));
        for wrong in ["0/3", "4/3", "1/0", "1", "a/b", "1/2/3", "-1/3", "1/9999999"] {
            assert!(wrong.parse::<Shard>().is_err(), "{wrong}");
        }
    }
}

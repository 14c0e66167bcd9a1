//! Divides a worker's time among owners, and an owner's share among tables.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::time::Duration;

use pgrx::pg_sys;

use crate::watch::setting::Watch;

#[derive(Default)]
pub struct Shares {
    owners: Accounts<pg_sys::Oid>,
    /// The watches' accounts within an owner's share.
    watches: HashMap<pg_sys::Oid, Accounts<i64>>,
}

impl Shares {
    /// Chooses the next of the watches that have work.
    pub fn choose<'a>(&mut self, due: &[&'a Watch]) -> Option<&'a Watch> {
        let owner = self.owners.choose(due.iter().map(|watch| watch.owner))?;
        let of_owner = || due.iter().filter(|watch| watch.owner == owner);
        let id = self.watches.entry(owner).or_default().choose(of_owner().map(|watch| watch.id))?;
        of_owner().find(|watch| watch.id == id).copied()
    }

    /// Records the time that a watch has used.
    pub fn charge(&mut self, watch: &Watch, time: Duration) {
        self.owners.charge(watch.owner, time);
        self.watches.entry(watch.owner).or_default().charge(watch.id, time);
    }
}

/// The time that each account has used.
struct Accounts<K> {
    spent: HashMap<K, Duration>,
    /// The accounts that had work when the last one was chosen.
    active: HashSet<K>,
    /// The order in which they were last charged.
    turn: HashMap<K, u64>,
    turns: u64,
}

impl<K> Default for Accounts<K> {
    fn default() -> Self {
        Self { spent: HashMap::new(), active: HashSet::new(), turn: HashMap::new(), turns: 0 }
    }
}

impl<K: Copy + Eq + Hash> Accounts<K> {
    /// Chooses the account with the least time; on a tie, the one charged longest ago. Idle accounts earn no credit: on
    /// return they start level with the others.
    fn choose(&mut self, active: impl Iterator<Item = K>) -> Option<K> {
        let active: HashSet<K> = active.collect();
        let least = self.active.iter().filter_map(|known| self.spent.get(known)).min().copied().unwrap_or_default();
        for new in active.difference(&self.active) {
            let spent = self.spent.entry(*new).or_default();
            *spent = (*spent).max(least);
        }
        self.active = active;
        let key = |known: &&K| (self.spent.get(*known).copied(), self.turn.get(*known).copied());
        self.active.iter().min_by_key(key).copied()
    }

    fn charge(&mut self, who: K, time: Duration) {
        *self.spent.entry(who).or_default() += time;
        self.turns += 1;
        self.turn.insert(who, self.turns);
    }
}

//! How a worker's time is shared out: by owner, and an owner's share by table.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::time::Duration;

use pgrx::pg_sys;

use crate::watch::setting::Watch;

#[derive(Default)]
pub struct Shares {
    owners: Accounts<pg_sys::Oid>,
    /// A watch's, within its owner's share.
    watches: HashMap<pg_sys::Oid, Accounts<i64>>,
}

impl Shares {
    /// Which of the watches that have something to do comes next.
    pub fn choose<'a>(&mut self, due: &[&'a Watch]) -> Option<&'a Watch> {
        let owner = self.owners.choose(due.iter().map(|watch| watch.owner))?;
        let of_owner = || due.iter().filter(|watch| watch.owner == owner);
        let id = self.watches.entry(owner).or_default().choose(of_owner().map(|watch| watch.id))?;
        of_owner().find(|watch| watch.id == id).copied()
    }

    /// Notes the time that a watch has had.
    pub fn charge(&mut self, watch: &Watch, time: Duration) {
        self.owners.charge(watch.owner, time);
        self.watches.entry(watch.owner).or_default().charge(watch.id, time);
    }
}

/// The time that each of several has had.
struct Accounts<K> {
    spent: HashMap<K, Duration>,
    /// Who had something to do when the last was chosen.
    active: HashSet<K>,
    /// In what order they were charged last.
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

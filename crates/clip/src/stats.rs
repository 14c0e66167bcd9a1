//! Counters of embedders for each model: plain data without pointers, so that processes can share it.

use std::time::Duration;

use crate::embedder::Counters;

/// The number of models with their own counters, including one entry for all later models together.
const MODELS: usize = 32;
const OTHERS: &str = "(others)";
/// Longer names are truncated.
const NAME: usize = 127;

/// The counters of one model; times are in microseconds.
#[derive(Clone, Copy, Default)]
pub struct Figures {
    pub calls: u64,
    pub errors: u64,
    pub memo_hits: u64,
    pub images: u64,
    pub texts: u64,
    pub runs: u64,
    pub loads: u64,
    pub loading: u64,
    pub decoding: u64,
    pub inference: u64,
    pub total: u64,
}

impl Figures {
    /// The figures of one call that took `taken`, from the embedder's counters before and after it.
    pub fn of_call(before: &Counters, after: &Counters, taken: Duration, failed: bool, memo_hits: u64) -> Self {
        let micros = |d: Duration| d.as_micros() as u64;
        Self {
            calls: 1,
            errors: failed.into(),
            memo_hits,
            images: after.images - before.images,
            texts: after.texts - before.texts,
            runs: after.runs - before.runs,
            loads: after.loads - before.loads,
            loading: micros(after.loading - before.loading),
            decoding: micros(after.decoding - before.decoding),
            inference: micros(after.inference - before.inference),
            total: micros(taken),
        }
    }

    fn add(&mut self, other: &Self) {
        self.calls += other.calls;
        self.errors += other.errors;
        self.memo_hits += other.memo_hits;
        self.images += other.images;
        self.texts += other.texts;
        self.runs += other.runs;
        self.loads += other.loads;
        self.loading += other.loading;
        self.decoding += other.decoding;
        self.inference += other.inference;
        self.total += other.total;
    }
}

#[derive(Clone, Copy)]
struct Slot {
    name: [u8; NAME],
    length: u8,
    figures: Figures,
}

/// The counters of all models.
#[derive(Clone, Copy)]
pub struct Table {
    slots: [Slot; MODELS],
    used: usize,
    /// When counting began, in the caller's unit of time; 0 before the first call.
    pub since: i64,
}

impl Default for Table {
    fn default() -> Self {
        let empty = Slot { name: [0; NAME], length: 0, figures: Figures::default() };
        Self { slots: [empty; MODELS], used: 0, since: 0 }
    }
}

impl Table {
    /// Adds the figures of a call for a model.
    pub fn add(&mut self, model: &str, figures: &Figures, now: i64) {
        if self.since == 0 {
            self.since = now;
        }
        let model = &model[..model.floor_char_boundary(NAME)];
        let known = |table: &Self, name: &str| table.slots[..table.used].iter().position(|slot| slot.name() == name);
        let index = known(self, model).or_else(|| (self.used < MODELS - 1).then(|| self.open(model)));
        let index = index.unwrap_or_else(|| known(self, OTHERS).unwrap_or_else(|| self.open(OTHERS)));
        self.slots[index].figures.add(figures);
    }

    /// The (model, counters) pairs, in the order of the models' first calls.
    pub fn rows(&self) -> impl Iterator<Item = (&str, &Figures)> {
        self.slots[..self.used].iter().map(|slot| (slot.name(), &slot.figures))
    }

    fn open(&mut self, name: &str) -> usize {
        let slot = &mut self.slots[self.used];
        slot.name[..name.len()].copy_from_slice(name.as_bytes());
        slot.length = name.len() as u8;
        self.used += 1;
        self.used - 1
    }
}

impl Slot {
    fn name(&self) -> &str {
        std::str::from_utf8(&self.name[..self.length.into()]).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_beyond_the_table_are_counted_together() {
        let mut table = Table::default();
        let one = Figures { calls: 1, texts: 2, ..Figures::default() };
        for round in 0..2 {
            for n in 0..40 {
                table.add(&format!("model {n}"), &one, 7 + round);
            }
        }
        assert_eq!((table.used, table.since), (MODELS, 7));
        assert_eq!(table.slots[3].name(), "model 3");
        assert_eq!(table.slots[3].figures.calls, 2);
        let others = &table.slots[MODELS - 1];
        assert_eq!((others.name(), others.figures.calls, others.figures.texts), (OTHERS, 2 * 9, 4 * 9));
        let long = "ä".repeat(100);
        let mut table = Table::default();
        table.add(&long, &one, 1);
        table.add(&long, &one, 1);
        assert_eq!((table.used, table.slots[0].name().len()), (1, 126));
    }
}

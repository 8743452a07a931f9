//! Models by number. A number is given once and never again, so that a count of something forgotten never becomes another's.

use std::collections::HashMap;

use crate::ids::ModelKey;

/// Models that are remembered: more than a node serves in a month.
pub(super) const NAMES_MAX: usize = 4096;

/// One model.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Named {
    pub(super) model: ModelKey,
    /// When it was last seen, in milliseconds of the wall clock.
    pub(super) seen_ms: u64,
}

/// The models that are known.
#[derive(Debug, Default)]
pub(super) struct Names {
    numbers: HashMap<ModelKey, u32>,
    rows: HashMap<u32, Named>,
    next: u32,
}

impl Names {
    /// Takes up what was kept.
    pub(super) fn from_rows(rows: impl IntoIterator<Item = (u32, Named)>) -> Self {
        let mut names = Self::default();
        for (number, row) in rows.into_iter().take(NAMES_MAX) {
            names.numbers.insert(row.model.clone(), number);
            names.rows.insert(number, row);
            names.next = names.next.max(number.saturating_add(1));
        }
        names
    }

    /// A model's number; a new one if it has none.
    pub(super) fn number(&mut self, model: &ModelKey, at_ms: u64) -> u32 {
        if let Some(number) = self.numbers.get(model).copied() {
            if let Some(row) = self.rows.get_mut(&number) {
                row.seen_ms = at_ms;
            }
            return number;
        }
        if self.rows.len() >= NAMES_MAX {
            self.forget();
        }
        let number = self.next;
        self.next = self.next.wrapping_add(1);
        self.numbers.insert(model.clone(), number);
        self.rows.insert(number, Named { model: model.clone(), seen_ms: at_ms });
        number
    }

    pub(super) fn model(&self, number: u32) -> Option<&ModelKey> {
        self.rows.get(&number).map(|row| &row.model)
    }

    /// Forgets the quarter that was seen longest ago.
    fn forget(&mut self) {
        let mut oldest: Vec<(u64, u32)> = self.rows.iter().map(|(number, row)| (row.seen_ms, *number)).collect();
        let (gone, ..) = oldest.select_nth_unstable(NAMES_MAX / 4);
        for (_, number) in gone {
            if let Some(row) = self.rows.remove(number) {
                self.numbers.remove(&row.model);
            }
        }
    }

    /// All of them, by number.
    pub(super) fn rows(&self) -> Vec<(u32, &Named)> {
        let mut rows: Vec<(u32, &Named)> = self.rows.iter().map(|(number, row)| (*number, row)).collect();
        rows.sort_unstable_by_key(|(number, _)| *number);
        rows
    }
}

//! What the policy counted, over a restart.

use std::time::Duration;

use crate::engine::state::State;
use crate::plan::kept::Kept;

impl State {
    /// What should outlive a restart of the policy's counts, if something was counted since this was last asked.
    pub fn keep_uses(&mut self) -> Option<Kept> {
        if !std::mem::take(&mut self.counted) {
            return None;
        }
        let rows = self.plan.kept(self.now);
        (!rows.is_empty()).then_some(Kept { at: self.wall, rows })
    }

    /// Whether there is something to keep.
    #[must_use]
    pub fn uses_changed(&self) -> bool {
        self.counted
    }

    /// Takes up what was kept before a restart. A blob that was used after that was used once more than was kept.
    pub fn recall_uses(&mut self, kept: &Kept) {
        let since = |earlier: u64| Duration::from_millis(self.wall.0.saturating_sub(earlier));
        let age = since(kept.at.0);
        for row in &kept.rows {
            let used = self.blobs.get(&row.blob).map(|blob| blob.last_used).filter(|used| used.0 > kept.at.0);
            self.plan.recall_kept(row, age, used.map(|used| since(used.0)), self.now);
        }
    }
}

//! Keeps the record that reports are made of: adds to the present hour as things happen, and writes it down, the present hour once
//! a minute and the others when an hour is over. A crash costs a minute of it.

use std::collections::HashMap;
use std::time::Duration;

use crate::clock::Tick;
use crate::engine::event::{Broken, Event};
use crate::engine::run::Engine;
use crate::engine::scribe::Note;
use crate::engine::view::{DemoteReason, EnsureReady, EvictReason, Tier, What};
use crate::ids::OriginName;
use crate::plan::report::{Found, Hour, Moved, Record, Report, Totals};
use crate::store::Store;

/// How often the present hour is written while something happens.
const WRITE_INTERVAL: Duration = Duration::from_secs(60);
/// Where the hours before the present one are kept, and the present one. Their form is a format: another form is another name.
const PAST: &str = "report-1-past";
const PRESENT: &str = "report-1-present";

/// The record, and what it takes to keep it.
#[derive(Debug)]
pub(crate) struct Ledger {
    record: Record,
    /// Whether something was added since the present hour was written, and when that was.
    dirty: bool,
    written: Tick,
    /// Whether an hour ended since the others were written.
    turned: bool,
    /// Bytes of each origin that have been added, when they were last looked at, and whether something was under way then.
    bytes: HashMap<OriginName, u64>,
    looked: Tick,
    busy: bool,
}

impl Ledger {
    /// Takes up what was written.
    pub(crate) fn open(store: &Store, now: Tick) -> Self {
        let mut rows: Vec<Hour> = kept(store, PAST).unwrap_or_default();
        rows.extend(kept::<Hour>(store, PRESENT));
        let record = Record::from_rows(rows);
        Self { record, dirty: false, written: now, turned: false, bytes: HashMap::new(), looked: now, busy: false }
    }
}

fn kept<T: serde::de::DeserializeOwned>(store: &Store, name: &str) -> Option<T> {
    let bytes = store.get_state(name).ok()??;
    match serde_json::from_slice(&bytes) {
        Ok(kept) => Some(kept),
        Err(error) => {
            tracing::warn!(name, %error, "the record for reports is unreadable, beginning another");
            None
        }
    }
}

impl Engine {
    /// Reports on the last hours.
    pub(crate) fn report_on(&self, hours: u64) -> Report {
        self.ledger.record.report(hours, self.clock.wall())
    }

    /// The present hour, to add to.
    fn hour(&mut self) -> &mut Totals {
        let (totals, new) = self.ledger.record.at(self.clock.wall());
        self.ledger.turned |= new;
        self.ledger.dirty = true;
        totals
    }

    /// A request ended: did its origin let it down?
    pub(crate) fn enter_request(&mut self, event: &Event) {
        let Event::RequestEnded { request, result, .. } = event else { return };
        let failed = match result {
            Ok(()) => false,
            Err(Broken::Transient { .. } | Broken::Throttled { .. } | Broken::Refused(_)) => true,
            // The object is another one, or we stopped: no fault of the origin.
            Err(Broken::Changed | Broken::RangeIgnored | Broken::Local(_) | Broken::Aborted) => return,
        };
        let Some(origin) = self.state.origin_of(*request).cloned() else { return };
        let given = self.hour().origins.entry(origin).or_default();
        given.requests += 1;
        given.failed += u64::from(failed);
    }

    /// Whether origins must be looked at: something is under way, or was at the last look.
    pub(crate) fn is_watching_bytes(&self) -> bool {
        self.ledger.busy || self.is_busy()
    }

    /// What each origin sent since the last look, and that it was busy with it.
    pub(crate) fn enter_bytes(&mut self, samples: &[(OriginName, u64)]) {
        let now = self.clock.now();
        let passed = now.since(std::mem::replace(&mut self.ledger.looked, now));
        let busy = self.is_busy();
        // The time before the first of several looks was spent at rest.
        let since = if std::mem::replace(&mut self.ledger.busy, busy) { passed } else { Duration::ZERO };
        for (origin, total) in samples {
            let before = self.ledger.bytes.insert(origin.clone(), *total).unwrap_or_default();
            let came = total.saturating_sub(before);
            if came == 0 && self.state.lane(origin).0 == 0 {
                continue;
            }
            let given = self.hour().origins.entry(origin.clone()).or_default();
            given.bytes += came;
            given.busy_ms += u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        }
    }

    /// An ensure ended well.
    pub(crate) fn enter_ready(&mut self, ready: &EnsureReady) {
        let waited = u64::try_from(ready.elapsed.as_millis()).unwrap_or(u64::MAX);
        let slowest = ready.models.iter().map(|model| model.from).max().unwrap_or(Tier::Nvme);
        let hour = self.hour();
        hour.ready += 1;
        tier(hour, slowest).waited_ms += waited;
        for model in &ready.models {
            let found = tier(hour, model.from);
            found.models += 1;
            found.bytes += model.bytes;
        }
    }

    /// An ensure ended badly.
    pub(crate) fn enter_failed(&mut self) {
        self.hour().failed += 1;
    }

    /// Something was written down.
    pub(crate) fn enter(&mut self, what: &What) {
        let left = |bytes: u64| Moved { models: 1, bytes, ms: 0 };
        match what {
            What::Evicted { reason, bytes, .. } => {
                add(self.hour().evicted.entry(evict_word(reason).to_owned()).or_default(), left(*bytes));
            }
            What::Demoted { reason, bytes, .. } => {
                add(self.hour().demoted.entry(demote_word(reason).to_owned()).or_default(), left(*bytes));
            }
            What::Promoted { bytes, elapsed_ms, .. } => {
                add(&mut self.hour().locked, Moved { models: 1, bytes: *bytes, ms: *elapsed_ms });
            }
            What::Damaged { pieces_bad, .. } => self.hour().damaged += pieces_bad,
            _ => {}
        }
    }

    /// Writes the record, if it is time.
    pub(crate) fn keep_ledger(&mut self, at_once: bool) {
        let now = self.clock.now();
        if !self.ledger.dirty || !at_once && now.since(self.ledger.written) < WRITE_INTERVAL {
            return;
        }
        (self.ledger.dirty, self.ledger.written) = (false, now);
        let (past, present) = self.ledger.record.split_last();
        let mut files = Vec::new();
        if std::mem::take(&mut self.ledger.turned) {
            files.push((PAST, serde_json::to_vec(&past)));
        }
        files.extend(present.map(|present| (PRESENT, serde_json::to_vec(present))));
        for (name, bytes) in files {
            match bytes {
                Ok(bytes) => self.scribe.note(Note::State(name.to_owned(), bytes)),
                Err(error) => tracing::error!(name, %error, "the record for reports could not be written"),
            }
        }
    }

    /// When the record wants to be written.
    pub(crate) fn ledger_due(&self) -> Option<Tick> {
        self.ledger.dirty.then(|| self.ledger.written.after(WRITE_INTERVAL))
    }
}

fn tier(totals: &mut Totals, tier: Tier) -> &mut Found {
    match tier {
        Tier::Vram => &mut totals.vram,
        Tier::Ram => &mut totals.ram,
        Tier::Nvme => &mut totals.nvme,
        Tier::Origin => &mut totals.origin,
    }
}

fn add(mine: &mut Moved, more: Moved) {
    mine.models += more.models;
    mine.bytes += more.bytes;
    mine.ms += more.ms;
}

fn evict_word(reason: &EvictReason) -> &'static str {
    match reason {
        EvictReason::Room { .. } => "room",
        EvictReason::Asked { .. } => "asked",
        EvictReason::Shrunk { .. } => "shrunk",
        EvictReason::Replaced { .. } => "replaced",
    }
}

fn demote_word(reason: &DemoteReason) -> &'static str {
    match reason {
        DemoteReason::Room { .. } => "room",
        DemoteReason::Asked { .. } => "asked",
        DemoteReason::Pressure { .. } => "pressure",
        DemoteReason::Shrunk { .. } => "shrunk",
        DemoteReason::Removed => "removed",
        DemoteReason::Failed { .. } => "failed",
    }
}

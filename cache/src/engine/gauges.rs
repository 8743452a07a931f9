//! What the engine tells its metrics: gauges once a second while something changes, counters when something ends.

use std::time::Duration;

use crate::engine::event::{Broken, Event};
use crate::engine::run::Engine;
use crate::engine::view::{EnsureFailed, EnsurePlan, EnsureReady, OriginState, Phase, Tier, What};
use crate::ids::EnsureId;
use crate::metrics::{self, EnsureOutcome, RequestOutcome};
use crate::origin::OriginError;

/// How often gauges follow what changes.
pub(crate) const GAUGES_INTERVAL: Duration = Duration::from_secs(1);

/// How a request ended, for the counter.
pub(crate) fn outcome(error: &OriginError) -> RequestOutcome {
    match error {
        OriginError::NotFound { .. } => RequestOutcome::NotFound,
        OriginError::Denied { .. } => RequestOutcome::Denied,
        OriginError::Changed { .. } => RequestOutcome::Changed,
        OriginError::Throttled { .. } => RequestOutcome::Throttled,
        OriginError::Server { .. } => RequestOutcome::ServerError,
        OriginError::Timeout { .. } => RequestOutcome::Timeout,
        OriginError::Stalled { .. } => RequestOutcome::Stalled,
        OriginError::Reset { .. } => RequestOutcome::Reset,
        OriginError::Truncated { .. } => RequestOutcome::Truncated,
        OriginError::RangeIgnored { .. }
        | OriginError::Refused { .. }
        | OriginError::BadAnswer { .. }
        | OriginError::Connect { .. }
        | OriginError::TooLong { .. }
        | OriginError::TooMany { .. }
        | OriginError::Manifest { .. }
        | OriginError::Unsupported(_)
        | OriginError::Config(_)
        | OriginError::Local { .. } => RequestOutcome::Other,
    }
}

impl Engine {
    /// Counts what an event ends.
    pub(crate) fn count_event(&self, event: &Event) {
        if let Event::RequestEnded { request, result: Err(Broken::Transient { .. } | Broken::Throttled { .. }), .. } =
            event
            && let Some(origin) = self.state.origin_of(*request)
        {
            metrics::retried(origin);
        }
    }

    /// Counts what is written down.
    pub(crate) fn count_occurrence(what: &What) {
        match what {
            What::Evicted { reason, bytes, .. } => metrics::evicted(reason, *bytes),
            What::Demoted { reason, bytes, .. } => metrics::ram_demoted(reason, *bytes),
            What::Damaged { pieces_bad, .. } => metrics::damaged(*pieces_bad),
            What::Stored { bytes, .. } => metrics::stored(*bytes),
            What::FlightFailed { fault, .. } => metrics::flight_failed(fault),
            What::Started { .. }
            | What::Pinned { .. }
            | What::Unpinned { .. }
            | What::Promoted { .. }
            | What::Origin { .. }
            | What::Listed { .. }
            | What::WorkerSeen { .. }
            | What::WorkerLost { .. }
            | What::Predicts { .. }
            | What::Advised { .. } => {}
            What::Freed { detail, .. } => metrics::vram::freed(detail.is_empty()),
        }
    }

    /// Remembers a plan until its caller is done: who only joined flights of others fetched nothing itself.
    pub(crate) fn note_plan(&mut self, id: EnsureId, plan: &EnsurePlan) {
        let flown = plan.models.iter().filter(|model| model.flight.is_some());
        let joined = flown.clone().count() > 0 && flown.clone().all(|model| model.joined);
        if joined {
            self.joined.insert(id);
        }
    }

    pub(crate) fn count_ready(&mut self, id: EnsureId, ready: &EnsureReady) {
        let joined = self.joined.remove(&id);
        let from = ready.models.iter().map(|model| model.from).max().unwrap_or(Tier::Nvme);
        let outcome = match from {
            Tier::Vram | Tier::Ram | Tier::Nvme if ready.bytes_fetched == 0 => EnsureOutcome::Hit,
            _ if joined => EnsureOutcome::Joined,
            _ => EnsureOutcome::Fetched,
        };
        metrics::ensure_ended(outcome, from, ready.elapsed);
        for model in &ready.models {
            metrics::model_ready(model.from, model.bytes);
        }
    }

    pub(crate) fn count_failed(&mut self, id: EnsureId, failed: &EnsureFailed) {
        self.joined.remove(&id);
        metrics::ensure_ended(EnsureOutcome::Failed, Tier::Origin, failed.elapsed);
    }

    /// Sets every gauge to what is.
    pub(crate) fn gauge(&mut self) {
        let now = self.clock.now();
        self.gauged = now;
        for origin in self.lines.keys() {
            metrics::connections(origin, self.state.lane(origin).0);
            metrics::origin_models(origin, self.sources.of(origin).0);
        }
        for origin in &self.origins {
            metrics::origin_up(origin.name(), origin.health().state == OriginState::Up);
        }
        let disk = self.state.disk("");
        metrics::store_bytes(disk.used, disk.reserved, disk.capacity, self.free_fs);
        metrics::store_models(disk.models);
        let ram = self.state.memory("");
        metrics::ram_bytes(ram.used, ram.reserved, ram.capacity, self.resident_bytes());
        metrics::ram_models(ram.models);
        let flights = self.state.flights(now);
        for phase in [Phase::Waiting, Phase::Checking, Phase::Fetching, Phase::Finishing] {
            metrics::flights(phase, flights.iter().filter(|flight| flight.phase == phase).count() as u64);
        }
        metrics::vram::workers(self.state.workers(now).len());
        let (_, waiters, leases, _) = self.state.counts();
        metrics::waiters(waiters.into());
        metrics::leases(leases.into());
        self.gauge_habits();
    }
}

//! The engine's plain types as messages. Field by field; no decision, no default that the proto does not state.

use std::path::Path;

use tierd_cache::engine::handle::Verified;
use tierd_cache::engine::view;
use tierd_cache::fault::Fault;
use tierd_cache::ids::{FlightId, LeaseId, ModelKey};

use crate::rpc::pb;

/// Paths are text on the wire; bytes that are not UTF-8 become U+FFFD.
fn path(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn text<T: ToString>(value: Option<&T>) -> String {
    value.map(ToString::to_string).unwrap_or_default()
}

pub(crate) fn keys(models: &[ModelKey]) -> Vec<String> {
    models.iter().map(ToString::to_string).collect()
}

impl From<view::Tier> for pb::Tier {
    fn from(tier: view::Tier) -> Self {
        match tier {
            view::Tier::Vram => Self::Vram,
            view::Tier::Ram => Self::Ram,
            view::Tier::Nvme => Self::Nvme,
            view::Tier::Origin => Self::Origin,
        }
    }
}

impl From<view::Trust> for pb::Trust {
    fn from(trust: view::Trust) -> Self {
        match trust {
            view::Trust::Blake3 => Self::Blake3,
            view::Trust::Sha256 => Self::Sha256,
            view::Trust::FirstUse => Self::FirstUse,
            view::Trust::Imported => Self::Imported,
        }
    }
}

impl From<view::Priority> for pb::Priority {
    fn from(priority: view::Priority) -> Self {
        match priority {
            view::Priority::Prefetch => Self::Prefetch,
            view::Priority::Demand => Self::Demand,
        }
    }
}

impl From<view::Phase> for pb::Phase {
    fn from(phase: view::Phase) -> Self {
        match phase {
            view::Phase::Waiting => Self::Waiting,
            view::Phase::Checking => Self::Checking,
            view::Phase::Fetching => Self::Fetching,
            view::Phase::Finishing => Self::Finishing,
            view::Phase::Locking => Self::Locking,
            view::Phase::Ready => Self::Ready,
            view::Phase::Failed => Self::Failed,
        }
    }
}

impl From<view::RamHold> for pb::RamHold {
    fn from(hold: view::RamHold) -> Self {
        match hold {
            view::RamHold::None => Self::Unspecified,
            view::RamHold::Soft => Self::Soft,
            view::RamHold::Hard => Self::Hard,
        }
    }
}

impl From<view::OriginState> for pb::OriginState {
    fn from(state: view::OriginState) -> Self {
        match state {
            view::OriginState::Unknown => Self::Unknown,
            view::OriginState::Up => Self::Up,
            view::OriginState::Throttled => Self::Throttled,
            view::OriginState::Down => Self::Down,
        }
    }
}

impl From<view::ImportHow> for pb::ImportHow {
    fn from(how: view::ImportHow) -> Self {
        match how {
            view::ImportHow::HardLink => Self::HardLink,
            view::ImportHow::Reflink => Self::Reflink,
            view::ImportHow::Copy => Self::Copy,
            view::ImportHow::Known => Self::Known,
        }
    }
}

impl From<&(ModelKey, Fault)> for pb::ModelFault {
    fn from((model, fault): &(ModelKey, Fault)) -> Self {
        Self { model: model.to_string(), fault: Some(fault.into()) }
    }
}

impl From<&view::EnsureUpdate> for pb::EnsureResponse {
    fn from(update: &view::EnsureUpdate) -> Self {
        use pb::ensure_response::Update;
        Self {
            update: Some(match update {
                view::EnsureUpdate::Plan(plan) => Update::Plan(plan.into()),
                view::EnsureUpdate::Progress(progress) => Update::Progress(progress.into()),
                view::EnsureUpdate::Ready(ready) => Update::Ready(ready.into()),
                view::EnsureUpdate::Failed(failed) => Update::Failed(failed.into()),
            }),
        }
    }
}

impl From<&view::EnsurePlan> for pb::Plan {
    fn from(plan: &view::EnsurePlan) -> Self {
        let models = plan.models.iter().map(|row| pb::PlannedModel {
            model: row.model.to_string(),
            bytes: row.bytes,
            blob: text(row.blob.as_ref()),
            tier: pb::Tier::from(row.tier).into(),
            flight: row.flight.map(|FlightId(flight)| flight),
            joined: row.joined,
            origin: text(row.origin.as_ref()),
        });
        Self {
            ensure: plan.ensure.0,
            models: models.collect(),
            bytes_total: plan.bytes_total,
            bytes_to_fetch: plan.bytes_to_fetch,
        }
    }
}

impl From<&view::EnsureProgress> for pb::Progress {
    fn from(progress: &view::EnsureProgress) -> Self {
        let models = progress.models.iter().map(|row| pb::ModelProgress {
            model: row.model.to_string(),
            bytes_total: row.bytes_total,
            bytes_done: row.bytes_done,
            phase: pb::Phase::from(row.phase).into(),
        });
        Self {
            elapsed: Some(progress.elapsed.into()),
            bytes_done: progress.bytes_done,
            bytes_total: progress.bytes_total,
            bytes_per_second: progress.bytes_per_second,
            remaining: progress.remaining.map(Into::into),
            models: models.collect(),
        }
    }
}

impl From<&view::EnsureReady> for pb::Ready {
    fn from(ready: &view::EnsureReady) -> Self {
        let models = ready.models.iter().map(|row| pb::ReadyModel {
            model: row.model.to_string(),
            path: path(&row.path),
            blob: row.blob.to_string(),
            bytes: row.bytes,
            from: pb::Tier::from(row.from).into(),
            trust: pb::Trust::from(row.trust).into(),
        });
        Self { elapsed: Some(ready.elapsed.into()), bytes_fetched: ready.bytes_fetched, models: models.collect() }
    }
}

impl From<&view::EnsureFailed> for pb::Failed {
    fn from(failed: &view::EnsureFailed) -> Self {
        Self {
            elapsed: Some(failed.elapsed.into()),
            fault: Some((&failed.fault).into()),
            models: failed.models.iter().map(Into::into).collect(),
        }
    }
}

impl From<&view::FlightView> for pb::Flight {
    fn from(flight: &view::FlightView) -> Self {
        Self {
            flight: flight.flight.0,
            models: keys(&flight.models),
            blob: text(flight.blob.as_ref()),
            priority: pb::Priority::from(flight.priority).into(),
            phase: pb::Phase::from(flight.phase).into(),
            bytes_total: flight.bytes_total,
            bytes_done: flight.bytes_done,
            connections: flight.connections,
            retries: flight.retries,
            waiters: flight.waiters,
            elapsed: Some(flight.elapsed.into()),
            ended: flight.ended.is_some(),
            fault: flight.ended.as_ref().and_then(|end| end.as_ref().err()).map(Into::into),
        }
    }
}

impl From<&view::ModelView> for pb::Model {
    fn from(model: &view::ModelView) -> Self {
        let sources = model.sources.iter().map(|source| pb::Source {
            origin: source.origin.to_string(),
            path: source.path.clone(),
            etag: source.etag.clone().unwrap_or_default(),
        });
        Self {
            model: model.model.to_string(),
            bytes: model.bytes,
            blob: text(model.blob.as_ref()),
            sha256: text(model.sha256.as_ref()),
            tier: pb::Tier::from(model.tier).into(),
            path: model.path.as_deref().map(path).unwrap_or_default(),
            trust: model.trust.map_or(pb::Trust::Unspecified, Into::into).into(),
            last_used: model.last_used.map(Into::into),
            leases: model.leases.iter().map(|LeaseId(lease)| *lease).collect(),
            flight: model.flight.map(|FlightId(flight)| flight),
            sources: sources.collect(),
            vram_bytes: model.vram,
        }
    }
}

impl From<&view::LeaseView> for pb::Lease {
    fn from(lease: &view::LeaseView) -> Self {
        Self {
            lease: lease.lease.0,
            owner: lease.owner.clone(),
            models: keys(&lease.models),
            expires: Some(lease.expires.into()),
            ram: pb::RamHold::from(lease.ram).into(),
        }
    }
}

impl From<&view::MoveReport> for pb::PromoteModelsResponse {
    fn from(report: &view::MoveReport) -> Self {
        Self { promoted: keys(&report.moved), kept: report.kept.iter().map(Into::into).collect() }
    }
}

impl From<&view::MoveReport> for pb::DemoteModelsResponse {
    fn from(report: &view::MoveReport) -> Self {
        Self { demoted: keys(&report.moved), kept: report.kept.iter().map(Into::into).collect() }
    }
}

impl From<&view::EvictReport> for pb::EvictResponse {
    fn from(report: &view::EvictReport) -> Self {
        let evicted =
            report.evicted.iter().map(|(model, bytes)| pb::EvictedModel { model: model.to_string(), bytes: *bytes });
        Self {
            evicted: evicted.collect(),
            kept: report.kept.iter().map(Into::into).collect(),
            bytes_freed: report.bytes_freed,
        }
    }
}

impl From<&view::NodeView> for pb::Node {
    fn from(node: &view::NodeView) -> Self {
        let tiers = node.tiers.iter().map(|tier| pb::TierStatus {
            tier: pb::Tier::from(tier.tier).into(),
            capacity_bytes: tier.capacity,
            used_bytes: tier.used,
            reserved_bytes: tier.reserved,
            held_bytes: tier.held,
            models: tier.models,
            mode: tier.mode.clone(),
            detail: tier.detail.clone(),
        });
        let origins = node.origins.iter().map(|origin| pb::OriginStatus {
            origin: origin.origin.to_string(),
            kind: origin.kind.clone(),
            address: origin.address.clone(),
            state: pb::OriginState::from(origin.state).into(),
            detail: origin.detail.clone(),
            models: origin.models,
            listed: origin.listed.map(Into::into),
            connections: origin.connections,
            connections_allowed: origin.connections_allowed,
            bytes_per_second: origin.bytes_per_second,
        });
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime: Some(node.uptime.into()),
            tiers: tiers.collect(),
            origins: origins.collect(),
            flights: node.flights,
            ensures: node.ensures,
            leases: node.leases,
            models_known: node.models_known,
            models_path: path(&node.models_path),
            workers: node.workers.iter().map(Into::into).collect(),
            // What the driver says is not the engine's to tell: the service adds it.
            devices: Vec::new(),
            driver_detail: String::new(),
            activity: None,
        }
    }
}

impl From<&view::ImportedFile> for pb::ImportResponse {
    fn from(imported: &view::ImportedFile) -> Self {
        use pb::import_response::Outcome;
        let outcome = match &imported.outcome {
            view::ImportOutcome::Adopted { model, blob, bytes, how, classified_by } => {
                Outcome::Adopted(pb::AdoptedFile {
                    model: model.to_string(),
                    blob: blob.to_string(),
                    bytes: *bytes,
                    how: pb::ImportHow::from(*how).into(),
                    classified_by: (*classified_by).to_owned(),
                })
            }
            view::ImportOutcome::Skipped { reason } => Outcome::Skipped(pb::SkippedFile { reason: reason.clone() }),
        };
        Self { file: path(&imported.file), outcome: Some(outcome) }
    }
}

impl From<&Verified> for pb::VerifyResponse {
    fn from(verified: &Verified) -> Self {
        Self {
            model: verified.model.to_string(),
            bytes: verified.bytes,
            pieces_bad: *verified.pieces_bad.as_ref().unwrap_or(&0),
            fault: verified.pieces_bad.as_ref().err().map(Into::into),
        }
    }
}

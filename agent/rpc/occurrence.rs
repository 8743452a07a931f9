//! Occurrences as messages, and their places in the order as opaque tokens.

use std::time::Duration;

use tierd_cache::engine::view::{DemoteReason, EvictReason, Occurrence, Position, What};
use tierd_cache::ids::Seq;
use tonic::Status;

use crate::rpc::convert::keys;
use crate::rpc::{fault, pb};

/// The token of a place in the order. Clients must not look into it.
pub(crate) fn token(Seq(seq): Seq) -> String {
    seq.to_string()
}

/// The token of a place in everything that is told.
pub(crate) fn place(at: Position) -> String {
    match at.run {
        Some(run) => format!("{}.{run}.{}", at.seq.0, at.step),
        None => token(at.seq),
    }
}

/// The place that a token names; `None` for the empty token.
///
/// # Errors
///
/// `INVALID` if it is no token of ours.
pub(crate) fn position(token: &str) -> Result<Option<Position>, Status> {
    if token.is_empty() {
        return Ok(None);
    }
    let numbers: Option<Vec<u64>> = token.split('.').map(|part| part.parse().ok()).collect();
    match numbers.as_deref() {
        Some([seq]) => Ok(Some(Position { seq: Seq(*seq), run: None, step: 0 })),
        Some([seq, run, step]) => Ok(Some(Position { seq: Seq(*seq), run: Some(*run), step: *step })),
        _ => {
            let shown: String = token.chars().take(64).collect();
            Err(fault::invalid("resume_token", format_args!("{shown:?} is not a token that this daemon gave")))
        }
    }
}

/// The occurrence behind which a token goes on.
///
/// # Errors
///
/// As [`position`].
pub(crate) fn seq(token: &str) -> Result<Option<Seq>, Status> {
    Ok(position(token)?.map(|at| at.seq))
}

impl From<&Occurrence> for pb::Occurrence {
    fn from(occurrence: &Occurrence) -> Self {
        Self { resume_token: token(occurrence.seq), at: Some(occurrence.at.into()), what: Some(what(&occurrence.what)) }
    }
}

fn what(what: &What) -> pb::occurrence::What {
    use pb::occurrence::What as Pb;
    match what {
        What::Started { blobs, bytes } => Pb::Started(pb::StartedOccurrence { blobs: *blobs, bytes: *bytes }),
        What::Stored { model, blob, bytes, fetched, origin, trust, elapsed_ms } => Pb::Stored(pb::StoredOccurrence {
            model: model.to_string(),
            blob: blob.to_string(),
            bytes: *bytes,
            bytes_fetched: *fetched,
            origin: origin.as_ref().map(ToString::to_string).unwrap_or_default(),
            trust: pb::Trust::from(*trust).into(),
            elapsed: Some(Duration::from_millis(*elapsed_ms).into()),
        }),
        What::Evicted { model, blob, bytes, reason: why, last_used } => Pb::Evicted(pb::EvictedOccurrence {
            model: model.to_string(),
            blob: blob.to_string(),
            bytes: *bytes,
            last_used: Some((*last_used).into()),
            reason: Some(reason(why)),
        }),
        What::FlightFailed { flight, models, fault, detail } => Pb::FlightFailed(pb::FlightFailedOccurrence {
            flight: flight.0,
            models: keys(models),
            fault: fault.clone(),
            detail: detail.clone(),
        }),
        What::Damaged { models, blob, pieces_bad, detail } => Pb::Damaged(pb::DamagedOccurrence {
            models: keys(models),
            blob: blob.to_string(),
            pieces_bad: *pieces_bad,
            detail: detail.clone(),
        }),
        What::Pinned { lease, owner, models } => {
            Pb::Pinned(pb::PinnedOccurrence { lease: lease.0, owner: owner.clone(), models: keys(models) })
        }
        What::Unpinned { lease, owner, expired } => {
            Pb::Unpinned(pb::UnpinnedOccurrence { lease: lease.0, owner: owner.clone(), expired: *expired })
        }
        What::Promoted { models, blob, bytes, elapsed_ms } => Pb::Promoted(pb::PromotedOccurrence {
            models: keys(models),
            blob: blob.to_string(),
            bytes: *bytes,
            elapsed: Some(Duration::from_millis(*elapsed_ms).into()),
        }),
        What::Demoted { models, blob, bytes, reason } => Pb::Demoted(pb::DemotedOccurrence {
            models: keys(models),
            blob: blob.to_string(),
            bytes: *bytes,
            reason: Some(demote_reason(reason)),
        }),
        What::Origin { origin, state, detail } => Pb::Origin(pb::OriginOccurrence {
            origin: origin.to_string(),
            state: pb::OriginState::from(*state).into(),
            detail: detail.clone(),
        }),
        What::Listed { origin, models } => {
            Pb::Listed(pb::ListedOccurrence { origin: origin.to_string(), models: *models })
        }
        What::WorkerSeen { worker, pid, address, version } => Pb::WorkerSeen(pb::WorkerSeenOccurrence {
            worker: worker.to_string(),
            pid: *pid,
            address: address.clone(),
            version: version.clone(),
        }),
        What::WorkerLost { worker, pid, detail } => {
            Pb::WorkerLost(pb::WorkerLostOccurrence { worker: worker.to_string(), pid: *pid, detail: detail.clone() })
        }
        What::Advised { worker, device, total, used, unload } => Pb::Advised(pb::AdvisedOccurrence {
            worker: worker.to_string(),
            device: *device,
            total_bytes: *total,
            used_bytes: *used,
            unload: unload.clone(),
        }),
        What::Predicts { habit, step, level, acts, precision_percent, guesses, saved_ms, lost_ms } => {
            Pb::Predicts(pb::PredictsOccurrence {
                habit: habit.clone(),
                step: step.clone(),
                level: level.clone(),
                acts: *acts,
                precision_percent: *precision_percent,
                guesses: *guesses,
                saved: Some(Duration::from_millis(*saved_ms).into()),
                lost: Some(Duration::from_millis(*lost_ms).into()),
            })
        }
        What::Freed { worker, detail } => {
            Pb::Freed(pb::FreedOccurrence { worker: worker.to_string(), detail: detail.clone() })
        }
    }
}

fn reason(reason: &EvictReason) -> pb::evicted_occurrence::Reason {
    use pb::evicted_occurrence::Reason;
    match reason {
        EvictReason::Room { wanted_by, policy } => {
            Reason::Room(pb::RoomReason { wanted_by: wanted_by.to_string(), policy: policy.clone() })
        }
        EvictReason::Asked { by } => Reason::Asked(pb::AskedReason { by: by.clone() }),
        EvictReason::Shrunk { over } => Reason::Shrunk(pb::ShrunkReason { bytes_over: *over }),
        EvictReason::Replaced { by } => Reason::Replaced(pb::ReplacedReason { by: by.to_string() }),
    }
}

fn demote_reason(reason: &DemoteReason) -> pb::demoted_occurrence::Reason {
    use pb::demoted_occurrence::Reason;
    match reason {
        DemoteReason::Room { wanted_by, policy } => {
            Reason::Room(pb::RoomReason { wanted_by: wanted_by.to_string(), policy: policy.clone() })
        }
        DemoteReason::Asked { by } => Reason::Asked(pb::AskedReason { by: by.clone() }),
        DemoteReason::Pressure { source } => Reason::Pressure(pb::PressureReason { source: source.clone() }),
        DemoteReason::Shrunk { over } => Reason::Shrunk(pb::ShrunkReason { bytes_over: *over }),
        DemoteReason::Removed => Reason::Removed(pb::RemovedReason {}),
        DemoteReason::Failed { detail } => Reason::Failed(pb::FailedReason { detail: detail.clone() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_round_trip_and_foreign_ones_are_refused_by_field() {
        assert_eq!(seq(&token(Seq(u64::MAX))).expect("accepted"), Some(Seq(u64::MAX)));
        assert_eq!(seq("").expect("accepted"), None);
        let at = Position { seq: Seq(u64::MAX), run: Some(u64::MAX), step: u64::MAX };
        assert_eq!(position(&place(at)).expect("accepted"), Some(at));
        assert!(place(at).len() <= 64, "the proto promises it");
        for bad in ["1.2", "1.2.3.4", "1.x.3", "..", "-1"] {
            assert!(position(bad).is_err(), "{bad}");
        }
        assert_eq!(fault::of_status(&seq("yesterday").expect_err("refused")).field, "resume_token");
    }
}

//! How an explanation of the engine reads in the proto.

use tierd_cache::engine::view;
use tierd_cache::plan;

use crate::rpc::pb;

/// Seconds of a day: rates are told by the day.
const DAY: f64 = 86_400.0;

impl From<&view::Explanation> for pb::ExplainResponse {
    fn from(explained: &view::Explanation) -> Self {
        Self {
            model: explained.model.to_string(),
            policy: explained.policy.to_owned(),
            blob: explained.blob.map(|blob| blob.to_string()).unwrap_or_default(),
            bytes: explained.bytes.unwrap_or_default(),
            last_used: explained.last_used.map(Into::into),
            tiers: explained.tiers.iter().map(Into::into).collect(),
            held: explained.held.clone().unwrap_or_default(),
            expected: (explained.expected.iter())
                .map(|(source, position)| pb::ExpectedUse { source: source.clone(), position: *position })
                .collect(),
            decisions: explained.decisions.iter().map(Into::into).collect(),
        }
    }
}

impl From<&view::TierStanding> for pb::TierStanding {
    fn from(stands: &view::TierStanding) -> Self {
        Self {
            tier: pb::Tier::from(stands.tier).into(),
            standing: stands.standing.map(Into::into),
            before: stands.before,
            next: stands.next.as_ref().map(|(model, _)| model.to_string()).unwrap_or_default(),
            next_worth: stands.next.as_ref().and_then(|(_, worth)| *worth),
        }
    }
}

impl From<plan::Standing> for pb::Standing {
    fn from(standing: plan::Standing) -> Self {
        Self {
            worth: standing.worth(),
            uses_per_day: standing.counted_rate * DAY,
            expected: standing.expected_rate > 0.0,
            saved_seconds: standing.saved_seconds,
        }
    }
}

impl From<&view::Decision> for pb::Decision {
    fn from(decision: &view::Decision) -> Self {
        let kind = match decision.what {
            view::Decided::Fetched => pb::DecisionKind::Fetched,
            view::Decided::Prefetched => pb::DecisionKind::Prefetched,
            view::Decided::Promoted => pb::DecisionKind::Promoted,
            view::Decided::Demoted => pb::DecisionKind::Demoted,
            view::Decided::Evicted => pb::DecisionKind::Evicted,
        };
        Self {
            at: Some(decision.at.into()),
            kind: kind.into(),
            reason: decision.reason.clone(),
            worth: decision.worth,
            wanted_by: decision.against.as_ref().map(|(model, _)| model.to_string()).unwrap_or_default(),
            wanted_by_worth: decision.against.as_ref().and_then(|(_, worth)| *worth),
        }
    }
}

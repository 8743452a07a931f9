//! What travels over NATS: JSON, in the words of the proto. docs/fleet.md is written from here.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tierd_cache::engine::view::{Occurrence, Tier};
use tierd_cache::ids::ModelKey;

use crate::rpc::pb;

/// Largest question that is read: room for 1024 names of 60 characters.
pub const QUESTION_BYTES_MAX: usize = 64 << 10;
/// Most models that an inventory lists of one tier: 17 bytes each in JSON hex, well below NATS' 1 MiB.
pub const INVENTORY_MODELS_MAX: usize = 20_000;

/// `<prefix>.readiness`: how soon could this run on you?
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// The models; at least one.
    pub models: Vec<String>,
    /// `nvme` (default) or `ram`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub target: String,
    /// Only nodes that have all these labels answer.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Only nodes that would be ready within so many milliseconds, one time in two, answer. Absent: all do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub within_ms: Option<u64>,
}

/// What one node says.
#[derive(Debug, Clone, Serialize)]
pub struct Answer {
    /// The node.
    pub node: String,
    /// Where its gRPC is reached; empty if it says nothing.
    pub address: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Version of its daemon.
    pub version: String,
    /// As `EstimateReadiness` answers. Absent if the question was wrong.
    pub estimate: Option<pb::EstimateReadinessResponse>,
    /// What is wrong with the question. Absent if nothing is.
    pub error: Option<String>,
}

/// What a node holds, in the key-value bucket.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Inventory {
    /// The node.
    pub node: String,
    /// Where its gRPC is reached; empty if it says nothing.
    pub address: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Version of its daemon.
    pub version: String,
    /// Its tiers: `ram` and `nvme`.
    pub tiers: BTreeMap<String, TierStock>,
    /// Flights under way.
    pub flights: u32,
    /// Callers that wait.
    pub waiting: u32,
}

/// What one tier holds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TierStock {
    /// Bytes that it may hold.
    pub capacity_bytes: u64,
    /// Bytes that it holds.
    pub used_bytes: u64,
    /// Its models, each as the first 8 bytes of the BLAKE3 of its key, in hex, sorted. At most 20,000.
    pub models: Vec<String>,
    /// Whether there are more than that.
    pub truncated: bool,
}

impl Question {
    /// The models and the tier, checked.
    ///
    /// # Errors
    ///
    /// What is wrong, in words.
    pub fn checked(&self, models_max: usize) -> Result<(Vec<ModelKey>, Tier), String> {
        if self.models.is_empty() || self.models.len() > models_max {
            return Err(format!("{} models; 1 to {models_max} are allowed", self.models.len()));
        }
        let models = self.models.iter().map(|text| ModelKey::parse(text).map_err(|bad| bad.to_string()));
        let target = match self.target.as_str() {
            "" | "nvme" => Tier::Nvme,
            "ram" => Tier::Ram,
            other => {
                let shown: String = other.chars().take(32).collect();
                return Err(format!("target {shown:?} is neither nvme nor ram"));
            }
        };
        Ok((models.collect::<Result<_, _>>()?, target))
    }

    /// Whether the node would be ready too late, or never, for who asks.
    #[must_use]
    pub fn is_late(&self, estimate: &pb::EstimateReadinessResponse) -> bool {
        let Some(within) = self.within_ms else { return false };
        let p50 = estimate.p50.and_then(crate::rpc::time::Duration::to_std);
        !estimate.obstacles.is_empty() || p50.is_none_or(|p50| p50 > Duration::from_millis(within))
    }
}

impl Answer {
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("an answer has text keys and finite numbers only")
    }
}

impl Inventory {
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("an inventory has text keys only")
    }
}

/// How an inventory names a model.
#[must_use]
pub fn fingerprint(model: &ModelKey) -> String {
    blake3::hash(model.as_str().as_bytes()).to_hex()[..16].to_owned()
}

/// An occurrence's kind and its JSON, as `tierd events --json` prints it.
pub(crate) fn event(occurrence: &Occurrence) -> (String, Vec<u8>) {
    let message = pb::Occurrence::from(occurrence);
    let value = serde_json::to_value(&message).unwrap_or_default();
    // The one member that is an object says what happened.
    let kind = value.as_object().and_then(|members| members.iter().find(|(_, member)| member.is_object()));
    let kind = kind.map_or_else(|| "other".to_owned(), |(name, _)| name.clone());
    (kind, value.to_string().into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tierd_cache::clock::Wall;
    use tierd_cache::engine::view::What;
    use tierd_cache::ids::Seq;

    #[test]
    fn a_wrong_question_is_told_what_is_wrong() {
        let question = |json: &str| serde_json::from_str::<Question>(json);
        assert!(question(r#"{"models":["vae/a"],"tier":"ram"}"#).is_err(), "an unknown member is not ignored");
        for (json, word) in [
            (r#"{"models":[]}"#, "1 to 4"),
            (r#"{"models":["a/b","a/b","a/b","a/b","a/b"]}"#, "1 to 4"),
            (r#"{"models":["../etc/passwd"]}"#, "not a model key"),
            (r#"{"models":["vae/a"],"target":"vram"}"#, "neither nvme nor ram"),
        ] {
            let error = question(json).expect("parses").checked(4).expect_err("refused");
            assert!(error.contains(word), "{error}");
        }
        let (models, target) =
            question(r#"{"models":["clip/a"],"target":"ram"}"#).expect("parses").checked(4).expect("good");
        assert_eq!((models[0].as_str(), target), ("text_encoders/a", Tier::Ram));
    }

    #[test]
    fn a_node_that_is_too_slow_or_can_never_do_it_stays_silent() {
        let mut estimate =
            pb::EstimateReadinessResponse { p50: Some(Duration::from_secs(2).into()), ..Default::default() };
        let question = |within_ms| Question { within_ms, ..Question::default() };
        assert!(!question(None).is_late(&estimate));
        assert!(question(Some(1000)).is_late(&estimate));
        assert!(!question(Some(3000)).is_late(&estimate));
        estimate.obstacles.push(pb::Obstacle::default());
        assert!(question(Some(3000)).is_late(&estimate));
        assert!(!question(None).is_late(&estimate), "who sets no limit is told of obstacles");
    }

    #[test]
    fn an_event_is_named_by_what_happened() {
        let occurrence = Occurrence { seq: Seq(7), at: Wall(0), what: What::Started { blobs: 1, bytes: 2 } };
        let (kind, body) = event(&occurrence);
        assert_eq!(kind, "started");
        let value: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!(value["started"]["blobs"], 1);
    }

    #[test]
    fn a_fingerprint_is_sixteen_hex_digits_and_never_changes() {
        let key = ModelKey::parse("vae/ae.safetensors").expect("a key");
        let whole = blake3::hash(b"vae/ae.safetensors").to_hex();
        assert_eq!(fingerprint(&key), whole[..16]);
    }
}

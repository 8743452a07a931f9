//! Why a model is where it is, as the engine tells it: numbers of now, and the last decisions about it.

use crate::clock::Wall;
use crate::engine::view::Tier;
use crate::ids::{BlobId, ModelKey};
use crate::plan::Standing;

/// Why a model is where it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Explanation {
    /// The model.
    pub model: ModelKey,
    /// What decides: the policy's name.
    pub policy: &'static str,
    /// Its content, if that is known.
    pub blob: Option<BlobId>,
    /// Its size in bytes, if that is known.
    pub bytes: Option<u64>,
    /// When it was last used; `None` if the node does not have it.
    pub last_used: Option<Wall>,
    /// The tiers that hold it, the slowest first.
    pub tiers: Vec<TierStanding>,
    /// Why the disk cannot lose it now, in words.
    pub held: Option<String>,
    /// Who expects to use it, with the prompts before that.
    pub expected: Vec<(String, u32)>,
    /// The last decisions about it, the oldest first.
    pub decisions: Vec<Decision>,
}

/// Where a model stands in one tier.
#[derive(Debug, Clone, PartialEq)]
pub struct TierStanding {
    /// The tier.
    pub tier: Tier,
    /// What it is worth there, for policies that weigh.
    pub standing: Option<Standing>,
    /// Blobs that would go before it; `None` if it may not go now.
    pub before: Option<u64>,
    /// What goes next, with its worth.
    pub next: Option<(ModelKey, Option<f64>)>,
}

/// Something that was decided about a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// When.
    pub at: Wall,
    /// The model.
    pub model: ModelKey,
    /// What.
    pub what: Decided,
    /// Why, in words.
    pub reason: String,
    /// What it was worth then, as [`Standing::worth`] counts, for policies that weigh.
    pub worth: Option<f64>,
    /// For whom it went, and what that one was worth.
    pub against: Option<(ModelKey, Option<f64>)>,
}

/// What can be decided about a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decided {
    /// It was fetched for somebody who waited.
    Fetched,
    /// It was fetched before anybody waited.
    Prefetched,
    /// It was locked in RAM.
    Promoted,
    /// Its pages were given back.
    Demoted,
    /// It was taken off the disk.
    Evicted,
}

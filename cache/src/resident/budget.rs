//! How many bytes the RAM tier may hold, and which limit says so. Pure arithmetic.

use serde::{Deserialize, Serialize};

use crate::units::{MIB, Share};

/// Least headroom below a cgroup's limit.
const HEADROOM_BYTES_MIN: u64 = 256 * MIB;

/// What decides the budget. All bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Inputs {
    /// What the operator allows: bytes, or a share of `ram`.
    pub configured: Share,
    /// Bytes of RAM that must stay available to others.
    pub reserve: u64,
    /// RAM of the node.
    pub ram: u64,
    /// What the kernel calls available now (`MemAvailable`). What we lock is not part of it.
    pub available: u64,
    /// Bytes that the tier holds now and that are not part of `available`: locked ones. In `warm` mode 0.
    pub locked: u64,
    /// The tightest cgroup above this process, if one limits memory.
    pub cgroup: Option<Cgroup>,
    /// Bytes that the kernel locks for this process, if it sets a limit. `None` in `warm` mode too: nothing is locked there.
    pub lock_limit: Option<u64>,
}

/// A memory cgroup. All bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cgroup {
    /// Its limit.
    pub limit: u64,
    /// What it uses now, page cache included.
    pub used: u64,
    /// What of that the kernel can take back: page cache that is not locked.
    pub reclaimable: u64,
}

impl Cgroup {
    /// Bytes below the limit that stay free for what is not the tier: a sixteenth, and at least 256 MiB (or half of a tiny limit).
    #[must_use]
    pub fn headroom(&self) -> u64 {
        (self.limit / 16).max(HEADROOM_BYTES_MIN).min(self.limit / 2)
    }

    /// Bytes that can be had before the limit.
    #[must_use]
    pub fn available(&self) -> u64 {
        self.limit.saturating_sub(self.used.saturating_sub(self.reclaimable))
    }
}

/// Which limit decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Binding {
    /// What the operator allows.
    Configured,
    /// The limit of the cgroup, minus headroom.
    CgroupLimit,
    /// What others in the cgroup leave below its limit, minus headroom.
    CgroupUse,
    /// `RLIMIT_MEMLOCK`.
    LockLimit,
    /// The reserve of available memory.
    Reserve,
}

/// How many bytes the tier may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Effective {
    /// The least of all limits.
    pub bytes: u64,
    /// Which one that is. Of equal ones the first in the order of [`Binding`].
    pub binding: Binding,
}

/// The budget now. To be computed again as things change: several times a second.
#[must_use]
pub fn effective(inputs: &Inputs) -> Effective {
    let cap = |binding, bytes| Some(Effective { bytes, binding });
    let below = |group: Cgroup, bytes: u64| bytes.saturating_sub(group.headroom());
    let caps = [
        cap(Binding::Configured, inputs.configured.of(inputs.ram)),
        inputs.cgroup.and_then(|group| cap(Binding::CgroupLimit, below(group, group.limit))),
        inputs.cgroup.and_then(|group| {
            // What the tier holds may be charged elsewhere (to whoever read it first), but never counts twice.
            let reach = inputs.locked.saturating_add(group.available()).min(group.limit);
            cap(Binding::CgroupUse, below(group, reach))
        }),
        inputs.lock_limit.and_then(|bytes| cap(Binding::LockLimit, bytes)),
        cap(Binding::Reserve, inputs.locked.saturating_add(inputs.available).saturating_sub(inputs.reserve)),
    ];
    caps.into_iter().flatten().min_by_key(|cap| cap.bytes).expect("the configured limit is always there")
}

/// The reserve that suits a node whose operator named none: an eighth more than ComfyUI's own threshold, min(10 GiB, max(2 GiB,
/// 10 % of RAM)), below which it begins to drop its models; at most half of a small node's RAM.
#[must_use]
pub fn default_reserve(ram: u64) -> u64 {
    const GIB: u64 = crate::units::GIB;
    let threshold = (ram / 10).clamp(2 * GIB, 10 * GIB);
    (threshold + threshold / 8).min(ram / 2)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::units::GIB;

    fn node() -> Inputs {
        Inputs {
            configured: Share::Percent(75.0),
            reserve: 8 * GIB,
            ram: 128 * GIB,
            available: 120 * GIB,
            locked: 0,
            cgroup: None,
            lock_limit: None,
        }
    }

    #[test]
    fn each_limit_binds_when_it_is_the_least_and_says_so() {
        let group = |limit, used, reclaimable| Some(Cgroup { limit, used, reclaimable });
        for (inputs, bytes, binding) in [
            (node(), 96 * GIB, Binding::Configured),
            (Inputs { configured: Share::Bytes(GIB), ..node() }, GIB, Binding::Configured),
            (Inputs { available: 20 * GIB, locked: 10 * GIB, ..node() }, 22 * GIB, Binding::Reserve),
            (Inputs { available: GIB, ..node() }, 0, Binding::Reserve),
            (Inputs { lock_limit: Some(GIB), ..node() }, GIB, Binding::LockLimit),
            (Inputs { cgroup: group(32 * GIB, 0, 0), ..node() }, 30 * GIB, Binding::CgroupLimit),
            (Inputs { cgroup: group(32 * GIB, 20 * GIB, 4 * GIB), ..node() }, 14 * GIB, Binding::CgroupUse),
            (Inputs { cgroup: group(32 * GIB, 20 * GIB, 0), locked: 15 * GIB, ..node() }, 25 * GIB, Binding::CgroupUse),
            (Inputs { cgroup: group(256 * MIB, 0, 0), ..node() }, 128 * MIB, Binding::CgroupLimit),
        ] {
            assert_eq!(effective(&inputs), Effective { bytes, binding }, "{inputs:?}");
        }
    }

    #[test]
    fn the_default_reserve_stays_above_the_threshold_of_comfyui() {
        assert_eq!(default_reserve(16 * GIB), 2 * GIB + GIB / 4);
        assert_eq!(default_reserve(64 * GIB), 64 * GIB / 10 + 64 * GIB / 80);
        assert_eq!(default_reserve(1024 * GIB), 11 * GIB + GIB / 4);
        assert_eq!(default_reserve(2 * GIB), GIB);
    }

    proptest! {
        #[test]
        fn the_budget_is_never_above_any_limit_and_keeps_the_reserve(
            configured in 0_u64..200, reserve in 0_u64..50, available in 0_u64..128, locked in 0_u64..128,
            group in prop::option::of((1_u64..200, 0_u64..200, 0_u64..100)), lock_limit in prop::option::of(0_u64..200),
        ) {
            let cgroup = group.map(|(limit, used, reclaimable)| Cgroup {
                limit: limit * GIB, used: used * GIB, reclaimable: reclaimable * GIB,
            });
            let inputs = Inputs {
                configured: Share::Bytes(configured * GIB), reserve: reserve * GIB, ram: 128 * GIB,
                available: available * GIB, locked: locked * GIB, cgroup, lock_limit: lock_limit.map(|gib| gib * GIB),
            };
            let Effective { bytes, .. } = effective(&inputs);
            prop_assert!(bytes <= configured * GIB);
            prop_assert!(lock_limit.is_none_or(|gib| bytes <= gib * GIB));
            prop_assert!(cgroup.is_none_or(|group| bytes < group.limit));
            // Grown to the budget, the node still has its reserve; if it cannot, nothing new is allowed.
            if bytes > inputs.locked {
                prop_assert!(inputs.available - (bytes - inputs.locked) >= inputs.reserve);
            }
        }
    }
}

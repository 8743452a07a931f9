//! What the policies that do not act would have done: each keeps a disk of its own, as large as the node's, over names and sizes alone, and is
//! told of the same demand. Arithmetic only; nothing is decided by it.
//!
//! Compared is the disk: what a caller would have waited for what it does not have, at what bytes cost on this node. RAM is left out, for
//! what is there is on the disk too, and callers say what they want there. All fades by half in two days, so that last month does not count.

use std::collections::HashMap;
use std::time::Duration;

use crate::clock::Tick;
use crate::engine::view::Tier;
use crate::ids::{BlobId, ModelKey};
use crate::plan::{Beside, Costs, Policy, PolicyKind};

/// After so long half of what was waited is forgotten: a few days are a node's traffic, one is its mood.
const HALF_LIFE: Duration = Duration::from_secs(2 * 86_400);
/// Share of the acting policy's waiting below which another one would have been notably better.
const BETTER_SHARE: f64 = 0.85;
/// How long it must have been better without a break before that is told.
const TELL_AFTER: Duration = Duration::from_secs(3 * 86_400);
/// Waits for an origin, as they fade, below which nothing is compared.
const MISSES_MIN: f64 = 50.0;
/// Blobs of one rival's disk: metadata of some megabytes. What is more is let go as if the disk were full.
const BLOBS_MAX: usize = 32_768;

/// One model of a request.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// Its name. By this it is known here: content may be unknown until it comes.
    pub model: &'a ModelKey,
    /// Its size.
    pub bytes: u64,
    /// Whether the node has it.
    pub here: bool,
}

/// What a policy made callers wait, as it fades.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Waited {
    /// Seconds.
    pub seconds: f64,
    /// Requests that waited for an origin.
    pub misses: f64,
}

impl Waited {
    fn add(&mut self, set: Beside, costs: &Costs, kept: f64) {
        let all_here = Beside { disk: set.disk + set.origin, ..Beside::default() };
        self.seconds = self.seconds * kept + (costs.ready(set) - costs.ready(all_here)).max(0.0);
        self.misses = self.misses * kept + f64::from(u8::from(set.origin > 0));
    }
}

/// One that does not act.
#[derive(Debug)]
struct Rival {
    kind: PolicyKind,
    policy: Box<dyn Policy>,
    held: HashMap<BlobId, u64>,
    used: u64,
    waited: Waited,
    better_since: Option<Tick>,
    told: bool,
}

/// How a rival does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Standing {
    /// Its name.
    pub policy: &'static str,
    /// What it would have made callers wait.
    pub waited: Waited,
    /// Its waiting as a share of the acting policy's; 1 while too little was waited to say.
    pub share: f64,
}

/// All that do not act, and the one that does.
#[derive(Debug)]
pub struct Rivals {
    acting: Waited,
    rivals: Vec<Rival>,
    at: Tick,
}

/// A model's number, from its name.
fn number(model: &ModelKey) -> BlobId {
    BlobId(*blake3::hash(model.as_str().as_bytes()).as_bytes())
}

impl Rival {
    fn new(kind: PolicyKind, costs: Costs) -> Self {
        let (policy, held) = (kind.build(costs), HashMap::new());
        Self { kind, policy, held, used: 0, waited: Waited::default(), better_since: None, told: false }
    }

    fn asked(&mut self, set: &[(BlobId, u64)], limit: u64, costs: &Costs, kept: f64, now: Tick) {
        let tier = |held: bool| if held { Tier::Nvme } else { Tier::Origin };
        let mut beside = Beside::default();
        for (blob, bytes) in set {
            beside.add(tier(self.held.contains_key(blob)), *bytes);
        }
        self.waited.add(beside, costs, kept);
        for (blob, bytes) in set {
            let held = self.held.contains_key(blob);
            self.policy.asked(*blob, *bytes, beside.without(tier(held), *bytes), now);
            if held {
                self.policy.used(Tier::Nvme, *blob, now);
            } else {
                self.fetch(*blob, *bytes, set, limit, now);
            }
        }
    }

    /// It lands on the disk, as everything does that is fetched and fits.
    fn fetch(&mut self, blob: BlobId, bytes: u64, set: &[(BlobId, u64)], limit: u64, now: Tick) {
        if bytes > limit {
            return;
        }
        let full = u64::from(self.held.len() >= BLOBS_MAX);
        let short = (self.used + bytes).saturating_sub(limit).max(full);
        if short > 0 {
            let wanted = |other: BlobId| set.iter().any(|(wanted, _)| *wanted == other);
            let evictable = |other: BlobId| self.held.get(&other).copied().filter(|_| !wanted(other));
            for victim in self.policy.victims(Tier::Nvme, short, &evictable, now) {
                self.used -= self.held.remove(&victim).unwrap_or_default();
                self.policy.removed(Tier::Nvme, victim);
            }
        }
        if self.used + bytes <= limit && self.held.len() < BLOBS_MAX {
            self.used += bytes;
            self.held.insert(blob, bytes);
            self.policy.inserted(Tier::Nvme, blob, bytes, now);
        }
    }

    /// Whether it is time to say that it would have been notably better.
    fn is_to_be_told(&mut self, share: f64, now: Tick) -> bool {
        if share >= BETTER_SHARE {
            (self.better_since, self.told) = (None, false);
            return false;
        }
        let since = *self.better_since.get_or_insert(now);
        let tell = !self.told && now.since(since) >= TELL_AFTER;
        self.told |= tell;
        tell
    }
}

impl Rivals {
    /// Those that the configuration may name, but the one that acts. They begin with empty disks: what that costs them fades.
    #[must_use]
    pub fn of(acting: &str, costs: Costs) -> Self {
        let others = [PolicyKind::Value, PolicyKind::Lru, PolicyKind::S3Fifo].into_iter();
        let rivals = others.filter(|kind| kind.name() != acting).map(|kind| Rival::new(kind, costs)).collect();
        Self { acting: Waited::default(), rivals, at: Tick::default() }
    }

    /// Somebody asks for a set. Returns those of which it is time to say that callers would have waited notably less for long.
    pub fn asked(&mut self, set: &[Asked<'_>], limit: u64, costs: &Costs, now: Tick) -> Vec<Standing> {
        let kept = (-now.since(self.at).as_secs_f64() / HALF_LIFE.as_secs_f64()).exp2();
        self.at = now;
        let mut beside = Beside::default();
        for asked in set {
            beside.add(if asked.here { Tier::Nvme } else { Tier::Origin }, asked.bytes);
        }
        self.acting.add(beside, costs, kept);
        let set: Vec<(BlobId, u64)> = set.iter().map(|asked| (number(asked.model), asked.bytes)).collect();
        let mut better = Vec::new();
        for at in 0..self.rivals.len() {
            self.rivals[at].asked(&set, limit, costs, kept, now);
            let standing = self.standing(&self.rivals[at]);
            if self.rivals[at].is_to_be_told(standing.share, now) {
                better.push(standing);
            }
        }
        better
    }

    /// What bytes cost here, as it was measured.
    pub fn measured(&mut self, costs: Costs) {
        self.rivals.iter_mut().for_each(|rival| rival.policy.measured(costs));
    }

    fn standing(&self, rival: &Rival) -> Standing {
        let enough = self.acting.misses >= MISSES_MIN && self.acting.seconds > 0.0;
        let share = if enough { rival.waited.seconds / self.acting.seconds } else { 1.0 };
        Standing { policy: rival.kind.name(), waited: rival.waited, share }
    }

    /// How all of them do.
    #[must_use]
    pub fn standings(&self) -> Vec<Standing> {
        self.rivals.iter().map(|rival| self.standing(rival)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GB: u64 = 1_000_000_000;

    fn model(n: u64) -> ModelKey {
        ModelKey::parse(&format!("loras/m{n}")).expect("a key")
    }

    /// A node of two models' room that never has what is asked for, beside its rivals: half of the requests are for one model.
    fn run(rivals: &mut Rivals, requests: u64, here: bool) -> Vec<(u64, &'static str)> {
        let mut told = Vec::new();
        for n in 0..requests {
            let name = model(if n % 2 == 0 { 0 } else { n });
            let asked = Asked { model: &name, bytes: GB, here };
            let now = Tick(n * 600_000_000);
            let better = rivals.asked(&[asked], 2 * GB, &Costs::default(), now);
            told.extend(better.iter().map(|standing| (n, standing.policy)));
            assert!(rivals.rivals.iter().all(|rival| rival.used <= 2 * GB && rival.held.len() <= 2));
            assert!(rivals.rivals.iter().all(|rival| rival.used == rival.held.values().sum::<u64>()));
        }
        told
    }

    #[test]
    fn a_policy_that_would_have_waited_half_is_told_of_once_after_some_days() {
        let mut rivals = Rivals::of("value", Costs::default());
        let told = run(&mut rivals, 1000, false);
        let names: Vec<&str> = told.iter().map(|(_, policy)| *policy).collect();
        assert_eq!(names, ["lru", "s3fifo"], "once each: {told:?}");
        assert!(told.iter().all(|(at, _)| at * 600 >= TELL_AFTER.as_secs()), "{told:?}");
        for standing in rivals.standings() {
            assert!((standing.share - 0.5).abs() < 0.05, "half of the requests were for what it kept: {standing:?}");
        }
    }

    #[test]
    fn nothing_is_told_of_a_policy_that_is_not_better_or_while_little_was_waited() {
        let mut rivals = Rivals::of("lru", Costs::default());
        assert_eq!(run(&mut rivals, 1000, true), []);
        let mut rivals = Rivals::of("lru", Costs::default());
        assert_eq!(run(&mut rivals, MISSES_MIN as u64 - 5, false), []);
        assert!(rivals.standings().iter().all(|standing| standing.share == 1.0));
        let names: Vec<&str> = rivals.standings().iter().map(|standing| standing.policy).collect();
        assert_eq!(names, ["value", "s3fifo"]);
    }

    #[test]
    fn what_is_larger_than_the_disk_moves_nothing_and_a_smaller_limit_is_kept() {
        let mut rivals = Rivals::of("fifo", Costs::default());
        let mut ask = |n, bytes, limit| {
            let _ = rivals.asked(&[Asked { model: &model(n), bytes, here: true }], limit, &Costs::default(), Tick(n));
            rivals.rivals.iter().map(|rival| rival.used).collect::<Vec<_>>()
        };
        assert_eq!(ask(1, GB, 4 * GB), [GB; 3]);
        assert_eq!(ask(2, 5 * GB, 4 * GB).into_iter().max(), Some(GB));
        ask(3, 3 * GB, 4 * GB);
        assert!(ask(4, GB, 2 * GB).into_iter().all(|used| (GB..=2 * GB).contains(&used)));
    }
}

//! How many bytes to give back now, and how many may be taken: hysteresis. Pure arithmetic; which model goes is the caller's choice.

use std::time::Duration;

use crate::clock::Tick;
use crate::units::{GIB, MIB};

use super::pressure::{Level, Pressure};

/// The numbers of the hysteresis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReliefLimits {
    /// Bytes that stay available. Below, memory is given back.
    pub reserve: u64,
    /// Bytes above the reserve that growth leaves alone, so that what was just taken is not given back. Default: an eighth of the
    /// reserve, at least 512 MiB: four looks of a process that allocates 2 GB/s are a second away from the reserve then.
    pub margin: u64,
    /// Least bytes that are given back at once. Default 256 MiB: below, the caller works more than it frees.
    pub step: u64,
    /// How long it must be calm before growth resumes. Default 10 s: a sampler's peaks are seconds apart.
    pub calm: Duration,
}

impl ReliefLimits {
    /// The defaults around a reserve.
    #[must_use]
    pub fn around(reserve: u64) -> Self {
        let margin = (reserve / 8).clamp(512 * MIB, 4 * GIB);
        Self { reserve, margin, step: 256 * MIB, calm: Duration::from_secs(10) }
    }
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Advice {
    /// Bytes to give back at once, coldest first. Whole models: more may go than is asked.
    pub release: u64,
    /// Bytes that may be taken. 0 while memory is tight or was a moment ago.
    pub growth: u64,
}

/// Remembers when memory was tight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relief {
    limits: ReliefLimits,
    tight: Option<Tick>,
}

impl Relief {
    /// Nothing was tight yet.
    #[must_use]
    pub fn new(limits: ReliefLimits) -> Self {
        Self { limits, tight: None }
    }

    /// Moves the limits; what was tight is remembered.
    pub fn set_limits(&mut self, limits: ReliefLimits) {
        self.limits = limits;
    }

    /// Weighs one look at the memory. `held` bytes are ours to give; `leaving` of them are on their way out already and not
    /// yet part of what is available.
    ///
    /// Below the reserve of the node, or the headroom of the cgroup, what is missing goes, and at least a step. A stall (PSI)
    /// releases a step, two if everything stalled, while memory is near that line; with plenty available it is somebody
    /// else who fights a limit of their own, and nothing of ours would help. Either stops growth until it was calm for a while.
    #[must_use]
    pub fn weigh(&mut self, look: &Pressure, (held, leaving): (u64, u64), now: Tick) -> Advice {
        let ReliefLimits { reserve, margin, step, calm } = self.limits;
        let (above, below) = line(look, reserve);
        let short = below.saturating_sub(leaving);
        let near = above.saturating_add(leaving) < reserve.saturating_add(margin * 2);
        let steps = match look.level {
            Level::Calm => 0,
            Level::Some => u64::from(near),
            Level::Full => 2 * u64::from(near),
        };
        let wanted = short.max(step * steps.max(u64::from(short > 0)));
        // A stall that is being answered is not answered twice.
        let release = if short == 0 && leaving >= wanted { 0 } else { wanted.min(held.saturating_sub(leaving)) };
        if below > 0 || look.level != Level::Calm {
            self.tight = Some(now);
        }
        let calm = self.tight.is_none_or(|tight| now.since(tight) >= calm);
        // What is leaving is not there yet: growth counts only what is.
        let growth = if calm { above.saturating_sub(margin) } else { 0 };
        Advice { release, growth }
    }
}

/// How many bytes are available above the line that must be kept, and how many below it are missing. One of them is 0.
fn line(look: &Pressure, reserve: u64) -> (u64, u64) {
    let group = look.cgroup.map(|group| (group.available(), group.headroom()));
    let lines = [Some((look.available, reserve)), group];
    let above = lines.into_iter().flatten().map(|(there, kept)| there.saturating_sub(kept)).min().unwrap_or(0);
    let below = lines.into_iter().flatten().map(|(there, kept)| kept.saturating_sub(there)).max().unwrap_or(0);
    (above, below)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::resident::budget::Cgroup;
    use crate::resident::pressure::Source;

    const LIMITS: ReliefLimits =
        ReliefLimits { reserve: 4 * GIB, margin: GIB, step: 256 * MIB, calm: Duration::from_secs(10) };

    fn look(available: u64, level: Level) -> Pressure {
        Pressure { source: Source::Polling { why: "a test".to_owned() }, level, available, cgroup: None }
    }

    fn at(millis: u64) -> Tick {
        Tick(millis * 1000)
    }

    #[test]
    fn what_is_missing_goes_in_steps_and_what_is_leaving_is_not_asked_for_again() {
        let mut relief = Relief::new(LIMITS);
        let mut ask = |available, level, held| relief.weigh(&look(available, level), held, at(0)).release;
        assert_eq!(ask(5 * GIB, Level::Calm, (GIB, 0)), 0);
        assert_eq!(ask(4 * GIB - 1, Level::Calm, (GIB, 0)), 256 * MIB);
        assert_eq!(ask(3 * GIB, Level::Calm, (8 * GIB, 0)), GIB);
        assert_eq!(ask(3 * GIB, Level::Calm, (8 * GIB, GIB)), 0);
        assert_eq!(ask(GIB, Level::Calm, (GIB, 0)), GIB);
        assert_eq!(ask(GIB, Level::Full, (0, 0)), 0);
        assert_eq!(ask(6 * GIB, Level::Some, (GIB, 0)), 256 * MIB);
        assert_eq!(ask(6 * GIB, Level::Full, (GIB, 0)), 512 * MIB);
        assert_eq!(ask(6 * GIB, Level::Full, (GIB, 512 * MIB)), 0);
        assert_eq!(ask(40 * GIB, Level::Full, (GIB, 0)), 0, "somebody else's limit");
    }

    #[test]
    fn a_cgroup_near_its_limit_counts_as_much_as_the_node() {
        let mut relief = Relief::new(LIMITS);
        let group = |used| Some(Cgroup { limit: 16 * GIB, used, reclaimable: 0 });
        let mut ask = |used| {
            let look = Pressure { cgroup: group(used), ..look(40 * GIB, Level::Calm) };
            relief.weigh(&look, (8 * GIB, 0), at(0))
        };
        assert_eq!(ask(10 * GIB), Advice { release: 0, growth: 4 * GIB });
        assert_eq!(ask(15 * GIB), Advice { release: 0, growth: 0 });
        assert_eq!(ask(16 * GIB), Advice { release: GIB, growth: 0 });
    }

    #[test]
    fn growth_resumes_after_a_calm_while_and_leaves_the_margin() {
        let mut relief = Relief::new(LIMITS);
        let mut growth = |available, level, now| relief.weigh(&look(available, level), (0, 0), at(now)).growth;
        assert_eq!(growth(9 * GIB, Level::Calm, 0), 4 * GIB);
        assert_eq!(growth(3 * GIB, Level::Calm, 1000), 0);
        assert_eq!(growth(9 * GIB, Level::Calm, 10_999), 0);
        assert_eq!(growth(9 * GIB, Level::Calm, 11_000), 4 * GIB);
        assert_eq!(growth(40 * GIB, Level::Some, 12_000), 0);
        assert_eq!(growth(5 * GIB, Level::Calm, 60_000), 0);
    }

    proptest! {
        /// A process takes up to 2.5 GB/s; the tier is asked four times a second and gives at once what it is asked for.
        #[test]
        fn memory_lasts_while_there_is_something_to_give_and_growth_is_not_taken_back(
            takes in prop::collection::vec(0_u64..640, 1..200), held in 0_u64..40,
        ) {
            let mut relief = Relief::new(LIMITS);
            let (mut available, mut held) = ((44 - held) * GIB, held * GIB);
            for (turn, take) in takes.into_iter().enumerate() {
                let take = (take * MIB).min(available);
                available -= take;
                let now = at(turn as u64 * 250);
                let advice = relief.weigh(&look(available, Level::Calm), (held, 0), now);
                prop_assert!(advice.release <= held);
                prop_assert!(advice.release == 0 || advice.growth == 0);
                available += advice.release;
                held -= advice.release;
                prop_assert!(held == 0 || available >= LIMITS.reserve, "{available} available, {held} held");
                // Growing as much as allowed asks for nothing back.
                available -= advice.growth;
                held += advice.growth;
                let after = relief.clone().weigh(&look(available, Level::Calm), (held, 0), now);
                prop_assert_eq!(after.release, 0);
            }
        }
    }
}

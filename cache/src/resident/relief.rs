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
    /// reserve, at least 512 MiB: a process that allocates 2 GB/s is a quarter of a second away from the reserve then.
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
    /// Bytes that may be taken by what nobody waits for. 0 while memory is tight or was a moment ago.
    pub growth: u64,
    /// Whether memory was not tight for a while: what somebody waits for may be taken, as far as the limit goes.
    pub calm: bool,
}

/// What the tier has to give, when a look at the memory is weighed. All bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stock {
    /// What it holds now, what is on its way out included.
    pub held: u64,
    /// What of that is on its way out.
    pub leaving: u64,
    /// What it had locked just before the memory was looked at; `None` where nothing is locked ([`super::Mode::Warm`]).
    pub locked_then: Option<u64>,
    /// What it has locked now.
    pub locked_now: u64,
}

impl Stock {
    /// Bytes that the look did not see yet and that need not be asked for again: what is leaving, and what left since. A look
    /// may be old when it is weighed, and most of all when the machine is busy, which it is when memory is short.
    #[must_use]
    pub fn coming(&self) -> u64 {
        let Some(then) = self.locked_then else { return self.leaving };
        // All that was locked and does not stay; but what is only now landing neither stays nor goes, so no more than went.
        let staying = self.held.saturating_sub(self.leaving);
        let gone = then.saturating_sub(self.locked_now).saturating_add(self.leaving);
        then.saturating_sub(staying).min(gone)
    }
}

/// Least time between two looks: at 2 GB/s, 50 MB are taken in it. A look costs some 50 us: 0.2 % of a core while memory is short.
pub const LOOK_INTERVAL_MIN: Duration = Duration::from_millis(25);

/// Most time between two looks.
pub const LOOK_INTERVAL_MAX: Duration = Duration::from_millis(250);

/// Bytes a second that somebody may take between two looks: no process touches new memory much faster.
const TAKEN_PER_SECOND_MAX: u64 = 4 * GIB;

/// When memory is to be looked at again: before it could be short.
#[must_use]
pub fn next_look(look: &Pressure, reserve: u64) -> Duration {
    let (above, _) = line(look, reserve);
    let micros = (above.min(TAKEN_PER_SECOND_MAX)).saturating_mul(1_000_000) / TAKEN_PER_SECOND_MAX;
    Duration::from_micros(micros).clamp(LOOK_INTERVAL_MIN, LOOK_INTERVAL_MAX)
}

/// Remembers when memory was tight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relief {
    limits: ReliefLimits,
    tight: Option<Tick>,
    /// When something was last given back.
    given: Option<Tick>,
}

impl Relief {
    /// Nothing was tight yet.
    #[must_use]
    pub fn new(limits: ReliefLimits) -> Self {
        Self { limits, tight: None, given: None }
    }

    /// Moves the limits; what was tight is remembered.
    pub fn set_limits(&mut self, limits: ReliefLimits) {
        self.limits = limits;
    }

    /// Weighs one look at the memory against what the tier has to give.
    ///
    /// Below the reserve of the node, or the headroom of the cgroup, what is missing goes, and at least a step. A stall (PSI)
    /// releases a step, two if everything stalled, while less than the margin is left above that line; with more available it is
    /// somebody else who fights a limit of their own, and nothing of ours would help. The kernel tells of stalls for a while
    /// after their cause is gone: within one window of a release they ask for nothing. Either stops growth until it was calm
    /// for a while.
    #[must_use]
    pub fn weigh(&mut self, look: &Pressure, stock: Stock, now: Tick) -> Advice {
        let ReliefLimits { reserve, margin, step, calm } = self.limits;
        let (above, below) = line(look, reserve);
        let coming = stock.coming();
        let short = below.saturating_sub(coming);
        let near = above.saturating_add(coming) < margin;
        let answered = self.given.is_some_and(|given| now.since(given) < look.source.window());
        let steps = match look.level {
            _ if answered || !near => 0,
            Level::Calm => 0,
            Level::Some => 1,
            Level::Full => 2,
        };
        let wanted = short.max(step * steps.max(u64::from(short > 0)));
        let release = wanted.min(stock.held.saturating_sub(stock.leaving));
        if release > 0 {
            self.given = Some(now);
        }
        if below > 0 || look.level != Level::Calm {
            self.tight = Some(now);
        }
        let calm = self.tight.is_none_or(|tight| now.since(tight) >= calm);
        // What is leaving is not there yet: growth counts only what is.
        let growth = if calm { above.saturating_sub(margin) } else { 0 };
        Advice { release, growth, calm }
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
        Pressure { source: Source::Polling { why: "a test".to_owned() }, level, available, cgroup: None, locked: 0 }
    }

    fn at(millis: u64) -> Tick {
        Tick(millis * 1000)
    }

    /// So many bytes held, so many of them leaving, all locked when the look was taken.
    fn stock(held: u64, leaving: u64) -> Stock {
        Stock { held, leaving, locked_then: Some(held), locked_now: held }
    }

    #[test]
    fn what_is_missing_goes_in_steps_and_what_is_leaving_is_not_asked_for_again() {
        let ask = |available, level, (held, leaving)| {
            Relief::new(LIMITS).weigh(&look(available, level), stock(held, leaving), at(0)).release
        };
        assert_eq!(ask(5 * GIB, Level::Calm, (GIB, 0)), 0);
        assert_eq!(ask(4 * GIB - 1, Level::Calm, (GIB, 0)), 256 * MIB);
        assert_eq!(ask(3 * GIB, Level::Calm, (8 * GIB, 0)), GIB);
        assert_eq!(ask(3 * GIB, Level::Calm, (8 * GIB, GIB)), 0);
        assert_eq!(ask(2 * GIB, Level::Calm, (8 * GIB, GIB)), GIB);
        assert_eq!(ask(GIB, Level::Calm, (GIB, 0)), GIB);
        assert_eq!(ask(GIB, Level::Full, (0, 0)), 0);
        assert_eq!(ask(4 * GIB + 512 * MIB, Level::Some, (GIB, 0)), 256 * MIB);
        assert_eq!(ask(4 * GIB + 512 * MIB, Level::Full, (GIB, 0)), 512 * MIB);
        assert_eq!(ask(4 * GIB + 512 * MIB, Level::Full, (GIB, 512 * MIB)), 0);
        assert_eq!(ask(5 * GIB, Level::Full, (GIB, 0)), 0, "somebody else's limit");
    }

    #[test]
    fn a_stall_is_answered_once_in_its_window_and_a_need_always() {
        let mut relief = Relief::new(LIMITS);
        let mut ask = |available, level, now| {
            let source = Source::Psi { window: Duration::from_secs(1) };
            relief.weigh(&Pressure { source, ..look(available, level) }, stock(8 * GIB, 0), at(now)).release
        };
        assert_eq!(ask(4 * GIB, Level::Some, 0), 256 * MIB);
        assert_eq!(ask(4 * GIB + 256 * MIB, Level::Full, 100), 0, "the release of just now answers it");
        assert_eq!(ask(3 * GIB, Level::Full, 200), GIB, "what is missing does not wait");
        assert_eq!(ask(4 * GIB, Level::Full, 1100), 0);
        assert_eq!(ask(4 * GIB, Level::Full, 1200), 512 * MIB);
    }

    #[test]
    fn an_old_look_does_not_ask_for_what_left_since() {
        let old = |held, leaving, then, now| Stock { held, leaving, locked_then: Some(then), locked_now: now };
        assert_eq!(old(8 * GIB, 0, 8 * GIB, 8 * GIB).coming(), 0);
        assert_eq!(old(7 * GIB, 0, 8 * GIB, 7 * GIB).coming(), GIB, "it left, and the books know");
        assert_eq!(old(8 * GIB, GIB, 8 * GIB, 7 * GIB).coming(), GIB, "it left, and the books do not know yet");
        assert_eq!(old(8 * GIB, GIB, 7 * GIB, 7 * GIB).coming(), 0, "it had left before the look");
        assert_eq!(old(8 * GIB, GIB, 9 * GIB, 9 * GIB).coming(), GIB, "a blob that lands is neither here nor gone");
        let warm = Stock { held: GIB, leaving: MIB, ..Stock::default() };
        assert_eq!(warm.coming(), MIB);
        let mut relief = Relief::new(LIMITS);
        let release = relief.weigh(&look(3 * GIB, Level::Calm), old(7 * GIB, 0, 8 * GIB, 7 * GIB), at(0)).release;
        assert_eq!(release, 0);
    }

    #[test]
    fn memory_is_looked_at_more_often_the_less_there_is() {
        let wait = |available| next_look(&look(available, Level::Calm), 4 * GIB);
        assert_eq!(wait(40 * GIB), LOOK_INTERVAL_MAX);
        assert_eq!(wait(4 * GIB + 512 * MIB), Duration::from_millis(125));
        assert_eq!((wait(4 * GIB), wait(0)), (LOOK_INTERVAL_MIN, LOOK_INTERVAL_MIN));
    }

    #[test]
    fn a_cgroup_near_its_limit_counts_as_much_as_the_node() {
        let mut relief = Relief::new(LIMITS);
        let group = |used| Some(Cgroup { limit: 16 * GIB, used, reclaimable: 0 });
        let mut ask = |used| {
            let look = Pressure { cgroup: group(used), ..look(40 * GIB, Level::Calm) };
            relief.weigh(&look, stock(8 * GIB, 0), at(0))
        };
        assert_eq!(ask(10 * GIB), Advice { release: 0, growth: 4 * GIB, calm: true });
        assert_eq!(ask(15 * GIB), Advice { release: 0, growth: 0, calm: true });
        assert_eq!(ask(16 * GIB), Advice { release: GIB, growth: 0, calm: false });
    }

    #[test]
    fn growth_resumes_after_a_calm_while_and_leaves_the_margin() {
        let mut relief = Relief::new(LIMITS);
        let mut growth = |available, level, now| relief.weigh(&look(available, level), stock(0, 0), at(now)).growth;
        assert_eq!(growth(9 * GIB, Level::Calm, 0), 4 * GIB);
        assert_eq!(growth(3 * GIB, Level::Calm, 1000), 0);
        assert_eq!(growth(9 * GIB, Level::Calm, 10_999), 0);
        assert_eq!(growth(9 * GIB, Level::Calm, 11_000), 4 * GIB);
        assert_eq!(growth(40 * GIB, Level::Some, 12_000), 0);
        assert_eq!(growth(5 * GIB, Level::Calm, 60_000), 0);
    }

    #[test]
    fn a_node_with_little_to_spare_is_calm_again_all_the_same() {
        let mut relief = Relief::new(LIMITS);
        let mut ask = |available, now| relief.weigh(&look(available, Level::Calm), stock(0, 0), at(now));
        assert!(!ask(3 * GIB, 0).calm);
        assert!(!ask(4 * GIB + 512 * MIB, 9_999).calm);
        let over = ask(4 * GIB + 512 * MIB, 10_000);
        assert!(over.calm && over.growth == 0, "less than the margin: nothing grows by itself, {over:?}");
    }

    /// A node with a tier and a process that takes memory, in steps of 5 ms. Looks wait to be weighed, releases take a while.
    struct Sim {
        available: u64,
        /// Locked, by the kernel's count.
        locked: u64,
        /// Held, by the books.
        held: u64,
        /// On their way out: when each is unlocked, when the books know, and its bytes.
        going: Vec<(u64, u64, u64)>,
        /// Looks that wait: when each is weighed, what was available, what was locked.
        waiting: Vec<(u64, u64, u64)>,
        released: u64,
        least: u64,
    }

    const MODEL: u64 = 128 * MIB;

    impl Sim {
        /// The process takes `want` bytes at `rate` bytes a second; returns once it has and all is quiet.
        fn run(&mut self, (mut want, rate): (u64, u64), (weighed_after, unlocked_after): (u64, u64)) {
            let mut relief = Relief::new(LIMITS);
            let mut next = 0;
            let mut millis = 0;
            while want > 0 || !self.going.is_empty() || !self.waiting.is_empty() || millis < next + 100 {
                let take = want.min(rate * 5 / 1000).min(self.available);
                (want, self.available) = (want - take, self.available - take);
                self.least = self.least.min(self.available);
                for (_, _, bytes) in self.going.iter().filter(|(unlocked, ..)| *unlocked == millis) {
                    (self.locked, self.available) = (self.locked - bytes, self.available + bytes);
                }
                for (.., bytes) in self.going.extract_if(.., |(_, booked, _)| *booked <= millis) {
                    self.held -= bytes;
                }
                if millis >= next {
                    self.waiting.push((millis + weighed_after, self.available, self.locked));
                    next = millis + next_look(&look(self.available, Level::Calm), LIMITS.reserve).as_millis() as u64;
                }
                let due: Vec<_> = self.waiting.extract_if(.., |(due, ..)| *due <= millis).collect();
                for (_, available, then) in due {
                    let leaving = self.going.iter().map(|(.., bytes)| bytes).sum();
                    let stock = Stock { held: self.held, leaving, locked_then: Some(then), locked_now: self.locked };
                    let release = relief.weigh(&look(available, Level::Calm), stock, at(millis)).release;
                    let models = release.div_ceil(MODEL) * MODEL;
                    if models > 0 {
                        self.released += models;
                        self.going.push((millis + unlocked_after, millis + 2 * unlocked_after, models));
                    }
                }
                millis += 5;
                if millis > 60_000 {
                    break;
                }
            }
        }
    }

    proptest! {
        /// However late looks are weighed and pages come back, no more goes than is missing, and a step; and it goes in time.
        #[test]
        fn what_goes_is_what_is_missing_and_it_goes_in_time(
            spare in 0_u64..4096, wants in 0_u64..6000, rate in 100_u64..2500, weighed in 0_u64..20, unlocked in 1_u64..20,
        ) {
            let (held, available) = (60 * MODEL, LIMITS.reserve + spare * MIB);
            let mut sim = Sim {
                available, held, locked: held, going: Vec::new(), waiting: Vec::new(), released: 0, least: available,
            };
            sim.run((wants * MIB, rate * MIB), (weighed * 5, unlocked * 5));
            let missing = (wants * MIB).saturating_sub(spare * MIB);
            prop_assert!(sim.released >= missing, "{} of {}", sim.released / MIB, missing / MIB);
            prop_assert!(sim.released <= missing + LIMITS.step + MODEL, "{} of {}", sim.released / MIB, missing / MIB);
            // What was missing at worst: what is taken from one look to the pages that it brings back.
            let late = (weighed + unlocked) * 5 + LOOK_INTERVAL_MIN.as_millis() as u64 + 15;
            let line = LIMITS.reserve.saturating_sub(rate * MIB * late / 1000);
            prop_assert!(sim.least >= line, "{} below {}", sim.least / MIB, line / MIB);
        }
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
                let advice = relief.weigh(&look(available, Level::Calm), stock(held, 0), now);
                prop_assert!(advice.release <= held);
                prop_assert!(advice.release == 0 || advice.growth == 0);
                available += advice.release;
                held -= advice.release;
                prop_assert!(held == 0 || available >= LIMITS.reserve, "{available} available, {held} held");
                // Growing as much as allowed asks for nothing back.
                available -= advice.growth;
                held += advice.growth;
                let after = relief.clone().weigh(&look(available, Level::Calm), stock(held, 0), now);
                prop_assert_eq!(after.release, 0);
            }
        }
    }
}

//! Claims about guesses in replays: that right ones save waiting, and that wrong ones cost next to nothing.

use proptest::prelude::*;

use super::report::Report;
use super::tests::{GB, audited, busy, setup};
use super::trace::{HEADER, Trace};
use super::{NodeKind, PredictorKind, Setup, run};
use crate::plan::PolicyKind;

const HOUR_MS: u64 = 3_600_000;

fn replay(trace: &Trace, setup: &Setup, predictor: PredictorKind) -> Report {
    run(trace, &Setup { predictor, ..*setup }, &mut |_| ())
}

/// Days on which a batch runs at nine, from models that nobody needs else, and people come and go all day.
fn days(seed: u64, days: u64) -> Trace {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut lines: Vec<(u64, String)> = Vec::new();
    for day in 0..days {
        let midnight = day * 24 * HOUR_MS;
        for (turn, name) in ["batch-a", "batch-b", "batch-c"].into_iter().enumerate() {
            lines.push((midnight + 9 * HOUR_MS + turn as u64 * 300_000, format!("{name},{},checkpoint", 7 * GB)));
        }
        for _ in 0..40 {
            let at = midnight + rng.u64(10 * HOUR_MS..23 * HOUR_MS);
            lines.push((at, format!("p{},{},checkpoint", rng.u64(0..rng.clone().u64(1..12)), 6 * GB)));
        }
    }
    lines.sort();
    let mut text = format!("{HEADER}\n");
    for (id, (at, file)) in lines.iter().enumerate() {
        text += &format!("{at},{id},{file}\n");
    }
    let mut trace = Trace::default();
    trace.read(&text).expect("a good trace");
    trace
}

/// Everyone's requests by some clients, so that sequences are theirs.
fn with_clients(mut trace: Trace, clients: usize) -> Trace {
    for (at, request) in trace.requests.iter_mut().enumerate() {
        request.client = format!("c{}", at * 7 % clients);
    }
    trace
}

#[test]
fn a_morning_that_comes_every_day_is_ready_when_it_comes() {
    let (trace, setup) = (days(1, 30), setup(PolicyKind::Value, 8 * GB, 30 * GB));
    let [blind, seeing] = [PredictorKind::None, PredictorKind::Habits].map(|who| replay(&trace, &setup, who));
    let guesses = seeing.guesses;
    assert!(guesses.switched >= 1 && guesses.acted >= 10, "{guesses:?}");
    assert!(guesses.acted_right * 10 >= guesses.acted * 9, "{guesses:?}");
    assert!(seeing.stall.mean < blind.stall.mean * 0.95, "{} {}", seeing.stall.mean, blind.stall.mean);
    assert!(seeing.prefetch.used * 100 >= seeing.prefetch.bytes * 90, "{:?}", seeing.prefetch);
}

#[test]
fn the_daemons_node_loads_the_morning_too_and_keeps_its_budgets() {
    let setup = Setup { node: NodeKind::Copies, ..setup(PolicyKind::Value, 8 * GB, 30 * GB) };
    let trace = days(2, 24);
    let blind = replay(&trace, &setup, PredictorKind::None);
    let (seeing, _) = audited(&trace, &Setup { predictor: PredictorKind::Habits, ..setup });
    assert!(seeing.guesses.acted >= 5, "{:?}", seeing.guesses);
    assert!(seeing.stall.mean < blind.stall.mean, "{} {}", seeing.stall.mean, blind.stall.mean);
}

#[test]
fn a_policy_that_does_not_weigh_only_fills_what_is_free() {
    let setup = setup(PolicyKind::Lru, 4 * GB, 400 * GB);
    let (trace, mut evictions) = (days(3, 10), Vec::new());
    for who in [PredictorKind::None, PredictorKind::Habits] {
        evictions.push(audited(&trace, &Setup { predictor: who, ..setup }).0.evictions);
    }
    assert_eq!(evictions[0], evictions[1], "nothing goes for a guess");
}

#[test]
fn nobody_is_believed_who_is_always_wrong_and_the_turncoat_not_for_long() {
    let (trace, setup) = (with_clients(busy(5, 600), 5), setup(PolicyKind::Value, 12 * GB, 50 * GB));
    let poisoned = replay(&trace, &setup, PredictorKind::Poisoned).guesses;
    let wrong = poisoned.top > 100 && poisoned.top_right == 0;
    assert!(wrong && poisoned.acted == 0 && poisoned.switched == 0, "{poisoned:?}");
    let turncoat = replay(&trace, &setup, PredictorKind::Turncoat).guesses;
    assert_eq!(turncoat.switched % 2, 0, "believed, and not any more: {turncoat:?}");
    assert!(turncoat.switched >= 2 && turncoat.acted > 0, "{turncoat:?}");
}

#[test]
fn a_replay_with_guesses_is_the_same_each_time() {
    let trace = with_clients(busy(11, 300), 4);
    for predictor in [PredictorKind::Habits, PredictorKind::Turncoat] {
        let setup = Setup { predictor, ..setup(PolicyKind::Value, 12 * GB, 50 * GB) };
        assert_eq!(audited(&trace, &setup), audited(&trace, &setup), "{predictor:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn a_lie_costs_less_than_two_percent_of_waiting(
        seed in any::<u64>(), clients in 1_usize..12, disk in 20_u64..120, copies in any::<bool>(),
    ) {
        let trace = with_clients(busy(seed, 500), clients);
        let node = if copies { NodeKind::Copies } else { NodeKind::Apart };
        let setup = Setup { node, ..setup(PolicyKind::Value, disk * GB / 4, disk * GB) };
        let blind = replay(&trace, &setup, PredictorKind::None);
        for liar in [PredictorKind::Poisoned, PredictorKind::Turncoat] {
            let lied = replay(&trace, &setup, liar);
            prop_assert!(
                lied.stall.mean <= blind.stall.mean * 1.02,
                "{liar:?}: {} {} {:?}", lied.stall.mean, blind.stall.mean, lied.guesses
            );
        }
    }
}

//! Claims about replays: small made-up traces, every move watched.

use std::collections::BTreeMap;

use super::report::{Move, Report, Step};
use super::trace::{HEADER, Trace};
use super::{Links, NodeKind, PredictorKind, Setup, run};
use crate::engine::view::Tier;
use crate::plan::PolicyKind;

/// Bytes of a gigabyte, as traces have them.
pub(super) const GB: u64 = 1_000_000_000;

/// What a request needs: names and sizes.
pub(super) type Files<'a> = &'a [(&'a str, u64)];

pub(super) fn setup(policy: PolicyKind, ram: u64, disk: u64) -> Setup {
    Setup {
        policy,
        ram,
        disk,
        gpus: 0,
        visible: 0,
        predictor: PredictorKind::None,
        node: NodeKind::Apart,
        links: Links::default(),
        foresight: false,
        warm_up: 0,
    }
}

pub(super) fn trace(lines: &[(u64, Files<'_>)]) -> Trace {
    let mut text = format!("{HEADER}\n");
    for (id, (at_ms, files)) in lines.iter().enumerate() {
        for (key, bytes) in *files {
            text += &format!("{at_ms},{id},{key},{bytes},checkpoint\n");
        }
    }
    let mut trace = Trace::default();
    trace.read(&text).expect("a good trace");
    trace
}

/// Many requests for files of popular and of unpopular kinds, small and large, alone and together.
pub(super) fn busy(seed: u64, requests: u64) -> Trace {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut text = format!("{HEADER}\n");
    let mut at = 0;
    for id in 0..requests {
        at += rng.u64(0..20_000);
        for _ in 0..rng.u64(1..4) {
            let key = rng.u64(0..rng.clone().u64(1..60));
            let bytes = [40_000_000, 2 * GB, 7 * GB, 24 * GB][key as usize % 4];
            text += &format!("{at},{id},f{key},{bytes},lora\n");
        }
    }
    let mut trace = Trace::default();
    trace.read(&text).expect("a good trace");
    for request in &mut trace.requests {
        request.service_ms = rng.u64(1000..30_000);
    }
    trace
}

/// Replays and keeps the books of both tiers beside the state's.
pub(super) fn audited(trace: &Trace, setup: &Setup) -> (Report, Vec<String>) {
    let mut held: BTreeMap<(Tier, String), u64> = BTreeMap::new();
    let mut lines = Vec::new();
    let report = run(trace, setup, &mut |made: &Move<'_>| {
        let model = made.model.to_string();
        match made.step {
            Step::Enter => drop(held.insert((made.tier, model), made.bytes)),
            Step::Leave if made.tier == Tier::Origin => {
                held.remove(&(Tier::Nvme, model.clone()));
                held.remove(&(Tier::Ram, model));
            }
            Step::Leave => drop(held.remove(&(made.tier, model))),
            Step::Carried | Step::Ready => {}
        }
        let sum = |tier| held.iter().filter(|((at, _), _)| *at == tier).map(|(_, bytes)| bytes).sum::<u64>();
        assert!(sum(Tier::Ram) <= setup.ram, "RAM holds {} of {}", sum(Tier::Ram), setup.ram);
        assert!(sum(Tier::Nvme) <= setup.disk, "the disk holds {} of {}", sum(Tier::Nvme), setup.disk);
        lines.push(format!("{made:?}"));
    });
    (report, lines)
}

fn stalls(lines: &[(u64, Files<'_>)], setup: &Setup) -> Vec<f64> {
    let mut stalls = Vec::new();
    run(&trace(lines), setup, &mut |made: &Move<'_>| {
        if made.step == Step::Ready {
            stalls.push((made.reason.parse::<f64>().expect("seconds") * 1e3).round() / 1e3);
        }
    });
    stalls
}

#[test]
fn no_budget_is_exceeded_and_a_second_replay_moves_the_same_bytes_at_the_same_times() {
    for policy in PolicyKind::ALL {
        for (gpus, node) in [(0, NodeKind::Apart), (2, NodeKind::Apart), (2, NodeKind::Copies)] {
            let setup = Setup { gpus, visible: 2 * gpus, node, ..setup(policy, 12 * GB, 50 * GB) };
            let trace = busy(7, 300);
            let first = audited(&trace, &setup);
            assert_eq!(first, audited(&trace, &setup), "{policy:?}");
            assert_eq!(first.1.iter().filter(|line| line.contains("Ready")).count(), 300, "{policy:?} serves everyone");
        }
    }
}

#[test]
fn a_file_takes_as_long_as_its_slowest_link_and_is_faster_the_next_time() {
    let file: Files<'_> = &[("a", 6 * GB)];
    // From the origin, then from RAM; one that RAM has no room for, from the disk.
    assert_eq!(stalls(&[(0, file), (60_000, file)], &setup(PolicyKind::Value, 10 * GB, 20 * GB)), [5.86, 0.0]);
    assert_eq!(stalls(&[(0, file), (60_000, file)], &setup(PolicyKind::Value, GB, 20 * GB)), [5.86, 0.76]);
}

#[test]
fn what_is_larger_than_a_tier_passes_by_and_moves_nothing() {
    let (small, large): (Files<'_>, Files<'_>) = (&[("a", 2 * GB)], &[("b", 30 * GB)]);
    for policy in PolicyKind::ALL {
        let stalls = stalls(&[(0, small), (60_000, large), (120_000, small)], &setup(policy, 4 * GB, 20 * GB));
        assert_eq!(stalls[2], 0.0, "{policy:?}: {stalls:?}");
    }
}

#[test]
fn a_burst_of_small_files_does_not_throw_out_a_large_one_that_is_used() {
    let mut lines: Vec<(u64, Vec<(String, u64)>)> = Vec::new();
    for n in 0..20 {
        lines.push((n * 30_000, vec![("base".to_owned(), 12 * GB)]));
    }
    for n in 0..60 {
        lines.push((600_000 + n * 1000, vec![(format!("lora{n}"), 200_000_000)]));
    }
    lines.push((700_000, vec![("base".to_owned(), 12 * GB)]));
    let borrowed: Vec<(u64, Vec<(&str, u64)>)> = lines
        .iter()
        .map(|(at, files)| (*at, files.iter().map(|(key, bytes)| (key.as_str(), *bytes)).collect()))
        .collect();
    let lines: Vec<(u64, Files<'_>)> = borrowed.iter().map(|(at, files)| (*at, &files[..])).collect();
    let last = |policy| *stalls(&lines, &setup(policy, 14 * GB, 4 * GB)).last().expect("one");
    assert_eq!(last(PolicyKind::Value), 0.0);
    assert!(last(PolicyKind::Lru) > 10.0, "the naive list lost it, or this test shows nothing");
}

#[test]
fn what_is_visible_in_the_queue_is_loaded_before_its_turn() {
    let lines: &[(u64, Files<'_>)] = &[(0, &[("a", 6 * GB)]), (1000, &[("b", 6 * GB)])];
    let mut trace = trace(lines);
    for request in &mut trace.requests {
        request.service_ms = 20_000;
    }
    let blind = Setup { gpus: 1, ..setup(PolicyKind::Value, 20 * GB, 40 * GB) };
    let seeing = Setup { visible: 2, ..blind };
    let mean = |setup: &Setup| run(&trace, setup, &mut |_| ()).stall.mean;
    // The first cannot be known; the second is there when the GPU is free.
    assert!((mean(&blind) - 5.86).abs() < 1e-6 && (mean(&seeing) - 2.93).abs() < 1e-6);
}

#[test]
fn knowledge_of_the_future_waits_least() {
    let trace = busy(3, 400);
    let mean = |setup: Setup| run(&trace, &setup, &mut |_| ()).stall.mean;
    let [value, lru] = [PolicyKind::Value, PolicyKind::Lru].map(|kind| mean(setup(kind, 12 * GB, 50 * GB)));
    let bound = mean(Setup { foresight: true, ..setup(PolicyKind::Value, 12 * GB, 50 * GB) });
    assert!(bound < value && value < lru, "{bound} {value} {lru}");
}

//! Tests of the state: a naive world that does what the state asks, in any order, with any luck; and claims about single walks.

mod expects;
mod walks;
mod world;

use proptest::prelude::*;

use crate::engine::state::Executor;
use crate::plan::PolicyKind;

use self::world::{Step, World};

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..8u8, 0..8u8, any::<bool>(), any::<bool>(), any::<bool>())
            .prop_map(|(a, b, demand, cancel, ram)| Step::Ensure { a, b, demand, cancel, ram }),
        2 => any::<u8>().prop_map(Step::Leave),
        12 => any::<u8>().prop_map(Step::DoOne),
        6 => any::<u8>().prop_map(Step::PieceArrives),
        2 => (any::<u8>(), 0..8u8).prop_map(|(request, fault)| Step::RequestBreaks { request, fault }),
        1 => any::<u8>().prop_map(Step::DiskFails),
        1 => (0..8u8).prop_map(Step::Touch),
        1 => (0..8u8).prop_map(Step::Delete),
        1 => (0..8u8).prop_map(Step::ChangeAtOrigin),
        2 => (0..8u8, 1..100u8).prop_map(|(model, seconds)| Step::Pin { model, seconds }),
        1 => any::<u8>().prop_map(Step::Unpin),
        1 => (0..8u8).prop_map(Step::Evict),
        1 => any::<u8>().prop_map(Step::CancelFlight),
        1 => (2..40u8).prop_map(Step::Space),
        3 => (1..60u8).prop_map(Step::Wait),
        2 => (0..8u8).prop_map(Step::Promote),
        1 => (0..8u8).prop_map(Step::Demote),
        1 => (0..30u8).prop_map(Step::RamLimit),
        1 => (0..30u8).prop_map(Step::Pressure),
        1 => Just(Step::PressureOver),
        2 => (0..2u8, prop::collection::vec(0..8u8, 0..6), any::<bool>())
            .prop_map(|(source, queue, ram)| Step::Expect { source, queue, ram }),
        3 => (0..3u8, 0..8u8, 0..8u8, any::<bool>())
            .prop_map(|(worker, a, b, in_use)| Step::Load { worker, a, b, in_use }),
        1 => (0..3u8).prop_map(Step::WorkerEnds),
        1 => Just(Step::Restart),
    ]
}

/// `PROPTEST_CASES`, or enough for every run of the tests.
fn config() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(400);
    ProptestConfig { cases, max_shrink_iters: 5_000, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn whatever_happens_the_invariants_hold_and_everyone_gets_one_answer(
        seed in any::<u64>(),
        steps in prop::collection::vec(step(), 1..200),
    ) {
        let mut world = World::new(seed);
        for step in steps {
            world.step(step);
        }
        world.run_to_the_end();
    }

    #[test]
    fn they_hold_for_executors_that_keep_blobs_in_ram_alone_or_let_them_pass(
        seed in any::<u64>(),
        (apart, readers_hold) in any::<(bool, bool)>(),
        policy in 0..PolicyKind::ALL.len(),
        steps in prop::collection::vec(step(), 1..200),
    ) {
        let executor = Executor { apart, places: true, readers_hold, ..Executor::default() };
        let mut world = World::with(seed, (executor, PolicyKind::ALL[policy]));
        for step in steps {
            world.step(step);
        }
        world.run_to_the_end();
    }

    #[test]
    fn a_replay_gives_the_same_effects(
        seed in any::<u64>(),
        steps in prop::collection::vec(step(), 1..80),
    ) {
        let run = |steps: Vec<Step>| {
            let mut world = World::new(seed);
            for step in steps {
                world.step(step);
            }
            world.log
        };
        prop_assert_eq!(run(steps.clone()), run(steps));
    }
}

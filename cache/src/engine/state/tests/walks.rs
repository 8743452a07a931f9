//! Claims about single walks that a random run would seldom meet.

use std::time::Duration;

use super::world::{Step, World};
use crate::engine::event::{Broken, Event, RequestId};
use crate::engine::view::{Priority, Tier};
use crate::piece::Cv;
use crate::units::MIB;

/// A world whose caller wants models, with everything done but the requests.
fn flying(models: &[u8], demand: bool) -> World {
    let mut world = World::new(7);
    world.ensure(models, demand, false);
    world.work_all();
    world
}

fn requests(world: &World) -> Vec<RequestId> {
    world.requests.keys().copied().collect()
}

#[test]
fn many_callers_share_one_fetch() {
    let mut world = World::new(7);
    for _ in 0..32 {
        world.ensure(&[3], true, false);
    }
    world.work_all();
    assert_eq!(world.state.flights(world.now).len(), 1);
    assert_eq!(world.state.flights(world.now)[0].waiters, 32);
    world.run_to_the_end();
    assert_eq!(world.log.iter().filter(|line| line.contains("-> Fetch(")).count(), 2, "two pieces, fetched once each");
    assert_eq!(world.log.iter().filter(|line| line.contains("-> TellReady")).count(), 32);
}

#[test]
fn demand_takes_the_connections_of_a_prefetch_and_the_prefetch_goes_on_later() {
    let mut world = flying(&[5, 2], false);
    let prefetching = requests(&world).len();
    assert!(prefetching > 0);
    world.ensure(&[3], true, false);
    world.work_all();
    let of = |world: &World, priority: Priority| {
        world.requests.values().filter(|(fetch, _)| fetch.priority == priority).count()
    };
    assert_eq!(of(&world, Priority::Demand), 2, "both pieces that are wanted are on their way");
    world.run_to_the_end();
    assert_eq!(world.log.iter().filter(|line| line.contains("-> TellReady")).count(), 2);
}

#[test]
fn a_prefetch_that_somebody_asks_for_becomes_demand() {
    let mut world = flying(&[3], false);
    assert_eq!(world.state.flights(world.now)[0].priority, Priority::Prefetch);
    world.ensure(&[3], true, false);
    world.work_all();
    assert_eq!(world.state.flights(world.now)[0].priority, Priority::Demand);
    assert_eq!(world.state.flights(world.now).len(), 1);
}

#[test]
fn an_origin_that_ignores_ranges_is_read_by_one_stream() {
    let mut world = flying(&[4], true);
    assert_eq!(requests(&world).len(), 2, "two pieces by two requests");
    for request in requests(&world) {
        world.end(request, Err(Broken::RangeIgnored));
    }
    let whole: Vec<_> = world.requests.values().filter(|(fetch, _)| fetch.whole).collect();
    assert_eq!(whole.len(), 1);
    assert_eq!(whole[0].1.len(), 2, "it owes every piece");
    world.run_to_the_end();
    assert!(world.says("-> TellReady"));
}

#[test]
fn bytes_that_never_match_are_refused_after_a_second_try_and_nothing_of_them_is_kept() {
    let mut world = flying(&[3], true);
    let mut tries = 0;
    while let Some(request) = requests(&world).first().copied() {
        let (fetch, owed) = world.requests[&request].clone();
        world.requests.get_mut(&request).expect("under way").1.clear();
        for piece in owed {
            tries += 1;
            let cv = Cv([9; 32]);
            world.apply(Event::PieceDone { flight: fetch.flight, request, piece, cv });
        }
        world.end(request, Ok(()));
    }
    assert_eq!(tries, 4, "two pieces, twice");
    assert!(world.says("TellFailed") && world.says("Corrupt"));
    world.work_all();
    let disk = world.state.disk("");
    assert_eq!((disk.used, disk.reserved), (0, 0));
}

#[test]
fn a_set_that_cannot_fit_is_refused_with_numbers_before_the_first_byte() {
    let mut world = World::new(7);
    world.step(Step::Space(10));
    world.ensure(&[7, 6], true, false);
    world.work_all();
    assert!(world.requests.is_empty() && world.state.flights(world.now).is_empty());
    assert!(world.says("NoRoom { needed: 44040192, free: 10485760, evictable: 0 }"), "{:#?}", world.log);
}

#[test]
fn a_throttling_origin_is_left_alone_for_as_long_as_it_asks() {
    let mut world = flying(&[3], true);
    let asked: Vec<String> = world.requests.values().map(|(fetch, _)| fetch.source.origin.to_string()).collect();
    assert!(asked.iter().all(|origin| origin == "near"));
    let wait = Duration::from_secs(7);
    for request in requests(&world) {
        world.end(request, Err(Broken::Throttled { status: 503, retry_after: Some(wait) }));
    }
    assert!(world.requests.is_empty(), "its pieces wait as well");
    let end = world.now.after(wait);
    assert_eq!(world.state.next_wake(), Some(end));
    world.now = end;
    world.apply(Event::Tick);
    assert!(!world.requests.is_empty());
}

#[test]
fn an_origin_that_keeps_failing_gives_way_to_the_next() {
    let mut world = flying(&[0], true);
    for _ in 0..200 {
        let Some(request) = requests(&world).first().copied() else {
            let wake = world.state.next_wake().expect("a back-off ends");
            world.now = world.now.max(wake);
            world.apply(Event::Tick);
            continue;
        };
        if &*world.requests[&request].0.source.origin.0 == "far" {
            world.run_to_the_end();
            assert!(world.says("-> TellReady"));
            return;
        }
        world.end(request, Err(Broken::Transient { detail: "reset".to_owned(), status: None }));
    }
    panic!("the second origin was never asked");
}

/// Bytes of what was asked to be locked, in order: model n has 3 (n + 1) MiB.
fn locks(world: &World) -> Vec<u64> {
    let bytes =
        |line: &String| line.split("-> Lock {").nth(1)?.split("bytes: ").nth(1)?.trim_end_matches(" }").parse().ok();
    world.log.iter().filter_map(bytes).collect::<Vec<u64>>().into_iter().map(|bytes| bytes / MIB / 3 - 1).collect()
}

#[test]
fn a_set_is_locked_in_the_order_in_which_it_will_be_used() {
    let mut world = World::new(7);
    world.ensure(&[0, 1, 2], true, false);
    world.run_to_the_end();
    world.ensure_in(&[0, 1, 2], true, false, true);
    world.run_to_the_end();
    // 2 is the text encoder, 1 what diffuses, 0 the VAE.
    assert_eq!(locks(&world), [2, 1, 0]);
    assert_eq!(world.in_ram(), [0, 1, 2]);
}

#[test]
fn what_lands_for_ram_is_locked_at_once_whatever_else_of_its_set_is_missing() {
    let mut world = World::new(7);
    world.ensure(&[2], true, false);
    world.run_to_the_end();
    world.ensure_in(&[0, 1, 2], true, false, true);
    world.run_to_the_end();
    assert_eq!(world.in_ram(), [0, 1, 2]);
    assert!(world.says("-> Land("));
}

#[test]
fn one_who_waits_while_memory_is_short_is_served_when_it_is_calm_though_nothing_may_grow() {
    let mut world = World::new(7);
    world.ensure(&[0], true, false);
    world.run_to_the_end();
    world.apply(Event::Pressure { release: 1, source: "test" });
    world.ensure_in(&[0], true, false, true);
    world.work_all();
    assert_eq!(world.in_ram(), [0; 0]);
    assert!(world.state.ram_wants_back(), "somebody must look whether it is calm again");
    world.apply(Event::PressureOver { growth: 0 });
    world.work_all();
    assert_eq!(world.in_ram(), [0]);
}

#[test]
fn a_restart_with_less_room_keeps_what_was_used_last() {
    let mut world = World::new(7);
    for n in [2, 1, 0] {
        world.ensure_in(&[n], true, false, true);
        world.run_to_the_end();
    }
    assert_eq!(world.in_ram(), [0, 1, 2]);
    world.limit_ram(10 * MIB);
    world.step(Step::Restart);
    world.work_all();
    assert_eq!(world.in_ram(), [0, 1], "9 of 10 MiB, the last used");
    world.limit_ram(5 * MIB);
    world.work_all();
    assert_eq!(world.in_ram(), [0], "what was locked last after the restart is not what was used last");
}

#[test]
fn a_kill_while_a_restart_locks_its_set_loses_nothing_of_it() {
    let mut world = World::new(7);
    world.ensure_in(&[0, 1, 2], true, false, true);
    world.run_to_the_end();
    world.step(Step::Restart);
    // One of three is locked, and killed again.
    world.step(Step::DoOne(0));
    world.step(Step::Restart);
    world.work_all();
    assert_eq!(world.in_ram(), [0, 1, 2]);
}

#[test]
fn what_is_in_vram_stays_on_the_disk_and_goes_first_from_ram() {
    let mut world = World::new(7);
    for n in [2, 0, 1] {
        world.ensure_in(&[n], true, false, true);
        world.run_to_the_end();
    }
    world.load(0, &[1], false);
    assert!(world.state.model(&world.key(1)).expect("known").tier == Tier::Vram);
    world.apply(Event::Pressure { release: 1, source: "test" });
    assert!(
        world.state.model(&world.key(2)).expect("known").tier == Tier::Ram,
        "it was used longer ago, but nobody has a copy of it"
    );
    assert_eq!(world.log.iter().filter(|line| line.contains("-> Unlock")).count(), 1);
    let (report, _, _) = world.state.evict(&[world.key(1)], "test", world.now);
    assert!(report.kept[0].1.to_string().contains("worker w0 (process 0) has it loaded"), "{:?}", report.kept);
    world.apply(Event::ProcessEnded(0));
    assert!(world.says("WorkerLost"));
    let (report, _, _) = world.state.evict(&[world.key(1)], "test", world.now);
    assert_eq!(report.evicted.len(), 1);
}

//! Claims about what is fetched ahead: in the order of its use, at nobody's cost who is nearer.

use super::world::{World, model};
use crate::engine::event::RequestId;
use crate::engine::view::Priority;
use crate::ids::FlightId;

/// The models of all flights, in the order in which they would get bytes.
fn in_turn(world: &World) -> Vec<String> {
    let order = world.state.in_turn(|_| true);
    let name = |(_, id): &(_, FlightId)| world.state.flight(*id, world.now).expect("under way").models[0].to_string();
    order.iter().map(name).collect()
}

fn models(numbers: &[u8]) -> Vec<String> {
    numbers.iter().map(|n| model(*n).to_string()).collect()
}

/// Flights that have a request under way, by model.
fn asked(world: &World) -> Vec<String> {
    let name =
        |(request, (fetch, _)): (&RequestId, &(crate::engine::event::Fetch, _))| (*request, fetch.source.path.clone());
    let mut all: Vec<(RequestId, String)> = world.requests.iter().map(name).collect();
    all.sort();
    let mut seen = Vec::new();
    all.into_iter().for_each(|(_, path)| {
        if !seen.contains(&path) {
            seen.push(path)
        }
    });
    seen
}

#[test]
fn a_queue_is_fetched_in_its_order_and_every_model_of_it_is_asked_for_at_once() {
    let mut world = World::new(7);
    world.expect(0, &[3, 1, 4, 0, 2], false);
    world.work_all();
    assert_eq!(in_turn(&world), models(&[3, 1, 4, 0, 2]));
    assert_eq!(asked(&world).len(), 4, "each of the four connections asks for another model");
    world.run_to_the_end();
    assert!(world.state.flights(world.now).is_empty());
    assert_eq!(world.log.iter().filter(|line| line.contains("-> Commit")).count(), 5);
}

#[test]
fn what_runs_and_what_is_next_counts_as_demand_and_the_rest_as_prefetch() {
    let mut world = World::new(7);
    world.expect(0, &[3, 1, 4, 0], false);
    world.work_all();
    let flights = world.state.flights(world.now);
    let of =
        |n: u8| flights.iter().find(|flight| flight.models[0].as_str().contains(&format!("m{n}."))).map(|f| f.priority);
    assert_eq!(
        [of(3), of(1), of(4), of(0)],
        [Priority::Demand, Priority::Demand, Priority::Demand, Priority::Prefetch].map(Some)
    );
    world.expect(0, &[1, 4, 0], false);
    assert!(world.says("CountAhead(Upgraded)"), "the last came near the front");
}

#[test]
fn a_prompt_put_in_front_goes_first() {
    let mut world = World::new(7);
    world.expect(0, &[3, 1, 2], false);
    world.work_all();
    world.expect(0, &[3, 0, 1, 2], false);
    world.work_all();
    assert_eq!(in_turn(&world), models(&[3, 0, 1, 2]));
}

#[test]
fn a_caller_goes_before_every_queue_and_a_queue_takes_nothing_from_it() {
    let mut world = World::new(7);
    world.expect(0, &[3, 1], false);
    world.work_all();
    world.ensure(&[2], true, false);
    world.work_all();
    assert_eq!(in_turn(&world)[0], models(&[2])[0]);
}

#[test]
fn the_model_of_a_cancelled_prompt_is_let_go_and_its_pieces_are_kept() {
    let mut world = World::new(7);
    world.expect(0, &[0, 5], false);
    world.work_all();
    world.expect(0, &[0], false);
    world.work_all();
    assert!(world.says("CountAhead(Dropped)"));
    world.run_to_the_end();
    assert_eq!(world.log.iter().filter(|line| line.contains("-> Commit")).count(), 1);
    world.expect(0, &[5], false);
    world.run_to_the_end();
    assert_eq!(world.log.iter().filter(|line| line.contains("-> Commit")).count(), 2, "at once when it comes back");
}

#[test]
fn what_a_nearer_prompt_needs_is_never_pushed_out_for_a_farther_one() {
    let mut world = World::new(7);
    // Room for 48 MiB: models 6, 4 and 2 (21, 15 and 9 MiB), and not 1 (6 MiB) beside them.
    world.expect(0, &[6, 4, 2, 1], false);
    world.run_to_the_end();
    assert!(!world.says("-> Remove"), "nothing had to go");
    assert_eq!(world.log.iter().filter(|line| line.contains("-> Commit")).count(), 3, "the fourth waits for room");
    // The first prompt is done: its model may go for the fourth's.
    world.expect(0, &[4, 2, 1], false);
    world.run_to_the_end();
    assert_eq!(world.log.iter().filter(|line| line.contains("-> Remove")).count(), 1);
    assert_eq!(world.log.iter().filter(|line| line.contains("-> Commit")).count(), 4);
}

#[test]
fn a_caller_pushes_out_the_farthest_use_first_and_never_what_the_running_prompt_needs() {
    let mut world = World::new(7);
    // 21, 9 and 15 MiB of 48.
    world.expect(0, &[6, 2, 4], false);
    world.run_to_the_end();
    let here = |world: &World, n: u8| world.state.stored(&model(n)).is_some();
    assert!(here(&world, 6) && here(&world, 2) && here(&world, 4));
    let (farthest, _) = world.state.stored(&model(4)).expect("here");
    world.ensure(&[3], true, false);
    world.run_to_the_end();
    assert!(world.says("TellReady") && here(&world, 6) && here(&world, 2), "the nearer two are still there");
    let gone = world.log.iter().find(|line| line.contains("-> Remove(")).expect("something had to go");
    assert!(gone.contains(&format!("{farthest:?}")), "the farthest went first: {gone}");
    // 27 MiB can be had without the running prompt's model, and no more.
    world.expect(0, &[6], false);
    world.ensure(&[4, 3, 1], true, false);
    world.run_to_the_end();
    assert!(world.says("TellFailed") && world.says("NoRoom") && here(&world, 6));
    world.ensure(&[4, 3], true, false);
    world.run_to_the_end();
    assert!(here(&world, 4) && here(&world, 3) && here(&world, 6));
}

#[test]
fn ram_is_filled_in_the_order_of_use_and_given_back_when_the_reader_has_its_copy() {
    let mut world = World::new(7);
    // 30 MiB of RAM: 3 (12 MiB) and 4 (15 MiB) fit together, 5 is the same content as 4, 2 (9 MiB) is one too many.
    world.expect(0, &[3, 4, 2], true);
    world.run_to_the_end();
    let locks = |world: &World| world.log.iter().filter(|line| line.contains("-> Lock {")).count();
    assert_eq!(locks(&world), 2, "the third waits, and pushes nobody out");
    assert!(!world.says("-> Unlock"));
    world.expect(0, &[3, 4, 2], false);
    world.run_to_the_end();
    assert_eq!(world.log.iter().filter(|line| line.contains("-> Unlock")).count(), 2, "read: their RAM is free");
}

//! Tests of the outlook.

use super::*;
use crate::catalog::{Entry, Source, Validator};
use crate::units::MIB;

fn key(name: &str) -> ModelKey {
    ModelKey::parse(name).expect("a key")
}

fn blob(n: u8) -> BlobId {
    BlobId([n; 32])
}

fn entry(bytes: u64) -> Entry {
    let (origin, path, validator) = (OriginName::new("o"), "p".to_owned(), Validator::default());
    Entry { bytes, blake3: None, sha256: None, sources: vec![Source { origin, path, bytes, validator }] }
}

/// 100 MiB of disk of which 40 are free, 50 MiB of RAM of which 10 are free.
fn node() -> Outlook {
    let stored = |n, bytes, ram| Stored { blob: blob(n), bytes, ram, locking: false };
    let victim = |n, name: &str, bytes| Victim { blob: blob(n), model: key(name), bytes };
    let catalog = Catalog::from_entries([
        (key("vae/far"), entry(30 * MIB)),
        (key("vae/huge"), entry(90 * MIB)),
        (key("vae/giant"), entry(200 * MIB)),
    ]);
    let shelf = Shelf {
        catalog: Arc::new(catalog),
        models: [(key("vae/hot"), stored(1, 40 * MIB, true)), (key("vae/cold"), stored(2, 20 * MIB, false))].into(),
        disk_victims: vec![victim(2, "vae/cold", 20 * MIB), victim(1, "vae/hot", 40 * MIB)],
        ram_victims: vec![victim(1, "vae/hot", 40 * MIB)],
    };
    Outlook {
        shelf: Arc::new(shelf),
        connections: [(OriginName::new("o"), 16)].into(),
        disk: Room { limit: 100 * MIB, free: 40 * MIB, over: 0 },
        ram: Room { limit: 50 * MIB, free: 10 * MIB, over: 0 },
        ..Outlook::default()
    }
}

#[test]
fn what_is_there_moves_nothing_and_what_is_not_says_how_far_it_is() {
    let node = node();
    let estimate = node.estimate(&[key("vae/hot"), key("vae/cold"), key("vae/hot")], Tier::Nvme);
    assert_eq!(estimate.models.len(), 2, "a duplicate counts once");
    assert_eq!(estimate.prediction.class, Class::Hit);
    assert!(estimate.obstacles.is_empty() && estimate.evicts.is_empty());

    let estimate = node.estimate(&[key("vae/far"), key("vae/nobody")], Tier::Nvme);
    assert_eq!(estimate.models[0].tier, Some(Tier::Origin));
    assert_eq!(estimate.models[0].fetch_bytes, 30 * MIB);
    assert_eq!(estimate.obstacles, [Obstacle::Unknown(key("vae/nobody"))]);
    assert!(estimate.prediction.p50 > node.estimate(&[key("vae/hot")], Tier::Nvme).prediction.p50);
}

#[test]
fn what_must_leave_is_named_and_what_is_wanted_stays() {
    let node = node();
    let leaving = |estimate: &[Victim]| estimate.iter().map(|victim| victim.model.to_string()).collect::<Vec<_>>();
    let estimate = node.estimate(&[key("vae/huge")], Tier::Nvme);
    assert_eq!(leaving(&estimate.evicts), ["vae/cold", "vae/hot"]);
    let estimate = node.estimate(&[key("vae/huge"), key("vae/cold")], Tier::Nvme);
    assert!(
        matches!(estimate.obstacles[..], [Obstacle::NoRoom { needed, available }]
        if needed == 90 * MIB && available == 80 * MIB),
        "{:?}",
        estimate.obstacles
    );
    let estimate = node.estimate(&[key("vae/cold")], Tier::Ram);
    assert_eq!(leaving(&estimate.demotes), ["vae/hot"]);
    assert_eq!(estimate.models[0].lock_bytes, 20 * MIB);
    let estimate = node.estimate(&[key("vae/cold"), key("vae/hot")], Tier::Ram);
    assert!(matches!(estimate.obstacles[..], [Obstacle::NoMemory { .. }]), "{:?}", estimate.obstacles);
}

#[test]
fn what_is_being_locked_is_neither_ahead_of_itself_nor_in_need_of_room() {
    let mut node = node();
    let alone = node.estimate(&[key("vae/cold")], Tier::Ram);
    node.locking = 20 * MIB;
    let behind_another = node.estimate(&[key("vae/cold")], Tier::Ram);
    assert!(behind_another.prediction.raw > 1.5 * alone.prediction.raw);
    let shelf = Arc::get_mut(&mut node.shelf).expect("nobody else has it");
    shelf.models.get_mut(&key("vae/cold")).expect("it is stored").locking = true;
    let itself = node.estimate(&[key("vae/cold")], Tier::Ram);
    assert!((itself.prediction.raw - alone.prediction.raw).abs() < 1e-9);
    assert!(itself.demotes.is_empty() && !alone.demotes.is_empty());
}

#[test]
fn what_is_larger_than_the_tier_never_fits() {
    let estimate = node().estimate(&[key("vae/giant")], Tier::Nvme);
    assert!(matches!(estimate.obstacles[..], [Obstacle::NoRoom { .. }]), "{:?}", estimate.obstacles);
    assert!(estimate.evicts.is_empty(), "nothing leaves for what cannot come");
}

#[test]
fn a_flight_under_way_is_joined_and_demand_ahead_is_waited_for() {
    let mut node = node();
    let flight = |n, name: &str, pieces_left, demand| FlightAhead {
        flight: FlightId(n),
        models: vec![key(name)],
        digest: None,
        origin: OriginName::new("o"),
        bytes: 30 * MIB,
        piece_bytes: 8 * MIB,
        pieces_left,
        demand,
        opens: false,
        reserved: true,
    };
    let alone = node.estimate(&[key("vae/far")], Tier::Nvme);
    node.flights = vec![flight(1, "vae/far", 1.0, true)];
    let joined = node.estimate(&[key("vae/far")], Tier::Nvme);
    assert_eq!(joined.models[0].flight, Some(FlightId(1)));
    assert_eq!(joined.models[0].fetch_bytes, 8 * MIB);
    assert!(joined.prediction.raw < alone.prediction.raw);

    node.flights = vec![flight(2, "vae/other", 160.0, false)];
    assert!((node.estimate(&[key("vae/far")], Tier::Nvme).prediction.raw - alone.prediction.raw).abs() < 1e-9);
    node.flights = vec![flight(2, "vae/other", 160.0, true)];
    assert!(node.estimate(&[key("vae/far")], Tier::Nvme).prediction.raw > alone.prediction.raw * 2.0);
}

//! How long a set takes until it is ready, by the plan that would run: the pieces that are ahead, the connections that there
//! are, the times that this node has measured. Arithmetic only.

use std::collections::BTreeMap;

use crate::ids::OriginName;
use crate::plan::rates::Rates;

/// One model of a set: what must still happen to it.
#[derive(Debug, Clone, PartialEq)]
pub struct Move {
    /// Its size.
    pub bytes: u64,
    /// What must be fetched, if anything.
    pub fetch: Option<Fetch>,
    /// Bytes that must be locked from the disk. What is fetched is locked as it lands and does not count here.
    pub lock: u64,
    /// Bytes that must be locked and are in the page cache already.
    pub settle: u64,
}

/// A fetch that must still happen.
#[derive(Debug, Clone, PartialEq)]
pub struct Fetch {
    /// Where from.
    pub origin: OriginName,
    /// Pieces that have not arrived; one that is under way counts half.
    pub pieces: f64,
    /// Bytes of a piece.
    pub piece_bytes: u64,
    /// Whether its file must be opened first.
    pub opens: bool,
}

/// What is done before the set, or beside it.
#[derive(Debug, Clone, Default)]
pub struct Ahead {
    /// Pieces of other demand that go first, by origin.
    pub pieces: BTreeMap<OriginName, f64>,
    /// Connections, by origin.
    pub connections: BTreeMap<OriginName, u32>,
    /// Bytes that are being locked.
    pub locking: u64,
}

/// Files that the disk opens or commits at once.
const DISK_JOBS: f64 = 4.0;

/// Seconds until every model of a set is ready. `in_ram` says that what is fetched is wanted in RAM too.
#[must_use]
pub fn seconds(moves: &[Move], in_ram: bool, ahead: &Ahead, rates: &Rates) -> f64 {
    let lock: u64 = moves.iter().map(|step| step.lock).sum();
    let settle = moves.iter().map(|step| step.settle).sum();
    let locked = if lock == 0 { 0.0 } else { rates.lock_seconds(lock + ahead.locking) };
    rates.look_seconds(moves.len()) + fetched(moves, in_ram, ahead, rates).max(locked + rates.settle_seconds(settle))
}

/// Seconds until everything that must be fetched is durable and named. The largest file goes first; each is committed while the
/// next one arrives.
fn fetched(moves: &[Move], in_ram: bool, ahead: &Ahead, rates: &Rates) -> f64 {
    let mut fetches: Vec<(&Move, &Fetch)> =
        moves.iter().filter_map(|step| step.fetch.as_ref().map(|fetch| (step, fetch))).collect();
    fetches.sort_by_key(|(step, _)| std::cmp::Reverse(step.bytes));
    let opens: Vec<f64> =
        fetches.iter().filter(|(_, fetch)| fetch.opens).map(|(step, _)| rates.open_seconds(step.bytes)).collect();
    let opened = opens.iter().fold(0.0, |most: f64, open| most.max(*open)).max(opens.iter().sum::<f64>() / DISK_JOBS);

    let mut queues: BTreeMap<&OriginName, f64> = BTreeMap::new();
    let mut last: f64 = 0.0;
    for (step, fetch) in fetches {
        let queue =
            queues.entry(&fetch.origin).or_insert_with(|| ahead.pieces.get(&fetch.origin).copied().unwrap_or(0.0));
        *queue += fetch.pieces;
        let connections = ahead.connections.get(&fetch.origin).copied().unwrap_or(1);
        let arrived = rates.fetch_seconds(&fetch.origin, connections, queue.ceil() as u64, fetch.piece_bytes);
        let mut done = arrived + rates.commit_seconds(step.bytes);
        if in_ram {
            done += rates.settle_seconds(step.bytes);
        }
        last = last.max(done);
    }
    if last == 0.0 { 0.0 } else { opened + last }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::MIB;
    use std::time::Duration;

    const PIECE: u64 = 8 * MIB;

    fn measured() -> (OriginName, Rates, Ahead) {
        let origin = OriginName::new("o");
        let mut rates = Rates::default();
        for _ in 0..8 {
            rates.request(&origin, 16, PIECE, Duration::from_millis(200));
            rates.commit.saw(PIECE, Duration::from_millis(10));
            rates.open.saw(PIECE, Duration::from_millis(1));
            rates.lock.saw(1000 * MIB, Duration::from_secs(1));
            rates.look.saw(1, Duration::from_millis(1));
        }
        let ahead = Ahead { connections: [(origin.clone(), 16)].into(), ..Ahead::default() };
        (origin, rates, ahead)
    }

    fn fetch(origin: &OriginName, pieces: u64) -> Move {
        let fetch = Fetch { origin: origin.clone(), pieces: pieces as f64, piece_bytes: PIECE, opens: true };
        Move { bytes: pieces * PIECE, fetch: Some(fetch), lock: 0, settle: 0 }
    }

    fn near(found: f64, expected: f64) {
        assert!((found - expected).abs() < 0.05 * expected, "{found} is not {expected}");
    }

    #[test]
    fn a_large_file_takes_as_many_rounds_as_its_pieces_need() {
        let (origin, rates, ahead) = measured();
        near(seconds(&[fetch(&origin, 160)], false, &ahead, &rates), 10.0 * 0.2 + 160.0 * 0.01 + 0.16 + 0.001);
    }

    #[test]
    fn what_is_ahead_is_waited_for() {
        let (origin, rates, mut ahead) = measured();
        let alone = seconds(&[fetch(&origin, 16)], false, &ahead, &rates);
        ahead.pieces.insert(origin.clone(), 160.0);
        near(seconds(&[fetch(&origin, 16)], false, &ahead, &rates) - alone, 2.0);
    }

    #[test]
    fn disk_and_link_work_at_the_same_time() {
        let (origin, rates, ahead) = measured();
        let lock = Move { bytes: 1000 * MIB, fetch: None, lock: 1000 * MIB, settle: 0 };
        let both = seconds(&[fetch(&origin, 16), lock.clone()], true, &ahead, &rates);
        let longer = seconds(std::slice::from_ref(&lock), true, &ahead, &rates);
        near(both, longer);
    }

    #[test]
    fn what_the_page_cache_has_is_held_and_not_read() {
        let (_, mut rates, ahead) = measured();
        (0..8).for_each(|_| rates.settle.saw(1000 * MIB, Duration::from_millis(10)));
        let held = Move { bytes: 1000 * MIB, fetch: None, lock: 0, settle: 1000 * MIB };
        near(seconds(std::slice::from_ref(&held), true, &ahead, &rates), 0.011);
        let half = Move { lock: 500 * MIB, settle: 500 * MIB, ..held };
        near(seconds(&[half], true, &ahead, &rates), 0.5 + 0.005 + 0.001);
    }

    #[test]
    fn more_to_move_never_takes_less() {
        let (origin, rates, ahead) = measured();
        let mut before = 0.0;
        for pieces in 1..100 {
            let now = seconds(&[fetch(&origin, pieces)], false, &ahead, &rates);
            assert!(now >= before, "{pieces} pieces: {now} after {before}");
            before = now;
        }
    }
}

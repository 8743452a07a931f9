//! One link: demands share it evenly, or get it in the order in which they came; prefetches get it one after the other while no demand is
//! on it.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

/// A link. Time is in seconds and never goes back.
///
/// Each demand has had as much of the link as every other since it came; so one running sum of bytes a share says when each ends.
#[derive(Debug)]
pub(super) struct Link {
    bytes_per_second: f64,
    now: f64,
    /// Bytes that one share has carried since the beginning.
    carried: f64,
    /// Demands by the sum at which they end. All sums are positive, so that their bits sort as they do.
    demands: BinaryHeap<Reverse<(u64, usize)>>,
    /// Demands of a link that is not shared, in order, with the bytes that are left.
    line: VecDeque<(usize, f64)>,
    fair: bool,
    /// Prefetches in order, with the bytes that are left.
    prefetches: VecDeque<(usize, f64)>,
    /// Seconds that anything was on it.
    pub(super) busy: f64,
}

impl Link {
    /// A link that demands share.
    pub(super) fn new(bytes_per_second: f64) -> Self {
        Self {
            line: VecDeque::new(),
            fair: true,
            bytes_per_second,
            now: 0.0,
            carried: 0.0,
            demands: BinaryHeap::new(),
            prefetches: VecDeque::new(),
            busy: 0.0,
        }
    }

    /// A link that carries one demand after the other, as the daemon fetches when the link is what is short.
    pub(super) fn in_order(bytes_per_second: f64) -> Self {
        Self { fair: false, ..Self::new(bytes_per_second) }
    }

    /// Lets time pass. No transfer may end before `now`.
    pub(super) fn advance(&mut self, now: f64) {
        let elapsed = now - self.now;
        self.now = now;
        if !self.demands.is_empty() {
            self.carried += elapsed * self.bytes_per_second / self.demands.len() as f64;
        } else if let Some((_, left)) = self.line.front_mut().or(self.prefetches.front_mut()) {
            *left -= elapsed * self.bytes_per_second;
        } else {
            return;
        }
        self.busy += elapsed;
    }

    /// When the next transfer ends, if none comes between.
    pub(super) fn next_end(&self) -> Option<f64> {
        if let Some(Reverse((end, _))) = self.demands.peek() {
            let left = (f64::from_bits(*end) - self.carried).max(0.0);
            return Some(self.now + left * self.demands.len() as f64 / self.bytes_per_second);
        }
        let next = self.line.front().or(self.prefetches.front());
        next.map(|(_, left)| self.now + left.max(0.0) / self.bytes_per_second)
    }

    /// Takes the transfer that ends now.
    pub(super) fn end(&mut self) -> Option<usize> {
        if let Some(Reverse((end, transfer))) = self.demands.pop() {
            self.carried = self.carried.max(f64::from_bits(end));
            return Some(transfer);
        }
        let next = self.line.pop_front().or_else(|| self.prefetches.pop_front());
        next.map(|(transfer, _)| transfer)
    }

    pub(super) fn demand(&mut self, transfer: usize, bytes: f64) {
        if !self.fair {
            self.line.push_back((transfer, bytes.max(0.0)));
            return;
        }
        self.demands.push(Reverse(((self.carried + bytes.max(0.0)).to_bits(), transfer)));
    }

    pub(super) fn prefetch(&mut self, transfer: usize, bytes: f64) {
        self.prefetches.push_back((transfer, bytes));
    }

    /// Somebody waits for a prefetch now.
    pub(super) fn upgrade(&mut self, transfer: usize) {
        if let Some(left) = self.stop_prefetch(transfer) {
            self.demand(transfer, left);
        }
    }

    /// Stops a prefetch. Returns the bytes that it still had to carry.
    pub(super) fn stop_prefetch(&mut self, transfer: usize) -> Option<f64> {
        let at = self.prefetches.iter().position(|(other, _)| *other == transfer)?;
        self.prefetches.remove(at).map(|(_, left)| left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(link: &mut Link) -> Vec<(usize, f64)> {
        let mut ends = Vec::new();
        while let Some(end) = link.next_end() {
            link.advance(end);
            ends.push((link.end().expect("one ends"), (end * 1e6).round() / 1e6));
        }
        ends
    }

    #[test]
    fn demands_share_evenly_and_what_is_left_is_faster() {
        let mut link = Link::new(10.0);
        link.demand(0, 10.0);
        link.demand(1, 30.0);
        // Both have had 10 after two seconds; the rest has the link alone.
        assert_eq!(run(&mut link), [(0, 2.0), (1, 4.0)]);
    }

    #[test]
    fn a_link_in_order_carries_one_demand_after_the_other_and_no_prefetch_before_them() {
        let mut link = Link::in_order(10.0);
        link.prefetch(2, 10.0);
        link.demand(0, 30.0);
        link.demand(1, 10.0);
        assert_eq!(run(&mut link), [(0, 3.0), (1, 4.0), (2, 5.0)]);
    }

    #[test]
    fn a_demand_never_waits_for_a_prefetch() {
        let mut link = Link::new(10.0);
        link.prefetch(0, 20.0);
        link.prefetch(1, 10.0);
        link.advance(1.0);
        link.demand(2, 10.0);
        assert_eq!(run(&mut link), [(2, 2.0), (0, 3.0), (1, 4.0)]);
    }

    #[test]
    fn an_upgraded_prefetch_keeps_what_it_has() {
        let mut link = Link::new(10.0);
        link.prefetch(0, 20.0);
        link.advance(1.0);
        link.upgrade(0);
        assert_eq!(run(&mut link), [(0, 2.0)]);
    }
}

//! Which request starts when. Open arrivals: each starts as it comes. With GPUs, requests wait in line for one of them.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use crate::replay::trace::Trace;

/// Who waits and who is served. Rows are rows of the trace.
#[derive(Debug)]
pub(super) struct Queue {
    gpus: u32,
    free: u32,
    next: usize,
    line: VecDeque<usize>,
    /// When each busy GPU is free again.
    ends: BinaryHeap<Reverse<(u64, usize)>>,
    changed: bool,
}

impl Queue {
    pub(super) fn new(gpus: u32) -> Self {
        Self { gpus, free: gpus, next: 0, line: VecDeque::new(), ends: BinaryHeap::new(), changed: false }
    }

    /// Seconds from the first request to the next one.
    pub(super) fn next_arrival(&self, trace: &Trace) -> Option<f64> {
        let start = trace.requests.first()?.at_ms;
        trace.requests.get(self.next).map(|request| (request.at_ms - start) as f64 / 1000.0)
    }

    pub(super) fn next_end(&self) -> Option<f64> {
        self.ends.peek().map(|Reverse((at, _))| f64::from_bits(*at))
    }

    pub(super) fn arrive(&mut self) {
        self.line.push_back(self.next);
        self.next += 1;
        self.changed = true;
    }

    /// The next request that may start.
    pub(super) fn start(&mut self) -> Option<usize> {
        if self.gpus > 0 && self.free == 0 {
            return None;
        }
        let row = self.line.pop_front()?;
        self.free = self.free.saturating_sub(1);
        self.changed = true;
        Some(row)
    }

    /// A request has its files; its GPU is busy until then.
    pub(super) fn served(&mut self, until: f64, row: usize) {
        if self.gpus > 0 {
            self.ends.push(Reverse((until.to_bits(), row)));
        }
    }

    pub(super) fn gpu_free(&mut self) {
        self.ends.pop();
        self.free += 1;
    }

    /// Who waits, the next one first.
    pub(super) fn waiting(&self) -> impl Iterator<Item = usize> + '_ {
        self.line.iter().copied()
    }

    /// Whether the line is another one than when this was last asked.
    pub(super) fn changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }
}

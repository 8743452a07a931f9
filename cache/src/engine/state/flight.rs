//! Flights: one fetch of one blob, as it is known of. How one goes is in `course.rs`.

use std::collections::{BTreeMap, BTreeSet};

use crate::catalog::Source;
use crate::clock::Tick;
use crate::engine::event::RequestId;
use crate::engine::view::{FlightView, Phase, Priority};
use crate::ids::{BlobId, ModelKey, OriginName, Sha256Digest};
use crate::piece::{Cv, Layout};
use crate::store::PartialName;

/// One fetch of one blob. All who want that blob share it.
#[derive(Debug)]
pub(crate) struct Flight {
    pub(crate) name: PartialName,
    pub(crate) layout: Layout,
    /// The names that the blob gets.
    pub(crate) models: BTreeMap<ModelKey, Option<Source>>,
    pub(crate) digest: Option<BlobId>,
    /// Whether that digest is what we computed at first use, not what an origin promised.
    pub(crate) vouched: bool,
    pub(crate) sha256: Option<Sha256Digest>,
    /// Where it can be had, the preferred first. Pieces of several sources mix only if a digest proves them equal.
    pub(crate) sources: Vec<Source>,
    pub(crate) priority: Priority,
    pub(crate) started: Tick,
    pub(crate) stage: Stage,
    /// Since when the disk works on it.
    pub(crate) disk_since: Tick,
    /// Whether the disk works on it: it is let go once the disk has answered.
    pub(crate) disk_busy: bool,
    /// The blob that the disk is committing for it, also if it was cancelled since.
    pub(crate) committing: Option<BlobId>,
    /// Whether an unfinished file of it exists.
    pub(crate) has_file: bool,
    /// Whether the executor has that file open.
    pub(crate) is_open: bool,
    /// Bytes of the disk budget that it holds.
    pub(crate) reserved: u64,
    pub(crate) cvs: Vec<Option<Cv>>,
    /// Pieces that wait for a connection.
    pub(crate) pending: BTreeSet<u32>,
    /// Pieces that wait for the end of their back-off.
    pub(crate) delayed: BTreeMap<u32, Tick>,
    /// Failed attempts of each piece since it last arrived.
    pub(crate) attempts: BTreeMap<u32, u32>,
    pub(crate) requests: BTreeSet<RequestId>,
    /// Origins that failed for good, or sent wrong bytes.
    pub(crate) excluded: BTreeSet<OriginName>,
    /// Whether all pieces arrived once and did not add up.
    pub(crate) suspect: Option<(String, String)>,
    pub(crate) retries: u32,
    pub(crate) restarts: u32,
    pub(crate) bytes_fetched: u64,
    pub(crate) last_origin: Option<OriginName>,
    /// Bytes of RAM that are promised to it: its pages are kept as they land.
    pub(crate) landing: u64,
    /// Whether its bytes go past the disk: no room is reserved for it.
    pub(crate) passes: bool,
    /// Whether it was started because its model is expected, and nobody has asked for it since.
    pub(crate) ahead: bool,
    /// Whether it was started because its model is guessed.
    pub(crate) guess: bool,
    /// Whether a request for it was ever sent.
    pub(crate) begun: bool,
}

/// Where a flight is on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Waits for room in the budget, or for an earlier flight to let go of the file.
    Waiting,
    /// Has room; waits for the disk.
    Granted,
    /// The file is being opened and its finished pieces verified.
    Opening,
    /// Pieces arrive.
    Fetching,
    /// The source changed: it is looked up again.
    Relocating,
    /// Stops its requests, then deletes its file and starts anew.
    Restarting,
    /// All pieces are there; waits for the disk.
    Whole(BlobId),
    /// Being checked, made durable and named.
    Committing(BlobId),
    /// Over: waits for its requests and disk work to stop, then lets go of the file.
    Ending(Keep),
}

/// What an ending flight leaves behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    /// Its finished pieces, for the next try.
    Pieces,
    /// Nothing: its bytes are wrong.
    Nothing,
}

/// A flight that is over.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) view: FlightView,
}

impl Flight {
    pub(crate) fn is_ending(&self) -> bool {
        matches!(self.stage, Stage::Ending(_))
    }

    /// Whether pieces that arrive count: also while the source is looked up again, for it may turn out to be the same.
    pub(crate) fn takes_pieces(&self) -> bool {
        matches!(self.stage, Stage::Fetching | Stage::Relocating)
    }

    pub(crate) fn bytes_of(&self, piece: u32) -> u64 {
        let range = self.layout.range(piece);
        range.end - range.start
    }

    /// Bytes of finished pieces.
    pub(crate) fn bytes_done(&self) -> u64 {
        let done = |piece: &u32| self.cvs[*piece as usize].is_some();
        (0..self.layout.pieces()).filter(done).map(|piece| self.bytes_of(piece)).sum()
    }

    /// Bytes that have not arrived.
    pub(crate) fn bytes_left(&self) -> u64 {
        self.layout.bytes() - self.bytes_done()
    }

    /// Sources that may be used now: one at a time, unless a digest proves that they are equal.
    pub(crate) fn usable(&self) -> impl Iterator<Item = &Source> {
        let alone = self.digest.is_none();
        let good = self.sources.iter().filter(|source| !self.excluded.contains(&source.origin));
        good.take(if alone { 1 } else { usize::MAX })
    }

    pub(crate) fn forget_pieces(&mut self) {
        self.cvs.fill(None);
        self.pending = (0..self.layout.pieces()).collect();
        self.delayed.clear();
        self.attempts.clear();
    }

    pub(crate) fn phase(&self) -> Phase {
        match self.stage {
            Stage::Waiting | Stage::Granted => Phase::Waiting,
            Stage::Opening => Phase::Checking,
            Stage::Fetching | Stage::Relocating | Stage::Restarting => {
                let idle = self.requests.is_empty() && self.bytes_left() > 0;
                if idle { Phase::Waiting } else { Phase::Fetching }
            }
            Stage::Whole(_) | Stage::Committing(_) => Phase::Finishing,
            Stage::Ending(_) => Phase::Failed,
        }
    }
}

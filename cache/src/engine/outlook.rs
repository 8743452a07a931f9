//! The outlook: an immutable snapshot from which readiness is estimated without asking the loop. The loop publishes a new one
//! when something changed; whoever estimates reads the last.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::catalog::Catalog;
use crate::engine::page_cache::PageCache;
use crate::engine::view::Tier;
use crate::ids::{BlobId, FlightId, ModelKey, OriginName};
use crate::piece::Layout;
use crate::plan::calibration::{Calibration, Class, Prediction, Reliability};
use crate::plan::rank::{Ranked, rank};
use crate::plan::rates::Rates;
use crate::plan::readiness::{self, Ahead, Fetch, Move};

/// What is stored where, and what would go first. Rebuilt only when that changes.
#[derive(Debug, Default)]
pub struct Shelf {
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) models: BTreeMap<ModelKey, Stored>,
    pub(crate) disk_victims: Vec<Victim>,
    pub(crate) ram_victims: Vec<Victim>,
}

/// A stored model.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stored {
    pub(crate) blob: BlobId,
    pub(crate) bytes: u64,
    pub(crate) ram: bool,
    /// Whether it is being locked. How far that is, the page cache knows.
    pub(crate) locking: bool,
}

/// A blob that may go to make room.
#[derive(Debug, Clone, PartialEq)]
pub struct Victim {
    pub(crate) blob: BlobId,
    /// One of its names.
    pub model: ModelKey,
    /// Its size.
    pub bytes: u64,
}

/// A flight under way.
#[derive(Debug, Clone)]
pub(crate) struct FlightAhead {
    pub(crate) flight: FlightId,
    pub(crate) models: Vec<ModelKey>,
    pub(crate) digest: Option<BlobId>,
    pub(crate) origin: OriginName,
    pub(crate) bytes: u64,
    pub(crate) piece_bytes: u64,
    pub(crate) pieces_left: f64,
    pub(crate) demand: bool,
    pub(crate) opens: bool,
    /// Whether it has its room already.
    pub(crate) reserved: bool,
}

/// A tier's room. What is on its way out counts as free.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Room {
    pub(crate) limit: u64,
    pub(crate) free: u64,
    pub(crate) over: u64,
}

/// The node as an estimate sees it.
#[derive(Debug, Default)]
pub struct Outlook {
    pub(crate) shelf: Arc<Shelf>,
    pub(crate) flights: Vec<FlightAhead>,
    pub(crate) connections: BTreeMap<OriginName, u32>,
    pub(crate) locking: u64,
    pub(crate) disk: Room,
    pub(crate) ram: Room,
    pub(crate) models_max: u32,
    pub(crate) rates: Arc<Rates>,
    pub(crate) calibration: Arc<Calibration>,
    pub(crate) page_cache: Arc<PageCache>,
}

/// How soon a set could be ready here.
#[derive(Debug, Clone)]
pub struct Estimate {
    /// Seconds to expect. Meaningless if something stands in the way.
    pub prediction: Prediction,
    /// One row for each distinct model, in the order asked.
    pub models: Vec<ModelEstimate>,
    /// What would leave the disk for it, in order.
    pub evicts: Vec<Victim>,
    /// What would leave RAM for it, in order.
    pub demotes: Vec<Victim>,
    /// Why it cannot become ready, if it cannot.
    pub obstacles: Vec<Obstacle>,
    /// How far this node's estimates may be trusted.
    pub reliability: Reliability,
}

/// One model of an estimate.
#[derive(Debug, Clone)]
pub struct ModelEstimate {
    /// The model.
    pub model: ModelKey,
    /// Its blob, if it is stored or its digest is known.
    pub blob: Option<BlobId>,
    /// Its size; 0 if nothing is known of it.
    pub bytes: u64,
    /// The fastest tier that has it whole; `None` if no tier and no origin knows it.
    pub tier: Option<Tier>,
    /// Bytes that must come from an origin.
    pub fetch_bytes: u64,
    /// Bytes that must be read from the disk into RAM. What the page cache has already is not among them.
    pub lock_bytes: u64,
    /// The flight that brings it already.
    pub flight: Option<FlightId>,
    /// The origin it would come from.
    pub origin: Option<OriginName>,
}

/// What stands in the way of a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Obstacle {
    /// No origin lists it and it is not on this node. An origin that cannot be listed may still have it.
    Unknown(ModelKey),
    /// It does not fit onto the disk, even with everything evictable gone.
    NoRoom {
        /// Bytes that it needs.
        needed: u64,
        /// Bytes that it can have.
        available: u64,
    },
    /// The same for RAM.
    NoMemory {
        /// Bytes that it needs.
        needed: u64,
        /// Bytes that it can have.
        available: u64,
    },
}

impl Outlook {
    /// Most models of one set, as configured.
    #[must_use]
    pub fn models_max(&self) -> usize {
        self.models_max as usize
    }

    /// Every model that a tier holds whole: RAM, or the disk (which has what RAM has).
    pub fn stored_in(&self, tier: Tier) -> impl Iterator<Item = &ModelKey> {
        let wanted = move |stored: &Stored| tier == Tier::Nvme || (tier == Tier::Ram && stored.ram);
        self.shelf.models.iter().filter(move |(_, stored)| wanted(stored)).map(|(model, _)| model)
    }

    /// Asks the kernel what it has of those among these models that would have to be locked.
    pub(crate) async fn look(&self, models: &[ModelKey], target: Tier) {
        if target == Tier::Ram {
            let unlocked = models.iter().filter_map(|model| self.stored(model)).filter(|stored| !stored.ram);
            self.page_cache.look(unlocked.map(|stored| (stored.blob, stored.bytes))).await;
        }
    }

    /// How soon these models could be ready in a tier: RAM or the disk. Duplicates count once.
    #[must_use]
    pub fn estimate(&self, models: &[ModelKey], target: Tier) -> Estimate {
        let mut seen = BTreeSet::new();
        let mut rows: Vec<ModelEstimate> = Vec::with_capacity(models.len());
        let mut moves: Vec<Move> = Vec::with_capacity(models.len());
        let mut blobs = BTreeSet::new();
        let mut being_locked = BTreeSet::new();
        let (mut flying, mut new_bytes, mut ram_bytes, mut locking) = (BTreeSet::new(), 0, 0, 0);
        for model in models.iter().filter(|model| seen.insert(*model)) {
            let (row, step) = self.one(model, target);
            let stored = self.stored(model);
            blobs.extend(stored.map(|stored| stored.blob));
            flying.extend(row.flight);
            if row.fetch_bytes > 0 && row.flight.is_none_or(|flight| self.waits_for_room(flight)) {
                new_bytes += row.bytes;
            }
            match stored.filter(|stored| stored.locking) {
                // It has its room; under another name it is the same.
                Some(stored) if being_locked.insert(stored.blob) => locking += stored.bytes,
                Some(_) => {}
                None if target == Tier::Ram && row.tier != Some(Tier::Ram) => ram_bytes += row.bytes,
                None => {}
            }
            rows.push(row);
            moves.push(step);
        }
        let mut obstacles: Vec<Obstacle> =
            rows.iter().filter(|row| row.tier.is_none()).map(|row| Obstacle::Unknown(row.model.clone())).collect();
        let promised: u64 = self
            .flights
            .iter()
            .filter(|flight| !flight.reserved && !flying.contains(&flight.flight))
            .map(|f| f.bytes)
            .sum();
        let (evicts, short) = leave(new_bytes + promised, self.disk, &self.shelf.disk_victims, &blobs);
        if short > 0 {
            obstacles.push(Obstacle::NoRoom { needed: new_bytes, available: new_bytes.saturating_sub(short) });
        }
        let (demotes, short) = leave(ram_bytes, self.ram, &self.shelf.ram_victims, &blobs);
        if short > 0 {
            obstacles.push(Obstacle::NoMemory { needed: ram_bytes, available: ram_bytes.saturating_sub(short) });
        }
        let fetch_bytes = rows.iter().map(|row| row.fetch_bytes).sum();
        let lock_bytes = moves.iter().map(|step| step.lock).sum();
        let settle_bytes = moves.iter().map(|step| step.settle).sum();
        let mut ahead = self.ahead(&flying, fetch_bytes > 0);
        // What is being locked for this very set is not ahead of it.
        ahead.locking = ahead.locking.saturating_sub(locking);
        let seconds = readiness::seconds(&moves, target == Tier::Ram, &ahead, &self.rates);
        Estimate {
            prediction: self.calibration.correct(Class::of(fetch_bytes, lock_bytes, settle_bytes), seconds),
            models: rows,
            evicts,
            demotes,
            obstacles,
            reliability: self.calibration.reliability(),
        }
    }

    /// Orders sets of models so that few bytes move.
    #[must_use]
    pub fn rank(&self, sets: &[BTreeSet<ModelKey>]) -> Vec<Ranked> {
        let bytes = |model: &ModelKey| self.bytes(model);
        let here = |model: &ModelKey| self.shelf.models.contains_key(model);
        rank(sets, &bytes, &here)
    }

    fn bytes(&self, model: &ModelKey) -> u64 {
        let stored = self.shelf.models.get(model).map(|stored| stored.bytes);
        stored.or_else(|| self.shelf.catalog.get(model).map(|entry| entry.bytes)).unwrap_or(0)
    }

    /// Where one model is, and what must happen to it.
    fn one(&self, model: &ModelKey, target: Tier) -> (ModelEstimate, Move) {
        let mut row = ModelEstimate {
            model: model.clone(),
            blob: None,
            bytes: 0,
            tier: None,
            fetch_bytes: 0,
            lock_bytes: 0,
            flight: None,
            origin: None,
        };
        let mut step = Move { bytes: 0, fetch: None, lock: 0, settle: 0 };
        let entry = self.shelf.catalog.get(model);
        let stored = self.stored(model);
        row.blob = stored.map(|stored| stored.blob).or_else(|| entry?.blake3);
        if let Some(stored) = stored {
            row.bytes = stored.bytes;
            row.tier = Some(if stored.ram { Tier::Ram } else { Tier::Nvme });
            step.bytes = stored.bytes;
            if target == Tier::Ram && !stored.ram {
                step.settle = self.page_cache.has(stored.blob).min(stored.bytes);
                step.lock = stored.bytes - step.settle;
            }
            row.lock_bytes = step.lock;
            return (row, step);
        }
        let digest = entry.and_then(|entry| entry.blake3);
        let flight = self
            .flights
            .iter()
            .find(|flight| flight.models.contains(model) || (digest.is_some() && flight.digest == digest));
        if let Some(flight) = flight {
            row.bytes = flight.bytes;
            row.flight = Some(flight.flight);
            row.fetch_bytes = ((flight.pieces_left * flight.piece_bytes as f64) as u64).clamp(1, flight.bytes.max(1));
            row.origin = Some(flight.origin.clone());
            step.fetch = Some(Fetch {
                origin: flight.origin.clone(),
                pieces: flight.pieces_left,
                piece_bytes: flight.piece_bytes,
                opens: flight.opens,
            });
        } else if let Some(entry) = entry {
            row.bytes = entry.bytes;
            row.fetch_bytes = entry.bytes;
            row.origin = entry.sources.first().map(|source| source.origin.clone());
            let layout = Layout::new(entry.bytes);
            step.fetch = row.origin.clone().map(|origin| Fetch {
                origin,
                pieces: f64::from(layout.pieces()),
                piece_bytes: layout.piece_bytes().min(entry.bytes.max(1)),
                opens: true,
            });
        }
        row.tier = (row.origin.is_some()).then_some(Tier::Origin);
        step.bytes = row.bytes;
        (row, step)
    }

    /// A model that is stored, under this name or as the same content under another.
    fn stored(&self, model: &ModelKey) -> Option<Stored> {
        let digest = || self.shelf.catalog.get(model)?.blake3;
        self.shelf.models.get(model).copied().or_else(|| self.stored_as(digest()?))
    }

    /// The same content, stored under another name.
    fn stored_as(&self, digest: BlobId) -> Option<Stored> {
        self.shelf.models.values().find(|stored| stored.blob == digest).copied()
    }

    fn waits_for_room(&self, flight: FlightId) -> bool {
        self.flights.iter().any(|ahead| ahead.flight == flight && !ahead.reserved)
    }

    /// Demand that goes before a set which joins `flying`. If it starts flights of its own, all demand goes before it; else only
    /// what is older than the youngest of its flights.
    fn ahead(&self, flying: &BTreeSet<FlightId>, fetches: bool) -> Ahead {
        let mut ahead = Ahead { pieces: BTreeMap::new(), connections: self.connections.clone(), locking: self.locking };
        if !fetches {
            return ahead;
        }
        for flight in self.flights.iter().filter(|flight| flight.demand && !flying.contains(&flight.flight)) {
            *ahead.pieces.entry(flight.origin.clone()).or_insert(0.0) += flight.pieces_left;
        }
        ahead
    }
}

/// What leaves a tier so that `needed` bytes fit, and how many are short even then. What is wanted stays.
fn leave(needed: u64, room: Room, victims: &[Victim], wanted: &BTreeSet<BlobId>) -> (Vec<Victim>, u64) {
    let mut short = if needed == 0 { 0 } else { (needed + room.over).saturating_sub(room.free) };
    let mut leaving = Vec::new();
    for victim in victims.iter().filter(|victim| !wanted.contains(&victim.blob)) {
        if short == 0 {
            break;
        }
        short = short.saturating_sub(victim.bytes);
        leaving.push(victim.clone());
    }
    if short > 0 || needed > room.limit {
        (Vec::new(), short.max(needed.saturating_sub(room.limit)))
    } else {
        (leaving, 0)
    }
}

#[cfg(test)]
#[path = "outlook_tests.rs"]
mod tests;

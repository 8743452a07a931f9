//! What an estimate needs to know, as a snapshot that others read while the state goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::clock::Tick;
use crate::engine::event::Event;
use crate::engine::outlook::{FlightAhead, Outlook, Room, Shelf, Stored, Victim};
use crate::engine::page_cache::PageCache;
use crate::engine::state::flight::{Flight, Stage};
use crate::engine::state::{Fate, State};
use crate::engine::view::Priority;
use crate::plan::calibration::Calibration;
use crate::store::PartialName;

/// Victims that a snapshot lists for one tier: an estimate that needs more says so in its sum, not by name.
const VICTIMS_MAX: usize = 512;

impl Event {
    /// Whether it may change what is stored where, or what would go first. The others only move bytes along.
    pub(crate) fn reshapes(&self) -> bool {
        !matches!(
            self,
            Self::Sample { .. } | Self::PieceDone { .. } | Self::RequestEnded { .. } | Self::Tick | Self::Opened { .. }
        )
    }
}

impl State {
    /// What is on the shelves: a list as long as what is stored.
    #[must_use]
    pub fn shelf(&self, now: Tick) -> Shelf {
        let mut models = BTreeMap::new();
        for (model, link) in &self.links {
            let Some(blob) = self.blobs.get(&link.blob).filter(|blob| blob.fate == Fate::Kept) else { continue };
            let outdated = self.catalog.get(model).is_some_and(|entry| super::stored::is_outdated(link, blob, entry));
            if !outdated {
                let ram = self.memory.is_locked(link.blob);
                let locking = self.memory.is_locking(link.blob);
                models.insert(model.clone(), Stored { blob: link.blob, bytes: blob.bytes, ram, locking });
            }
        }
        let disk = self.disk_victims(u64::MAX, Some(crate::plan::expected::Rank::RUNNING), now);
        let ram = self.ram_victims(u64::MAX, now);
        let victim = |blob| {
            let stored = self.blobs.get(&blob)?;
            Some(Victim { blob, model: stored.models.first()?.clone(), bytes: stored.bytes })
        };
        Shelf {
            catalog: self.catalog.clone(),
            models,
            disk_victims: disk.into_iter().take(VICTIMS_MAX).filter_map(victim).collect(),
            ram_victims: ram.into_iter().take(VICTIMS_MAX).filter_map(victim).collect(),
        }
    }

    /// Everything that moves, on top of the shelves.
    #[must_use]
    pub fn outlook(&self, shelf: Arc<Shelf>, calibration: Arc<Calibration>, page_cache: Arc<PageCache>) -> Outlook {
        let ahead = |(id, flight): (&crate::ids::FlightId, &Flight)| {
            let origin = flight.usable().next().map(|source| source.origin.clone())?;
            let underway: usize = flight.requests.len().min(flight.layout.pieces() as usize);
            let arrived = flight.cvs.iter().filter(|cv| cv.is_some()).count();
            let left = flight.layout.pieces() as usize - arrived;
            Some(FlightAhead {
                flight: *id,
                models: flight.models.keys().cloned().collect(),
                digest: flight.digest,
                origin,
                bytes: flight.layout.bytes(),
                piece_bytes: flight.layout.piece_bytes().min(flight.layout.bytes().max(1)),
                pieces_left: (left as f64 - underway as f64 / 2.0).max(0.0),
                demand: flight.priority == Priority::Demand,
                opens: matches!(flight.stage, Stage::Waiting | Stage::Granted | Stage::Opening),
                reserved: flight.reserved > 0,
            })
        };
        let flights = self.flights.iter().filter(|(_, flight)| !flight.is_ending());
        let wanted: BTreeSet<PartialName> = self.flights.values().map(|flight| flight.name).collect();
        let idle = self.partials.iter().filter(|(name, _)| !wanted.contains(name)).map(|(_, (bytes, _))| bytes);
        let unfinished: u64 = idle.sum();
        let room = |budget: &crate::budget::Budget, leaving: u64| Room {
            limit: budget.limit(),
            free: budget.free() + leaving,
            over: budget.over(),
        };
        Outlook {
            shelf,
            flights: flights.filter_map(ahead).collect(),
            connections: self
                .lanes
                .iter()
                .map(|lane| {
                    let allowed = lane.connections.allowed().min(self.config.fetch.connections_max);
                    (lane.origin.clone(), if lane.ignores_ranges { 1 } else { allowed })
                })
                .collect(),
            locking: self.memory.locking(),
            disk: room(&self.disk, self.leaving() + unfinished),
            ram: room(&self.memory.budget, self.memory.leaving()),
            models_max: self.config.limits.models_per_request_max,
            rates: self.rates.clone(),
            calibration,
            page_cache,
        }
    }

    /// Models that were looked at and found where they were wanted took this long.
    pub fn looked(&mut self, models: usize, took: std::time::Duration) {
        Arc::make_mut(&mut self.rates).look.saw(models as u64, took);
    }
}

//! Notices what changed since the loop looked last: flights, pressure, VRAM, and whether anybody needs the node. Looks only after
//! something was applied, and at flags and numbers first; whole views are made of what changed alone.

use std::collections::{BTreeMap, BTreeSet};

use crate::clock::{Tick, Wall};
use crate::engine::event::Event;
use crate::engine::handle::Follow;
use crate::engine::run::Engine;
use crate::engine::view::{ActivityView, Change, Phase, Position, Priority, StateView, Tier};
use crate::ids::{BlobId, FlightId};

/// What the loop knew when it looked last.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// Whether something was applied since.
    pub(crate) dirty: bool,
    flying: BTreeMap<FlightId, Phase>,
    in_vram: BTreeSet<BlobId>,
    ram_pressed: bool,
    disk_over: bool,
    activity: Activity,
}

/// When the node was needed last.
#[derive(Debug, Default)]
struct Activity {
    needed: bool,
    last_demand: Option<Wall>,
    active: Tick,
}

impl Engine {
    /// Tells what changed.
    pub(crate) fn tell_changes(&mut self) {
        if std::mem::take(&mut self.changes.dirty) {
            self.tell_flights();
            self.tell_vram();
            self.tell_disk();
            self.changes.activity.needed = self.state.is_needed();
        }
        if self.changes.activity.needed {
            self.needed();
        }
    }

    /// Looks at an event before it is applied, for what it says by itself.
    pub(crate) fn notice(&mut self, event: &Event) {
        match event {
            Event::Ensure { request, .. } if request.priority == Priority::Demand => self.needed(),
            Event::Opens { .. } => self.needed(),
            Event::Pressure { release, source } => self.tell_ram_pressure(Some(*release), source),
            Event::PressureOver { .. } => self.tell_ram_pressure(None, ""),
            _ => {}
        }
    }

    /// What was told behind a place, or everything as it is.
    pub(crate) fn follow(&mut self, since: Option<Position>) -> Follow {
        // What changed until now is told before, so that nothing of it comes again behind a snapshot.
        self.tell_changes();
        let past = since.and_then(|since| self.chronicle.told_since(since));
        let snapshot = past.is_none().then(|| Box::new(self.snapshot()));
        let (at, live) = self.chronicle.live();
        Follow { snapshot, past: past.unwrap_or_default(), at, live }
    }

    /// Somebody needs the node at this moment.
    pub(crate) fn needed(&mut self) {
        self.changes.activity.last_demand = Some(self.clock.wall());
        self.changes.activity.active = self.clock.now();
    }

    /// The node runs short of memory, or does no more.
    fn tell_ram_pressure(&mut self, bytes: Option<u64>, source: &'static str) {
        if bytes.is_none() && !self.changes.ram_pressed {
            return;
        }
        self.changes.ram_pressed = bytes.is_some();
        self.change(Change::Pressure { tier: Tier::Ram, bytes, source });
    }

    /// Who needs the node.
    pub(crate) fn activity(&self) -> ActivityView {
        let (flights_demand, flights_ahead) = self.state.flights_by_need();
        let now = self.clock.now();
        let idle = if self.state.is_needed() { now } else { self.changes.activity.active };
        ActivityView {
            last_demand: self.changes.activity.last_demand,
            idle: now.since(idle),
            flights_demand,
            flights_ahead,
        }
    }

    fn snapshot(&self) -> StateView {
        let flights = self.state.flights(self.clock.now());
        StateView { node: self.node(), flights, models: self.state.residence() }
    }

    fn change(&mut self, change: Change) {
        self.chronicle.change(change, self.clock.wall());
    }

    fn tell_flights(&mut self) {
        let now = self.clock.now();
        let mut gone: BTreeSet<FlightId> = self.changes.flying.keys().copied().collect();
        let mut news = Vec::new();
        for (id, phase) in self.state.phases() {
            gone.remove(&id);
            match self.changes.flying.get_mut(&id) {
                // Connections come and go with what others need: one that fetched once is told as fetching until it is whole.
                Some(Phase::Fetching) if phase == Phase::Waiting => {}
                Some(before) if *before == phase => {}
                Some(before) => {
                    *before = phase;
                    news.push((id, false));
                }
                None => {
                    self.changes.flying.insert(id, phase);
                    news.push((id, true));
                }
            }
        }
        for (id, began) in news {
            if let Ok(flight) = self.state.flight(id, now) {
                self.change(Change::Flight { flight: Box::new(flight), began });
            }
        }
        for id in gone {
            match self.state.flight(id, now) {
                // It lets go of its file first: its end is told when it is there.
                Ok(flight) if flight.ended.is_none() => continue,
                Ok(flight) => {
                    let failed = flight.ended.as_ref().and_then(|ended| ended.as_ref().err()).map(ToString::to_string);
                    self.spans.flight_ended(id, failed, now);
                    self.change(Change::Flight { flight: Box::new(flight), began: false });
                }
                Err(_) => {}
            }
            self.changes.flying.remove(&id);
        }
    }

    fn tell_vram(&mut self) {
        let now = self.state.whole_in_vram();
        if now == self.changes.in_vram {
            return;
        }
        let before = std::mem::replace(&mut self.changes.in_vram, now.clone());
        for blob in before.symmetric_difference(&now) {
            let (models, loaded) = (self.state.names_of(*blob), now.contains(blob));
            self.change(Change::Vram { models, blob: *blob, loaded });
        }
    }

    fn tell_disk(&mut self) {
        let over = self.state.disk_over();
        if (over > 0) == self.changes.disk_over {
            return;
        }
        self.changes.disk_over = over > 0;
        let (bytes, source) = if over > 0 { (Some(over), "budget") } else { (None, "") };
        self.change(Change::Pressure { tier: Tier::Nvme, bytes, source });
    }
}

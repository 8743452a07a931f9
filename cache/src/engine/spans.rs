//! Notes what ensures, flights and locks go through, and makes one tree of spans of it when an ensure ends. Notes nothing while
//! nobody takes traces; hands them over without waiting, and counts what finds no place.
//!
//! A flight may serve many ensures: each tells it in its own tree, at the times that it had.

use std::collections::{BTreeMap, BTreeSet};

use tokio::sync::mpsc;

use crate::clock::{Clock, Tick};
use crate::engine::event::{Broken, Effect, Event, Fetch};
use crate::engine::view::{EnsurePlan, EnsureRequest, Span, SpanTree, Tier, Value};
use crate::ids::{BlobId, EnsureId, FlightId};
use crate::metrics;

/// Requests of one flight that have spans of their own; the others are counted.
const REQUESTS_MAX: usize = 128;
/// Flights that are remembered at once, and locks: beyond that, trees lack them.
const NOTES_MAX: usize = 4096;

/// What is known so far.
#[derive(Debug, Default)]
pub(crate) struct Spans {
    sink: Option<mpsc::Sender<SpanTree>>,
    ensures: BTreeMap<EnsureId, EnsureNote>,
    flights: BTreeMap<FlightId, FlightNote>,
    locks: BTreeMap<BlobId, Part>,
}

/// Something with a begin and perhaps an end.
#[derive(Debug, Clone, Default)]
struct Part {
    begun: Tick,
    ended: Option<Tick>,
    failed: String,
    bytes: u64,
}

impl Part {
    fn at(begun: Tick) -> Self {
        Self { begun, ..Self::default() }
    }

    fn end(&mut self, now: Tick, failed: Option<String>) {
        self.ended = Some(now);
        self.failed = failed.unwrap_or_default();
    }
}

#[derive(Debug)]
struct EnsureNote {
    begun: Tick,
    client: String,
    target: Tier,
    /// Its flights, and whether they were under way before.
    flights: BTreeMap<FlightId, bool>,
    bytes: u64,
}

#[derive(Debug, Default)]
struct FlightNote {
    whole: Part,
    models: Vec<String>,
    blob: Option<BlobId>,
    lands: bool,
    open: Option<Part>,
    fetches: Vec<(Fetch, Part)>,
    /// Requests without a span of their own.
    others: u64,
    commit: Option<Part>,
}

impl Spans {
    /// Gives traces to `sink` from here on.
    pub(crate) fn send_to(&mut self, sink: mpsc::Sender<SpanTree>) {
        self.sink = Some(sink);
    }

    /// Whether somebody takes traces.
    fn is_on(&self) -> bool {
        self.sink.as_ref().is_some_and(|sink| !sink.is_closed())
    }

    /// An event is about to be applied.
    pub(crate) fn event(&mut self, event: &Event, now: Tick) {
        if !self.is_on() {
            return;
        }
        match event {
            Event::Ensure { id, request } => self.ensure(*id, request, now),
            Event::Leave(id) => {
                self.ensures.remove(id);
                self.forget();
            }
            Event::Opened { flight, pieces } => {
                if let Some(open) = self.flights.get_mut(flight).and_then(|flight| flight.open.as_mut()) {
                    open.end(now, pieces.as_ref().err().map(ToString::to_string));
                }
            }
            Event::RequestEnded { flight, request, result } => {
                let fetches = self.flights.get_mut(flight).map(|flight| &mut flight.fetches);
                let found = fetches.and_then(|all| all.iter_mut().rev().find(|(fetch, _)| fetch.request == *request));
                if let Some((_, part)) = found {
                    part.end(now, result.as_ref().err().map(broken));
                }
            }
            Event::Committed { flight, result } => {
                if let Some(flight) = self.flights.get_mut(flight) {
                    let failed = result.as_ref().err().map(|fault| format!("{fault:?}"));
                    if let Some(commit) = &mut flight.commit {
                        commit.end(now, failed);
                    }
                }
            }
            Event::Locked { blob, result, .. } => {
                if let Some(lock) = self.locks.get_mut(blob) {
                    lock.end(now, result.as_ref().err().map(ToString::to_string));
                }
            }
            _ => {}
        }
    }

    /// Work is about to be started.
    pub(crate) fn effect(&mut self, effect: &Effect, now: Tick, clock: &Clock) {
        if !self.is_on() {
            return;
        }
        match effect {
            Effect::TellPlan(id, plan) => self.plan(*id, plan, now),
            Effect::Open { flight, bytes, .. } => {
                if let Some(note) = self.flight(*flight, now) {
                    note.open = Some(Part { bytes: *bytes, ..Part::at(now) });
                }
            }
            Effect::Land(flight) => {
                if let Some(note) = self.flight(*flight, now) {
                    note.lands = true;
                }
            }
            Effect::Fetch(fetch) => {
                let Some(note) = self.flight(fetch.flight, now) else { return };
                if note.fetches.len() < REQUESTS_MAX {
                    note.fetches.push((fetch.clone(), Part::at(now)));
                } else {
                    note.others += 1;
                }
            }
            Effect::Commit { flight, blob, .. } => {
                if let Some(note) = self.flight(*flight, now) {
                    note.blob = Some(*blob);
                    note.commit = Some(Part::at(now));
                }
            }
            Effect::Lock { blob, bytes } if self.locks.len() < NOTES_MAX => {
                self.locks.insert(*blob, Part { bytes: *bytes, ..Part::at(now) });
            }
            Effect::TellReady(id, ready) => {
                let blobs: Vec<BlobId> = ready.models.iter().map(|model| model.blob).collect();
                self.tell(*id, &blobs, ready.bytes_fetched, String::new(), now, clock);
            }
            Effect::TellFailed(id, failed) => self.tell(*id, &[], 0, failed.fault.to_string(), now, clock),
            _ => {}
        }
    }

    /// A flight is over.
    pub(crate) fn flight_ended(&mut self, flight: FlightId, failed: Option<String>, now: Tick) {
        if let Some(note) = self.flights.get_mut(&flight) {
            note.whole.end(now, failed);
            self.forget();
        }
    }

    fn ensure(&mut self, id: EnsureId, request: &EnsureRequest, now: Tick) {
        let (client, target) = (request.client.clone(), request.target);
        // As many as there may be callers: the engine refuses more.
        self.ensures.insert(id, EnsureNote { begun: now, client, target, flights: BTreeMap::new(), bytes: 0 });
    }

    fn plan(&mut self, id: EnsureId, plan: &EnsurePlan, now: Tick) {
        for model in &plan.models {
            let Some(flight) = model.flight else { continue };
            if let Some(note) = self.flight(flight, now) {
                let name = model.model.to_string();
                if !note.models.contains(&name) {
                    note.models.push(name);
                }
                note.whole.bytes = note.whole.bytes.max(model.bytes);
            }
            if let Some(ensure) = self.ensures.get_mut(&id) {
                ensure.flights.insert(flight, model.joined);
            }
        }
        if let Some(ensure) = self.ensures.get_mut(&id) {
            ensure.bytes = plan.bytes_total;
        }
    }

    fn flight(&mut self, flight: FlightId, now: Tick) -> Option<&mut FlightNote> {
        if self.flights.len() >= NOTES_MAX && !self.flights.contains_key(&flight) {
            return None;
        }
        Some(self.flights.entry(flight).or_insert_with(|| FlightNote { whole: Part::at(now), ..FlightNote::default() }))
    }

    /// Lets go of what no tree can need any more.
    fn forget(&mut self) {
        let wanted: BTreeSet<FlightId> = self.ensures.values().flat_map(|note| note.flights.keys().copied()).collect();
        self.flights.retain(|id, note| note.whole.ended.is_none() || wanted.contains(id));
        let oldest = self.ensures.values().map(|note| note.begun).min();
        self.locks.retain(|_, lock| lock.ended.is_none_or(|ended| oldest.is_some_and(|oldest| ended >= oldest)));
    }

    /// Makes the tree of an ensure that ends, and hands it over.
    fn tell(&mut self, id: EnsureId, blobs: &[BlobId], fetched: u64, failed: String, now: Tick, clock: &Clock) {
        let Some(note) = self.ensures.remove(&id) else { return };
        let mut tree = Tree::new(now, clock);
        let whole = Part { begun: note.begun, ended: Some(now), failed, bytes: note.bytes };
        let root = tree.add(
            None,
            "ensure",
            &whole,
            vec![
                ("tierd.ensure", id.0.into()),
                ("tierd.client", note.client.clone().into()),
                ("tierd.target", word(note.target).to_owned().into()),
                ("tierd.bytes_fetched", fetched.into()),
            ],
        );
        let mut of_flights = BTreeMap::new();
        for (flight, joined) in &note.flights {
            if let Some(known) = self.flights.get(flight) {
                let span = tree.flight(root, *flight, known, *joined);
                of_flights.extend(known.blob.map(|blob| (blob, span)));
            }
        }
        for blob in blobs.iter().collect::<BTreeSet<_>>() {
            // A lock that was over before was for somebody else.
            let lock = self.locks.get(blob).filter(|lock| lock.ended.is_none_or(|ended| ended >= note.begun));
            if let Some(lock) = lock {
                let parent = of_flights.get(blob).copied().unwrap_or(root);
                tree.add(Some(parent), "lock", lock, vec![("tierd.blob", blob.to_string().into())]);
            }
        }
        self.forget();
        let Some(sink) = &self.sink else { return };
        if let Err(mpsc::error::TrySendError::Full(trace)) = sink.try_send(tree.done()) {
            metrics::spans::dropped(trace.spans.len());
        }
    }
}

/// A tree that is being made.
struct Tree {
    spans: Vec<Span>,
    /// The present, on both clocks.
    now: Tick,
    wall_ns: u64,
}

impl Tree {
    fn new(now: Tick, clock: &Clock) -> Self {
        Self { spans: Vec::new(), now, wall_ns: clock.wall().0.saturating_mul(1_000_000) }
    }

    fn at(&self, tick: Tick) -> u64 {
        let ago = u64::try_from(self.now.since(tick).as_nanos()).unwrap_or(u64::MAX);
        self.wall_ns.saturating_sub(ago)
    }

    fn add(
        &mut self,
        parent: Option<u64>,
        name: &'static str,
        part: &Part,
        mut attributes: Vec<(&'static str, Value)>,
    ) -> u64 {
        let id = fastrand::u64(1..);
        if part.bytes > 0 {
            attributes.push(("tierd.bytes", part.bytes.into()));
        }
        let (begun, ended) = (self.at(part.begun), self.at(part.ended.unwrap_or(self.now)));
        self.spans.push(Span { id, parent, name, begun, ended, failed: part.failed.clone(), attributes });
        id
    }

    fn flight(&mut self, root: u64, id: FlightId, note: &FlightNote, joined: bool) -> u64 {
        // An ensure is told the moment its last flight is committed; the flight lets go of its file after that.
        let ended = note.whole.ended.or_else(|| note.commit.as_ref().and_then(|commit| commit.ended));
        let whole = Part { ended, ..note.whole.clone() };
        let mut attributes = vec![
            ("tierd.flight", Value::from(id.0)),
            ("tierd.models", note.models.join(" ").into()),
            ("tierd.joined", joined.into()),
            ("tierd.lands_in_ram", note.lands.into()),
        ];
        attributes.extend(note.blob.map(|blob| ("tierd.blob", blob.to_string().into())));
        if note.others > 0 {
            attributes.push(("tierd.requests_without_span", note.others.into()));
        }
        let span = self.add(Some(root), "flight", &whole, attributes);
        if let Some(open) = &note.open {
            self.add(Some(span), "open", open, Vec::new());
        }
        for (fetch, part) in &note.fetches {
            self.add(
                Some(span),
                "fetch",
                part,
                vec![
                    ("tierd.origin", fetch.source.origin.to_string().into()),
                    ("tierd.piece_first", u64::from(fetch.first).into()),
                    ("tierd.pieces", u64::from(fetch.count).into()),
                ],
            );
        }
        if let Some(commit) = &note.commit {
            self.add(Some(span), "commit", commit, Vec::new());
        }
        span
    }

    fn done(self) -> SpanTree {
        SpanTree { id: fastrand::u128(1..), spans: self.spans }
    }
}

fn word(tier: Tier) -> &'static str {
    match tier {
        Tier::Vram => "vram",
        Tier::Ram => "ram",
        Tier::Nvme => "nvme",
        Tier::Origin => "origin",
    }
}

fn broken(broken: &Broken) -> String {
    match broken {
        Broken::Transient { detail, .. } => detail.clone(),
        Broken::Throttled { status, .. } => format!("the origin asks to slow down ({status})"),
        Broken::Changed => "the object changed".to_owned(),
        Broken::RangeIgnored => "ranges are ignored".to_owned(),
        Broken::Refused(fault) | Broken::Local(fault) => fault.to_string(),
        Broken::Aborted => "stopped".to_owned(),
    }
}

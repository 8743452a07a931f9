//! The way of the bytes: from an origin, through a block of memory that hashes them as they arrive, to the disk.
//!
//! Nothing here decides: it does one [`Fetch`] and tells how it went. Payload stays inside this file.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::engine::done::Done;
use crate::engine::event::{Broken, Event, Fetch};
use crate::engine::gauges::outcome;
use crate::engine::pace::Pace;
use crate::fault::Fault;
use crate::ids::BlobId;
use crate::metrics::{self, RequestOutcome};
use crate::origin::{Body, Origin, OriginError};
use crate::piece::PieceHasher;
use crate::resident::Held;
use crate::resident::landing::{self, Way, Ways};
use crate::store::{BLOCK_BYTES, Block, BlockPool, Partial, StoreError};

/// What every fetch of one origin shares.
#[derive(Debug, Clone)]
pub(crate) struct Lines {
    pub(crate) origin: Arc<Origin>,
    pub(crate) pool: Arc<BlockPool>,
    pub(crate) paces: Vec<Arc<Pace>>,
    pub(crate) clock: Clock,
    /// Bytes that this origin has sent since the daemon started.
    pub(crate) total: Arc<AtomicU64>,
    pub(crate) done: mpsc::Sender<Done>,
}

/// A write into the page cache that takes longer had to wait: for the disk, or for a processor.
const STALL: Duration = Duration::from_millis(20);

/// Keeps the pages of one unfinished blob as they land.
#[derive(Debug)]
pub(crate) struct Landing {
    pub(crate) held: Held,
    pub(crate) ways: Mutex<Ways>,
    /// Whether a write had to wait for the disk.
    pub(crate) waits: AtomicBool,
    /// What it turned out to be.
    pub(crate) blob: OnceLock<BlobId>,
}

impl Landing {
    fn ways(&self) -> MutexGuard<'_, Ways> {
        // Counters are whole whatever panicked while they were held.
        self.ways.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes bytes into the page cache from where the socket left them: they are in the processor's cache still, and are copied
    /// once. Waits for the disk where too much is unwritten, so it must be called where waiting is allowed.
    fn keep(&self, partial: &Partial, offset: u64, bytes: &[u8], write: usize) -> Result<(), StoreError> {
        let cost = partial.through(|file| landing::write_through(file, offset, bytes, write))?;
        self.ways().took(write, bytes.len() as u64, cost);
        Ok(())
    }

    /// Holds the pages of a piece that is on its way to the disk. What fails here is told when the whole blob is locked.
    fn hold(&self, partial: &Partial, range: Range<u64>) {
        let begun = partial.through(|file| landing::start_writeback(file, range.clone()));
        let held = self.held.extend(range);
        if let (Err(error), _) = (&begun, &held) {
            tracing::debug!(%error, "writeback was not started early");
        }
        if let Err(error) = held {
            tracing::debug!(%error, "a piece was not held as it landed");
        }
    }
}

/// Where the bytes of a fetch go.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) partial: Arc<Partial>,
    /// Set if its pages are kept as they land.
    pub(crate) landing: Option<Arc<Landing>>,
}

impl Target {
    /// How the next `bytes` bytes land.
    fn way(&self, bytes: u64) -> Way {
        let Some(landing) = &self.landing else { return Way::Behind };
        let way = landing.ways().choose();
        metrics::ram_landed(way != Way::Behind, bytes);
        way
    }

    /// Writes bytes through the page cache, at once: a copy of some 50 us, cheaper than any hand-over to another thread. Once one had
    /// to wait (too much is unwritten, and the kernel slows down who writes), the others wait where nobody waits for them.
    fn keep(&self, clock: &Clock, offset: u64, bytes: &[u8], write: usize) -> Result<(), Failure> {
        let Some(landing) = &self.landing else { return Ok(()) };
        let keep = || landing.keep(&self.partial, offset, bytes, write).map_err(|error| Failure::Local(error.into()));
        // In a runtime of one thread there is no other to go on with the other connections.
        let may_move = || Handle::current().runtime_flavor() != RuntimeFlavor::CurrentThread;
        if landing.waits.load(Ordering::Relaxed) && may_move() {
            return tokio::task::block_in_place(keep);
        }
        let begun = clock.now();
        keep()?;
        if clock.now().since(begun) > STALL {
            landing.waits.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Writes that are on their way to the disk. They are always waited for: a late write could overwrite a newer one.
#[derive(Default)]
struct Writes(JoinSet<Result<(), Fault>>);

impl Writes {
    fn write(&mut self, partial: Arc<Partial>, offset: u64, mut block: Block) {
        self.0.spawn_blocking(move || Ok(partial.write(offset, &mut block)?));
    }

    async fn settle(&mut self) -> Result<(), Fault> {
        let mut result = Ok(());
        while let Some(joined) = self.0.join_next().await {
            let written =
                joined.unwrap_or_else(|panic| Err(Fault::Store { detail: format!("a write panicked: {panic}") }));
            result = result.and(written);
        }
        result
    }
}

/// Does one fetch. Every piece that is on the disk and in the journal is told at once.
pub(crate) async fn fetch(
    lines: Lines,
    fetch: Fetch,
    target: Target,
    stop: CancellationToken,
    received: Arc<AtomicU64>,
) -> Result<(), Broken> {
    let mut writes = Writes::default();
    let started = lines.clock.now();
    let result = tokio::select! {
        biased;
        () = stop.cancelled() => Err(Failure::Aborted),
        result = pieces(&lines, &fetch, &target, &received, &mut writes) => result,
    };
    let settled = writes.settle().await;
    let ended = match &result {
        Ok(()) => Some(RequestOutcome::Ok),
        Err(Failure::Origin(error)) => Some(outcome(error)),
        Err(Failure::Local(_) | Failure::Aborted) => None,
    };
    if let Some(outcome) = ended {
        metrics::request_ended(lines.origin.name(), outcome, lines.clock.now().since(started));
    }
    let result = result.map_err(|failure| failure.broken(&lines, &fetch));
    result.and(settled.map_err(Broken::Local))
}

async fn pieces(
    lines: &Lines,
    fetch: &Fetch,
    target: &Target,
    received: &AtomicU64,
    writes: &mut Writes,
) -> Result<(), Failure> {
    let partial = &target.partial;
    let layout = partial.layout();
    let range = layout.range(fetch.first).start..layout.range(fetch.first + fetch.count - 1).end;
    let Fetch { source, .. } = fetch;
    let asked = lines.clock.now();
    let body = if fetch.whole {
        lines.origin.read_whole(&source.path, source.bytes, &source.validator).await
    } else {
        lines.origin.read(&source.path, range, source.bytes, &source.validator).await
    };
    let mut stream = Stream { lines, path: source.path.clone(), body: body?, rest: Bytes::new(), uncounted: 0 };
    metrics::answered(lines.origin.name(), lines.clock.now().since(asked));
    for piece in fetch.first..fetch.first + fetch.count {
        let skip = fetch.skip.binary_search(&piece).is_ok();
        let range = layout.range(piece);
        let mut hasher = PieceHasher::new(layout, piece);
        let mut offset = range.start;
        while offset < range.end {
            let end = (offset + BLOCK_BYTES as u64).min(range.end);
            let way = if skip { Way::Behind } else { target.way(end - offset) };
            let mut block = match way {
                Way::Behind => Some(lines.pool.acquire().await),
                Way::Through(_) => None,
            };
            let start = offset;
            while offset < end {
                let most = usize::try_from(end - offset).expect("a block fits the address space");
                let bytes = stream.next(most).await?;
                hasher.update(&bytes);
                if let Some(block) = &mut block {
                    block.fill(&bytes);
                } else if let Way::Through(write) = way {
                    target.keep(&lines.clock, offset, &bytes, write)?;
                }
                offset += bytes.len() as u64;
                if !skip {
                    received.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                }
            }
            if let Some(block) = block.filter(|_| !skip) {
                writes.write(target.partial.clone(), start, block);
            }
        }
        if skip {
            continue;
        }
        writes.settle().await.map_err(Failure::Local)?;
        if let Some(landing) = target.landing.clone() {
            // Beside the connection: reading a piece back must not keep the next one waiting.
            let (partial, range) = (partial.clone(), range.clone());
            tokio::task::spawn_blocking(move || landing.hold(&partial, range));
        }
        let cv = hasher.finish();
        stream.count();
        partial.finished(piece, cv).map_err(|error| Failure::Local(error.into()))?;
        let event = Event::PieceDone { flight: fetch.flight, request: fetch.request, piece, cv };
        if lines.done.send(Done::Event(event)).await.is_err() {
            return Err(Failure::Aborted);
        }
    }
    Ok(stream.end().await?)
}

/// A body, cut where blocks and pieces end.
struct Stream<'a> {
    lines: &'a Lines,
    path: String,
    body: Body,
    rest: Bytes,
    /// Bytes that the metrics have not been told of: they are told once a piece, not once a chunk.
    uncounted: u64,
}

impl Drop for Stream<'_> {
    fn drop(&mut self) {
        self.count();
    }
}

impl Stream<'_> {
    /// The next bytes, at most `most`.
    async fn next(&mut self, most: usize) -> Result<Bytes, OriginError> {
        while self.rest.is_empty() {
            self.rest = self.body.next().await.ok_or_else(|| self.short(most))??;
            let bytes = self.rest.len() as u64;
            self.lines.total.fetch_add(bytes, Ordering::Relaxed);
            self.uncounted += bytes;
            for pace in &self.lines.paces {
                pace.keep(bytes, &self.lines.clock).await;
            }
        }
        let most = most.min(self.rest.len());
        Ok(self.rest.split_to(most))
    }

    fn count(&mut self) {
        metrics::fetched(self.lines.origin.name(), std::mem::take(&mut self.uncounted));
    }

    /// The origin enforces lengths; this is what is left if it did not.
    fn short(&self, most: usize) -> OriginError {
        OriginError::Truncated { path: self.path.clone(), got: 0, want: most as u64 }
    }

    /// The body must end where the pieces end. Reading its end also gives the connection back.
    async fn end(&mut self) -> Result<(), OriginError> {
        match self.body.next().await {
            None => Ok(()),
            Some(more) => more.map(|_| ()),
        }
    }
}

/// Why a fetch did not come to its end.
enum Failure {
    Origin(OriginError),
    Local(Fault),
    Aborted,
}

impl From<OriginError> for Failure {
    fn from(error: OriginError) -> Self {
        Self::Origin(error)
    }
}

impl Failure {
    /// What it means for the flight.
    fn broken(self, lines: &Lines, fetch: &Fetch) -> Broken {
        let error = match self {
            Self::Origin(error) => error,
            Self::Local(fault) => return Broken::Local(fault),
            Self::Aborted => return Broken::Aborted,
        };
        match error {
            OriginError::Changed { .. } | OriginError::NotFound { .. } => Broken::Changed,
            OriginError::RangeIgnored { .. } => Broken::RangeIgnored,
            OriginError::Throttled { status, retry_after, .. } => Broken::Throttled { status, retry_after },
            error if error.is_transient() => Broken::Transient { detail: error.to_string(), status: error.status() },
            error => Broken::Refused(error.fault(lines.origin.name(), &fetch.source.path)),
        }
    }
}

//! What reaches the state, and what it asks for in return. Plain values: a run can be recorded and replayed.

use std::time::Duration;

use crate::catalog::{Catalog, Source};
use crate::engine::view::{
    EnsureFailed, EnsurePlan, EnsureReady, EnsureRequest, EvictReason, LeaseView, Priority, Tier, Trust, What,
};
use crate::fault::Fault;
use crate::ids::{BlobId, EnsureId, FlightId, LeaseId, ModelKey, OriginName, Sha256Digest};
use crate::piece::Cv;
use crate::store::{PartialName, StoredLink};
use crate::vram::{Advice, WorkerId};

/// One request to an origin. Unique while the daemon runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// Something that happened. Applied one at a time.
#[derive(Debug)]
pub enum Event {
    /// Somebody wants models.
    Ensure {
        /// The caller's number.
        id: EnsureId,
        /// What is wanted.
        request: EnsureRequest,
    },
    /// A caller went away.
    Leave(EnsureId),
    /// A stored model was looked at before it is believed.
    Inspected {
        /// The blob.
        blob: BlobId,
        /// What the disk says.
        found: Found,
    },
    /// A blob was read and compared with its piece digests.
    Scrubbed {
        /// The blob.
        blob: BlobId,
        /// Pieces that do not match, or why it could not be read.
        bad: Result<Vec<u32>, Fault>,
    },
    /// A blob was read because it was its turn, and compared with its piece digests.
    Patrolled {
        /// The blob.
        blob: BlobId,
        /// Pieces that do not match, or why it could not be read.
        bad: Result<Vec<u32>, Fault>,
    },
    /// A damaged blob left its names; its good pieces are an unfinished blob now.
    Withdrawn {
        /// The blob.
        blob: BlobId,
        /// How that went.
        result: Result<PartialName, Fault>,
    },
    /// Origins were asked for a model that the catalog does not know.
    Located {
        /// The model.
        model: ModelKey,
        /// Whether some origin has it; the catalog holds it then.
        result: Result<(), Fault>,
    },
    /// A new catalog.
    Catalog(std::sync::Arc<Catalog>),
    /// An unfinished blob is open for writing.
    Opened {
        /// The flight.
        flight: FlightId,
        /// Pieces that were there and have been verified again.
        pieces: Result<Vec<(u32, Cv)>, Fault>,
    },
    /// A piece is on the disk and in the journal.
    PieceDone {
        /// The flight.
        flight: FlightId,
        /// The request that brought it.
        request: RequestId,
        /// The piece.
        piece: u32,
        /// Its chaining value.
        cv: Cv,
    },
    /// A request ended. Comes once for each [`Effect::Fetch`], whatever happened.
    RequestEnded {
        /// The flight.
        flight: FlightId,
        /// The request.
        request: RequestId,
        /// Why, if not all of it arrived.
        result: Result<(), Broken>,
    },
    /// A source that changed or vanished was looked up again.
    Relocated {
        /// The flight.
        flight: FlightId,
        /// The origin that was asked, and what it has now under that name, if anything.
        result: Result<(OriginName, Option<Relocated>), Fault>,
    },
    /// A flight's blob was checked, made durable and named; or not.
    Committed {
        /// The flight.
        flight: FlightId,
        /// How that went.
        result: Result<Commit, CommitFault>,
    },
    /// A name for a stored blob was made.
    Linked {
        /// The name.
        link: StoredLink,
        /// How that went.
        result: Result<(), Fault>,
    },
    /// A blob and its names are gone.
    Removed {
        /// The blob.
        blob: BlobId,
        /// How that went.
        result: Result<(), Fault>,
    },
    /// An unfinished blob is gone.
    Discarded {
        /// Its name.
        name: PartialName,
        /// How that went.
        result: Result<(), Fault>,
    },
    /// A file of this node became a model.
    Adopted {
        /// Its name and content.
        link: StoredLink,
        /// Its size.
        bytes: u64,
        /// Bytes that were reserved for it.
        reserved: u64,
    },
    /// The file system was asked for its size and free space.
    Space {
        /// Bytes of the file system.
        total: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// A blob's pages are in RAM and held; or not.
    Locked {
        /// The blob.
        blob: BlobId,
        /// Bytes of it that were in the page cache before.
        found: u64,
        /// How that went.
        result: Result<(), Fault>,
    },
    /// A blob's pages are given back.
    Unlocked(BlobId),
    /// The disk gave up its copy of what RAM holds; or not.
    Shed {
        /// The blob.
        blob: BlobId,
        /// How that went.
        result: Result<(), Fault>,
    },
    /// A blob that only RAM held, or that was passing by, is on the disk; or not.
    Sunk {
        /// The blob.
        blob: BlobId,
        /// How that went.
        result: Result<(), Fault>,
    },
    /// Models that are known to be wanted soon, the next first, for the policy to weigh: it starts nothing. The whole truth, each time.
    Foresee(Vec<ModelKey>),
    /// Bytes that RAM may hold now, as the node's limits and its free memory have it.
    RamLimit(u64),
    /// The node runs short of memory: this many bytes must be given back at once. Nothing new is promoted until
    /// [`Event::PressureOver`].
    Pressure {
        /// Bytes.
        release: u64,
        /// What says so.
        source: &'static str,
    },
    /// There is memory again: what went because there was none may come back.
    PressureOver {
        /// Bytes that may come back now.
        growth: u64,
    },
    /// A source's whole list of the models that it expects to use, in place of its last one. An empty list ends it.
    Expect {
        /// Who expects: `comfy:<server>`.
        source: String,
        /// What, and how near.
        wants: Vec<crate::plan::expected::Want>,
    },
    /// How many bytes an origin has sent since the daemon started.
    Sample {
        /// The origin.
        origin: OriginName,
        /// Bytes.
        bytes: u64,
    },
    /// A process of the node ended: its workers have nothing in VRAM any more.
    ProcessEnded(u32),
    /// A worker is about to open a model's file.
    Opens {
        /// The worker.
        worker: WorkerId,
        /// The model.
        model: ModelKey,
    },
    /// Models that the server at an address is going to need.
    Expected {
        /// The address, as the worker there says it.
        address: String,
        /// The models, in order.
        models: Vec<ModelKey>,
    },
    /// Time passed.
    Tick,
}

/// What a cheap look at a stored model says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Size, times and identity are as recorded.
    Intact,
    /// Something touched the file: its content must be read before it is believed.
    Changed(String),
    /// The file is gone.
    Missing,
    /// The disk does not answer.
    Unreadable(Fault),
}

/// Why a request broke, in the terms that decide what to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Broken {
    /// Worth another try: reset, stall, timeout, 5xx, truncated.
    Transient {
        /// What happened, redacted.
        detail: String,
        /// The HTTP status, if there was one.
        status: Option<u16>,
    },
    /// The origin asks us to slow down.
    Throttled {
        /// The HTTP status.
        status: u16,
        /// How long it asks us to wait, if it says so.
        retry_after: Option<Duration>,
    },
    /// The object is not the one that was listed, or is gone.
    Changed,
    /// The server sends everything whatever range is asked for.
    RangeIgnored,
    /// This origin will not give this object: credentials, bucket.
    Refused(Fault),
    /// Our own disk failed.
    Local(Fault),
    /// We stopped it.
    Aborted,
}

/// What an origin has now, in place of what was listed.
#[derive(Debug, Clone)]
pub struct Relocated {
    /// Where.
    pub source: Source,
    /// Its digests, if its manifest speaks of this state.
    pub blake3: Option<BlobId>,
    /// Likewise.
    pub sha256: Option<Sha256Digest>,
}

/// A commit that went well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Commit {
    /// How the content was checked.
    pub trust: Trust,
    /// Its SHA-256, if it was computed.
    pub sha256: Option<Sha256Digest>,
}

/// Why a whole blob was not committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommitFault {
    /// The bytes are not what was promised.
    Corrupt {
        /// The digest or structure that was promised.
        expected: String,
        /// What came instead.
        actual: String,
    },
    /// Our own disk failed.
    Local(Fault),
}

/// Work that the state asks for. An effect that is dropped is work that never happens.
#[derive(Debug, Clone)]
pub enum Effect {
    /// Look at a stored model (`stat`); answer with [`Event::Inspected`].
    Inspect {
        /// The blob.
        blob: BlobId,
        /// Its names.
        models: Vec<ModelKey>,
    },
    /// Read a blob and compare; answer with [`Event::Scrubbed`].
    Scrub(BlobId),
    /// Read a blob slowly and compare, because it is its turn; answer with [`Event::Patrolled`].
    Patrol(BlobId),
    /// Note that a touched blob turned out to be whole.
    Bless(BlobId),
    /// Take a damaged blob's names away, keep its good pieces; answer with [`Event::Withdrawn`].
    Withdraw {
        /// The blob.
        blob: BlobId,
        /// Its bad pieces.
        bad: Vec<u32>,
    },
    /// Ask origins for a model; answer with [`Event::Located`], after [`Event::Catalog`] if it was found.
    Locate(ModelKey),
    /// Open or resume an unfinished blob; answer with [`Event::Opened`].
    Open {
        /// The flight.
        flight: FlightId,
        /// The unfinished blob's name.
        name: PartialName,
        /// Its size.
        bytes: u64,
    },
    /// Fetch pieces `first..first + count`; answer with [`Event::PieceDone`] for each and [`Event::RequestEnded`].
    Fetch(Fetch),
    /// Stop a request. It still ends with [`Event::RequestEnded`].
    Abort(RequestId),
    /// Look a source up again; answer with [`Event::Relocated`].
    Relocate {
        /// The flight.
        flight: FlightId,
        /// The model to look for.
        model: ModelKey,
        /// Where.
        origin: OriginName,
        /// Whether its manifest must be read too.
        manifest: bool,
    },
    /// Forget all finished pieces of an open unfinished blob.
    Reset(FlightId),
    /// Close an open unfinished blob and keep it.
    Close(FlightId),
    /// Check, make durable and name; answer with [`Event::Committed`].
    Commit {
        /// The flight.
        flight: FlightId,
        /// The root of its pieces.
        blob: BlobId,
        /// The pieces' chaining values.
        cvs: Vec<Cv>,
        /// Whether `blob` was promised by a manifest.
        promised: bool,
        /// A SHA-256 to check, if that is all that is known.
        sha256: Option<Sha256Digest>,
        /// Its names.
        links: Vec<StoredLink>,
    },
    /// Give a stored blob one more name; answer with [`Event::Linked`].
    Link(StoredLink),
    /// Take one name away from a blob that has others.
    Unlink(ModelKey),
    /// Delete a blob and its names; answer with [`Event::Removed`].
    Remove(BlobId),
    /// Delete an unfinished blob; answer with [`Event::Discarded`].
    Discard(PartialName),
    /// Keep the pages of an open unfinished blob as they land: it is wanted in RAM, and there is room for it.
    Land(FlightId),
    /// Read a blob's pages into RAM and hold them; answer with [`Event::Locked`].
    Lock {
        /// The blob.
        blob: BlobId,
        /// Its size.
        bytes: u64,
    },
    /// Give a blob's pages back, or stop to read them; answer with [`Event::Unlocked`].
    Unlock(BlobId),
    /// Take a blob off the disk that RAM holds and keeps; answer with [`Event::Shed`]. Asked only of an executor that can hold a blob in
    /// RAM alone.
    Shed(BlobId),
    /// Write a blob to the disk that is only in RAM or passing by; answer with [`Event::Sunk`]. Likewise.
    Sink(BlobId),
    /// The set of blobs that is to be in RAM after a restart, in the order in which it is worth it.
    NoteResident(Vec<BlobId>),
    /// Note that blobs were used now.
    NoteUse(Vec<BlobId>),
    /// Write a lease down.
    PutLease(LeaseView),
    /// Strike a lease out.
    EndLease(LeaseId),
    /// Tell a caller what will happen.
    TellPlan(EnsureId, EnsurePlan),
    /// Tell a caller that all is ready; its stream ends.
    TellReady(EnsureId, EnsureReady),
    /// Tell a caller that something failed; its stream ends.
    TellFailed(EnsureId, EnsureFailed),
    /// Write down that something happened.
    Record(What),
    /// Count what became of a fetch that nobody asked for.
    CountAhead(Ahead),
    /// Count that a guess came true, or did not.
    CountGuess(Guessed),
    /// Count that a worker used a model, or read a file: from this tier, or a file that is none of ours.
    CountUse {
        /// The fastest tier that had it.
        from: Option<Tier>,
        /// Bytes read; 0 if it was in VRAM.
        bytes: u64,
        /// How long reading took.
        elapsed: Duration,
    },
    /// Tell who listens what a device should do.
    Advise(Advice),
}

/// A guess that is settled, whether it was acted on or not.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Guessed {
    /// How it ended.
    pub settled: crate::plan::predict::shadow::Settled,
    /// Whether it was acted on.
    pub acted: bool,
    /// Whether that was not over yet.
    pub late: bool,
}

/// What becomes of fetches for models that are only expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ahead {
    /// One was started.
    Started,
    /// Its prompt came near the front: it counts as demand now.
    Upgraded,
    /// Its prompt left the queue early in the fetch: it was stopped, its finished pieces are kept.
    Dropped,
    /// Its prompt left the queue late in the fetch: it goes on as a guess.
    LetFinish,
    /// It failed.
    Failed,
}

/// One request to an origin.
#[derive(Debug, Clone)]
pub struct Fetch {
    /// Its number.
    pub request: RequestId,
    /// The flight.
    pub flight: FlightId,
    /// Where from.
    pub source: Source,
    /// The first piece.
    pub first: u32,
    /// How many pieces.
    pub count: u32,
    /// Whether to ask without a range, for servers that ignore ranges.
    pub whole: bool,
    /// Pieces of it that are on the disk already and only pass by.
    pub skip: Vec<u32>,
    /// Demand or prefetch.
    pub priority: Priority,
}

/// A reason that the state gives when it evicts.
pub type Reason = EvictReason;

//! The handle: how everyone else speaks to the engine. Sends commands and waits for answers; holds no state.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use crate::engine::known::Known;
use crate::engine::outlook::{Estimate, Outlook};
use crate::engine::view::{
    EnsureRequest, EnsureUpdate, EvictReport, Explanation, FlightView, ImportedFile, LeaseView, ModelFilter, ModelPage,
    ModelView, MoveReport, NodeView, Occurrence, Position, PredictView, RamHold, SpanTree, StateView, Tier, Told,
};
use crate::fault::Fault;
use crate::ids::{FlightId, LeaseId, ModelKey, OriginName, Seq};
use crate::plan::expected::Want;
use crate::plan::report::Report;

/// Commands that may wait for the engine. It answers in microseconds; more than this means that it hangs.
pub const COMMANDS_MAX: usize = 1024;
/// Updates that a caller may leave unread before progress is dropped for it (plan and end never are).
pub const UPDATES_MAX: usize = 16;
/// Occurrences that a watcher may leave unread before it is told to resync.
pub const WATCH_MAX: usize = 1024;

/// A question or an order to the engine.
#[derive(Debug)]
pub(crate) enum Command {
    Ensure(EnsureRequest, oneshot::Sender<Result<mpsc::Receiver<EnsureUpdate>, Fault>>),
    Flight(FlightId, oneshot::Sender<Result<FlightView, Fault>>),
    Flights(oneshot::Sender<Vec<FlightView>>),
    CancelFlight(FlightId, String, oneshot::Sender<Result<(), Fault>>),
    Pin {
        models: Vec<ModelKey>,
        owner: String,
        ttl: Duration,
        ram: RamHold,
        reply: oneshot::Sender<Result<LeaseView, Fault>>,
    },
    Promote {
        models: Vec<ModelKey>,
        reply: oneshot::Sender<Result<MoveReport, Fault>>,
    },
    Demote {
        models: Vec<ModelKey>,
        by: String,
        reply: oneshot::Sender<Result<MoveReport, Fault>>,
    },
    Expect {
        source: String,
        wants: Vec<Want>,
        reply: oneshot::Sender<()>,
    },
    Unpin(LeaseId, oneshot::Sender<Result<LeaseView, Fault>>),
    Leases(oneshot::Sender<Vec<LeaseView>>),
    Evict {
        models: Vec<ModelKey>,
        by: String,
        reply: oneshot::Sender<Result<EvictReport, Fault>>,
    },
    Models {
        filter: ModelFilter,
        after: Option<ModelKey>,
        max: u32,
        reply: oneshot::Sender<ModelPage>,
    },
    Known(oneshot::Sender<Known>),
    Model(ModelKey, oneshot::Sender<Result<ModelView, Fault>>),
    Refresh(Option<OriginName>, oneshot::Sender<Result<(), Fault>>),
    Node(oneshot::Sender<NodeView>),
    Predictions(oneshot::Sender<PredictView>),
    Report(u64, oneshot::Sender<Report>),
    Explain(ModelKey, oneshot::Sender<Result<Explanation, Fault>>),
    Watch(Option<Seq>, oneshot::Sender<Watch>),
    Follow(Option<Position>, oneshot::Sender<Follow>),
    Spans(mpsc::Sender<SpanTree>, oneshot::Sender<()>),
    Import {
        path: PathBuf,
        dry_run: bool,
        reply: oneshot::Sender<Result<mpsc::Receiver<ImportedFile>, Fault>>,
    },
    Verify {
        models: Vec<ModelKey>,
        reply: oneshot::Sender<Result<mpsc::Receiver<Verified>, Fault>>,
    },
    Hint(crate::engine::hints::Hint),
    Shutdown(oneshot::Sender<()>),
}

/// What a verification found for one model.
#[derive(Debug, Clone)]
pub struct Verified {
    /// The model.
    pub model: ModelKey,
    /// Its size.
    pub bytes: u64,
    /// Pieces that do not match; a repair flight fetches them again. `Err` if it could not be read at all.
    pub pieces_bad: Result<u64, Fault>,
}

/// A watcher's view: what it missed, then what happens.
#[derive(Debug)]
pub struct Watch {
    /// What happened since the given number and is still remembered.
    pub past: Vec<Occurrence>,
    /// Whether something between the given number and `past` is forgotten: list everything again.
    pub gap: bool,
    /// What happens from here on. Lagging behind by more than `WATCH_MAX` is told as an error: list everything again.
    pub live: tokio::sync::broadcast::Receiver<Occurrence>,
}

/// The view of one who follows the node's state: everything or what it missed, then what happens.
#[derive(Debug)]
pub struct Follow {
    /// Everything as it is. `None` if `past` goes on exactly behind the place that was given.
    pub snapshot: Option<Box<StateView>>,
    /// What was told since that place.
    pub past: Vec<Told>,
    /// The place behind all this.
    pub at: Position,
    /// What is told from here on. Lagging behind by more than `WATCH_MAX` is told as an error: follow anew.
    pub live: tokio::sync::broadcast::Receiver<Told>,
}

/// Speaks to the engine. Cheap to clone.
#[derive(Debug, Clone)]
pub struct EngineHandle {
    commands: mpsc::Sender<Command>,
    outlook: watch::Receiver<Arc<Outlook>>,
}

impl EngineHandle {
    pub(crate) fn new(commands: mpsc::Sender<Command>, outlook: watch::Receiver<Arc<Outlook>>) -> Self {
        Self { commands, outlook }
    }

    /// How soon these models could be ready in a tier. Never waits for the engine; for RAM the kernel is asked first what it has of them.
    pub async fn estimate(&self, models: &[ModelKey], target: Tier) -> Estimate {
        let outlook = self.outlook();
        outlook.look(models, target).await;
        outlook.estimate(models, target)
    }

    /// The node as estimates see it, at most some tens of milliseconds old. Asks nobody and never waits for the engine.
    #[must_use]
    pub fn outlook(&self) -> Arc<Outlook> {
        self.outlook.borrow().clone()
    }

    pub(super) async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, Fault> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| Fault::ShuttingDown)?;
        answer.await.map_err(|_| Fault::ShuttingDown)
    }

    /// Makes models ready and tells as it goes: one plan, then progress, then exactly one end.
    ///
    /// Dropping the receiver stops nothing, unless the request says `cancel_on_drop` and nobody else wants the models.
    ///
    /// # Errors
    ///
    /// [`Fault::Invalid`], [`Fault::Busy`] and [`Fault::ShuttingDown`] come here; all else ends the stream.
    pub async fn ensure(&self, request: EnsureRequest) -> Result<mpsc::Receiver<EnsureUpdate>, Fault> {
        // What is told beside it, and compared with what comes, must know what a caller would have been told.
        self.outlook().look(&request.models, request.target).await;
        self.ask(|reply| Command::Ensure(request, reply)).await?
    }

    /// One flight, under way or ended not long ago.
    ///
    /// # Errors
    ///
    /// [`Fault::NotFound`] if it never was or is forgotten.
    pub async fn flight(&self, flight: FlightId) -> Result<FlightView, Fault> {
        self.ask(|reply| Command::Flight(flight, reply)).await?
    }

    /// All flights under way.
    ///
    /// # Errors
    ///
    /// [`Fault::ShuttingDown`].
    pub async fn flights(&self) -> Result<Vec<FlightView>, Fault> {
        self.ask(Command::Flights).await
    }

    /// Stops a flight for everyone who waits for it. Finished pieces are kept.
    ///
    /// # Errors
    ///
    /// [`Fault::NotFound`].
    pub async fn cancel_flight(&self, flight: FlightId, by: String) -> Result<(), Fault> {
        self.ask(|reply| Command::CancelFlight(flight, by, reply)).await?
    }

    /// Holds models against eviction until the lease ends. Models that are not stored yet are held once they are.
    ///
    /// # Errors
    ///
    /// [`Fault::Invalid`] for an empty list, an empty owner or a ttl of zero or above `lease_max`; [`Fault::Busy`];
    /// [`Fault::NotFound`]; [`Fault::NoMemory`] for a hard hold that cannot fit.
    pub async fn pin(
        &self,
        models: Vec<ModelKey>,
        owner: String,
        ttl: Duration,
        ram: RamHold,
    ) -> Result<LeaseView, Fault> {
        self.ask(|reply| Command::Pin { models, owner, ttl, ram, reply }).await?
    }

    /// Starts to hold models in RAM that are on the disk, in this order; does not wait.
    ///
    /// # Errors
    ///
    /// [`Fault::Invalid`] for an empty list.
    pub async fn promote(&self, models: Vec<ModelKey>) -> Result<MoveReport, Fault> {
        self.ask(|reply| Command::Promote { models, reply }).await?
    }

    /// Gives the RAM of models back; they stay on the disk. Held ones stay and are reported.
    ///
    /// # Errors
    ///
    /// [`Fault::Invalid`] for an empty list.
    pub async fn demote(&self, models: Vec<ModelKey>, by: String) -> Result<MoveReport, Fault> {
        self.ask(|reply| Command::Demote { models, by, reply }).await?
    }

    /// Tells what a source expects to use soon: its whole list, in place of its last one; an empty list ends it. What is missing of it is
    /// fetched in the order of its use, as far as there is room; nobody is told how that goes.
    ///
    /// # Errors
    ///
    /// [`Fault::ShuttingDown`].
    pub async fn expect(&self, source: String, wants: Vec<Want>) -> Result<(), Fault> {
        self.ask(|reply| Command::Expect { source, wants, reply }).await
    }

    /// Ends a lease.
    ///
    /// # Errors
    ///
    /// [`Fault::NotFound`].
    pub async fn unpin(&self, lease: LeaseId) -> Result<LeaseView, Fault> {
        self.ask(|reply| Command::Unpin(lease, reply)).await?
    }

    /// All leases.
    ///
    /// # Errors
    ///
    /// [`Fault::ShuttingDown`].
    pub async fn leases(&self) -> Result<Vec<LeaseView>, Fault> {
        self.ask(Command::Leases).await
    }

    /// Removes models from the disk. Held ones stay and are reported.
    ///
    /// # Errors
    ///
    /// [`Fault::Invalid`] for an empty list.
    pub async fn evict(&self, models: Vec<ModelKey>, by: String) -> Result<EvictReport, Fault> {
        self.ask(|reply| Command::Evict { models, by, reply }).await?
    }

    /// One page of models, in the order of their keys, starting behind `after`.
    ///
    /// # Errors
    ///
    /// [`Fault::ShuttingDown`].
    pub async fn models(&self, filter: ModelFilter, after: Option<ModelKey>, max: u32) -> Result<ModelPage, Fault> {
        self.ask(|reply| Command::Models { filter, after, max, reply }).await
    }

    /// All names that some origin or tier knows, as they are now: for those who look many up at once.
    ///
    /// # Errors
    ///
    /// [`Fault::ShuttingDown`].
    pub async fn known(&self) -> Result<Known, Fault> {
        self.ask(Command::Known).await
    }

    /// One model.
    ///
    /// # Errors
    ///
    /// [`Fault::NotFound`] if no origin and no tier knows it.
    pub async fn model(&self, model: ModelKey) -> Result<ModelView, Fault> {
        self.ask(|reply| Command::Model(model, reply)).await?
    }

    /// Lists origins again (all, or one) and returns when that is done.
    ///
    /// # Errors
    ///
    /// [`Fault::NotFound`] for an unknown origin, or the origin's own fault.
    pub async fn refresh(&self, origin: Option<OriginName>) -> Result<(), Fault> {
        self.ask(|reply| Command::Refresh(origin, reply)).await?
    }

    /// The node.
    ///
    /// # Errors
    ///
    /// [`Fault::ShuttingDown`].
    pub async fn node(&self) -> Result<NodeView, Fault> {
        self.ask(Command::Node).await
    }

    /// What is likely to be asked for next, and how such guesses have done on this node.
    ///
    /// # Errors
    ///
    /// [`Fault::ShuttingDown`].
    pub async fn predictions(&self) -> Result<PredictView, Fault> {
        self.ask(Command::Predictions).await
    }

    /// What the last hours saw, the present one included: 1 to [`crate::plan::report::HOURS_MAX`].
    ///
    /// # Errors
    ///
    /// [`Fault::ShuttingDown`].
    pub async fn report(&self, hours: u64) -> Result<Report, Fault> {
        self.ask(|reply| Command::Report(hours, reply)).await
    }

    /// Why a model is where it is: where it stands in each tier, and the last decisions about it since the daemon started.
    ///
    /// # Errors
    ///
    /// [`Fault::NotFound`] for a name that neither the node nor an origin has; [`Fault::ShuttingDown`].
    pub async fn explain(&self, model: ModelKey) -> Result<Explanation, Fault> {
        self.ask(|reply| Command::Explain(model, reply)).await?
    }

    /// What happened after `since` (all that is remembered if `None`), and what happens from now on.
    ///
    /// # Errors
    ///
    /// [`Fault::ShuttingDown`].
    pub async fn watch(&self, since: Option<Seq>) -> Result<Watch, Fault> {
        self.ask(|reply| Command::Watch(since, reply)).await
    }

    /// The node's state from here on: what was told behind `since`, or everything as it is if that is not given or not remembered.
    ///
    /// # Errors
    ///
    /// [`Fault::ShuttingDown`].
    pub async fn follow(&self, since: Option<Position>) -> Result<Follow, Fault> {
        self.ask(|reply| Command::Follow(since, reply)).await
    }

    /// Traces of ensures that end from here on go to `sink`, in place of an earlier one. What finds no place there is dropped and counted.
    ///
    /// # Errors
    ///
    /// [`Fault::ShuttingDown`].
    pub async fn spans_to(&self, sink: mpsc::Sender<SpanTree>) -> Result<(), Fault> {
        self.ask(|reply| Command::Spans(sink, reply)).await
    }

    /// Adopts a file, or every model file below a folder. One row for each file, as it goes.
    ///
    /// # Errors
    ///
    /// [`Fault::Invalid`] if the path cannot be read.
    pub async fn import(&self, path: PathBuf, dry_run: bool) -> Result<mpsc::Receiver<ImportedFile>, Fault> {
        self.ask(|reply| Command::Import { path, dry_run, reply }).await?
    }

    /// Reads stored models (all if the list is empty) and compares every piece with its digest. What does not match is
    /// withdrawn and fetched again, piece by piece.
    ///
    /// # Errors
    ///
    /// [`Fault::NotFound`] if a named model is not stored.
    pub async fn verify(&self, models: Vec<ModelKey>) -> Result<mpsc::Receiver<Verified>, Fault> {
        self.ask(|reply| Command::Verify { models, reply }).await?
    }

    /// Drains: stops new work, journals finished pieces, and returns when everything is on the disk.
    pub async fn shutdown(&self) {
        // An engine that is gone already has drained.
        let _ = self.ask(Command::Shutdown).await;
    }
}

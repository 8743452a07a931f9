//! What workers say, and what they are told: the door, and the work behind it. Files that workers name are looked at beside the
//! loop; a file system that does not answer costs the worker's report a moment, and the engine nothing.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::time::Duration;

use tokio::sync::{broadcast, oneshot};

use crate::engine::done::Done;
use crate::engine::event::Event;
use crate::engine::handle::{Command, EngineHandle};
use crate::engine::run::Engine;
use crate::engine::view::What;
use crate::fault::Fault;
use crate::ids::ModelKey;
use crate::metrics;
use crate::store::FoundFile;
use crate::vram::{Advice, Hello, Report, WorkerId, WorkerView};

/// Advice that a listener may leave unread before the oldest is dropped: each device's latest word is what counts.
const ADVICE_MAX: usize = 256;
/// Reports whose files are looked at at once. Beyond that, files that are not below the models folder are taken as foreign.
const LOOKS_MAX: usize = 4;
/// Longest wait for a file system to tell what a file is. After that the report counts without it.
const LOOK_WAIT: Duration = Duration::from_secs(2);

/// A worker's message, or a question about workers.
#[derive(Debug)]
pub(crate) enum Hint {
    Hello { worker: WorkerId, hello: Box<Hello>, reply: oneshot::Sender<Result<(), Fault>> },
    Report { worker: WorkerId, report: Box<Report>, reply: oneshot::Sender<Result<(), Fault>> },
    Opens { worker: WorkerId, model: ModelKey, reply: oneshot::Sender<()> },
    ProcessEnded(u32, oneshot::Sender<()>),
    Expected { address: String, models: Vec<ModelKey>, reply: oneshot::Sender<()> },
    Freed { worker: WorkerId, detail: String, reply: oneshot::Sender<()> },
    Absent(oneshot::Sender<Vec<ModelKey>>),
    Workers(oneshot::Sender<Vec<WorkerView>>),
    Advice(oneshot::Sender<AdviceWatch>),
}

/// A report whose files were looked at.
#[derive(Debug)]
pub(crate) struct Looked {
    worker: WorkerId,
    report: Box<Report>,
    found: HashMap<String, FoundFile>,
    reply: oneshot::Sender<Result<(), Fault>>,
}

/// What was advised last, and what will be.
#[derive(Debug)]
pub struct AdviceWatch {
    /// The last word for each device.
    pub now: Vec<Advice>,
    /// What is advised from here on. Lagging is told as an error: the words after it are the ones that count.
    pub live: broadcast::Receiver<Advice>,
}

/// What the loop holds for workers.
#[derive(Debug)]
pub(crate) struct Hints {
    advice: broadcast::Sender<Advice>,
    looking: std::sync::Arc<tokio::sync::Semaphore>,
}

impl Default for Hints {
    fn default() -> Self {
        let looking = std::sync::Arc::new(tokio::sync::Semaphore::new(LOOKS_MAX));
        Self { advice: broadcast::channel(ADVICE_MAX).0, looking }
    }
}

impl EngineHandle {
    /// A worker introduces itself, for the first time or again.
    ///
    /// # Errors
    ///
    /// [`Fault::Busy`], [`Fault::Invalid`], [`Fault::ShuttingDown`].
    pub async fn worker_hello(&self, worker: WorkerId, hello: Hello) -> Result<(), Fault> {
        let hello = Box::new(hello);
        self.ask(|reply| Command::Hint(Hint::Hello { worker, hello, reply })).await?
    }

    /// A worker tells what it has. The blobs behind its files are found here.
    ///
    /// # Errors
    ///
    /// [`Fault::NotFound`] for a worker that is unknown: it must introduce itself (again). [`Fault::Invalid`],
    /// [`Fault::ShuttingDown`].
    pub async fn worker_report(&self, worker: WorkerId, report: Report) -> Result<(), Fault> {
        let report = Box::new(report);
        self.ask(|reply| Command::Hint(Hint::Report { worker, report, reply })).await?
    }

    /// A worker is about to open a model's file: it stays on the disk until that is reported.
    ///
    /// # Errors
    ///
    /// [`Fault::ShuttingDown`].
    pub async fn worker_opens(&self, worker: WorkerId, model: ModelKey) -> Result<(), Fault> {
        self.ask(|reply| Command::Hint(Hint::Opens { worker, model, reply })).await
    }

    /// A process of this node ended.
    ///
    /// # Errors
    ///
    /// [`Fault::ShuttingDown`].
    pub async fn process_ended(&self, pid: u32) -> Result<(), Fault> {
        self.ask(|reply| Command::Hint(Hint::ProcessEnded(pid, reply))).await
    }

    /// Models that the server at an address is going to need, in order; replaces what was said before, none forgets it.
    ///
    /// # Errors
    ///
    /// [`Fault::ShuttingDown`].
    pub async fn expect_models(&self, address: String, mut models: Vec<ModelKey>) -> Result<(), Fault> {
        models.truncate(crate::vram::NEXT_MAX);
        self.ask(|reply| Command::Hint(Hint::Expected { address, models, reply })).await
    }

    /// Writes down that advice was carried out; `detail` says what went wrong, if something did.
    ///
    /// # Errors
    ///
    /// [`Fault::ShuttingDown`].
    pub async fn worker_freed(&self, worker: WorkerId, detail: String) -> Result<(), Fault> {
        self.ask(|reply| Command::Hint(Hint::Freed { worker, detail, reply })).await
    }

    /// Models that an origin has and this node has not, in the order of their keys; at most 100 000.
    ///
    /// # Errors
    ///
    /// [`Fault::ShuttingDown`].
    pub async fn absent(&self) -> Result<Vec<ModelKey>, Fault> {
        self.ask(|reply| Command::Hint(Hint::Absent(reply))).await
    }

    /// All workers.
    ///
    /// # Errors
    ///
    /// [`Fault::ShuttingDown`].
    pub async fn workers(&self) -> Result<Vec<WorkerView>, Fault> {
        self.ask(|reply| Command::Hint(Hint::Workers(reply))).await
    }

    /// What devices should do.
    ///
    /// # Errors
    ///
    /// [`Fault::ShuttingDown`].
    pub async fn advice(&self) -> Result<AdviceWatch, Fault> {
        self.ask(|reply| Command::Hint(Hint::Advice(reply))).await
    }
}

impl Engine {
    /// Answers a worker.
    pub(crate) fn hint(&mut self, hint: Hint) {
        let now = self.clock.now();
        match hint {
            Hint::Hello { worker, hello, reply } => {
                let result = self.state.worker_hello(&worker, *hello, now);
                let _ = reply.send(result.map(|effects| self.act(effects)));
            }
            Hint::Report { worker, report, reply } => self.look(worker, report, reply),
            Hint::Opens { worker, model, reply } => {
                self.apply(Event::Opens { worker, model });
                let _ = reply.send(());
            }
            Hint::ProcessEnded(pid, reply) => {
                self.apply(Event::ProcessEnded(pid));
                let _ = reply.send(());
            }
            Hint::Expected { address, models, reply } => {
                self.apply(Event::Expected { address, models });
                let _ = reply.send(());
            }
            Hint::Freed { worker, detail, reply } => {
                self.record(What::Freed { worker, detail });
                let _ = reply.send(());
            }
            Hint::Absent(reply) => {
                let _ = reply.send(self.state.absent());
            }
            Hint::Workers(reply) => {
                let _ = reply.send(self.state.workers(now));
            }
            Hint::Advice(reply) => {
                let live = self.hints.advice.subscribe();
                let _ = reply.send(AdviceWatch { now: self.state.advice(), live });
            }
        }
        self.stale = true;
    }

    /// Finds out which files of a report are not known by their paths, beside the loop.
    fn look(&mut self, worker: WorkerId, report: Box<Report>, reply: oneshot::Sender<Result<(), Fault>>) {
        let unknown: BTreeSet<String> =
            report.files().filter(|file| self.state.blob_of_file(file).is_none()).map(ToOwned::to_owned).collect();
        let mut looked = Looked { worker, report, found: HashMap::new(), reply };
        let permit = match self.hints.looking.clone().try_acquire_owned() {
            Ok(permit) if !unknown.is_empty() => permit,
            Ok(_) | Err(_) => return self.hinted(looked),
        };
        let (store, done, blobs) = (self.store.clone(), self.done.clone(), self.state.blob_sizes());
        let looking = tokio::task::spawn_blocking(move || {
            let look = |file: String| {
                let found = store.find_file(Path::new(&file), &blobs);
                (file, found)
            };
            let found: HashMap<String, FoundFile> = unknown.into_iter().map(look).collect();
            // Held as long as the file system takes, not as long as somebody waits for it.
            drop(permit);
            found
        });
        tokio::spawn(async move {
            match tokio::time::timeout(LOOK_WAIT, looking).await {
                Ok(Ok(found)) => looked.found = found,
                Ok(Err(panic)) => tracing::error!(%panic, "looking at a worker's files panicked"),
                Err(_) => {
                    tracing::warn!(worker = %looked.worker, "a worker's files cannot be looked at: their file system does not answer")
                }
            }
            // The loop outlives its reports, except when the whole process ends.
            let _ = done.send(Done::Hinted(looked)).await;
        });
    }

    /// Takes a report in whose files were looked at.
    pub(crate) fn hinted(&mut self, looked: Looked) {
        let Looked { worker, mut report, found, reply } = looked;
        let state = &self.state;
        report.resolve(|file| {
            state.blob_of_file(file).or_else(|| match found.get(file) {
                Some(FoundFile::Blob(blob)) => Some(*blob),
                // The worker sees a file that this process does not: another mount namespace, such as a container's.
                Some(FoundFile::Missing) => state.blob_of_alias(&worker, file),
                Some(FoundFile::Foreign) | None => None,
            })
        });
        if report.tells_of_use() {
            self.needed();
        }
        let result = self.state.worker_report(&worker, *report, self.clock.now(), self.clock.wall());
        let _ = reply.send(result.map(|effects| self.act(effects)));
        self.stale = true;
    }

    /// Tells who listens what a device should do.
    pub(crate) fn advise(&self, advice: Advice) {
        metrics::vram::advised();
        // Nobody listening is the normal case.
        let _ = self.hints.advice.send(advice);
    }
}

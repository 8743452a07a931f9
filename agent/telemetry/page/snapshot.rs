//! What the status page shows: the node, its GPUs and ComfyUI's queues, what is fetched, what is held, what left and why. Asks what
//! any client may ask, in the same words; lists are cut, and say so.

use std::collections::VecDeque;

use serde::Serialize;
use tierd_cache::clock::{Clock, Wall};
use tierd_cache::engine::handle::Watch;
use tierd_cache::engine::known::Known;
use tierd_cache::engine::view::{FlightView, LeaseView, ModelFilter, NodeView, Occurrence, OriginState, Tier, What};
use tierd_cache::fault::Fault;
use tierd_cache::ids::ModelKey;
use tierd_cache::vram::{DeviceReport, WorkerView};
use tokio::sync::broadcast::error::TryRecvError;

use super::live::Sources;
use crate::cli::events::words;
use crate::comfy::bridge::ServerView;
use crate::rpc::time::Timestamp;
use crate::rpc::{comfy, node, pb};

/// Models shown of each tier.
const MODELS_MAX: u32 = 200;
/// Flights and leases shown.
const ROWS_MAX: usize = 50;
/// ComfyUI servers shown, and prompts of each.
const SERVERS_MAX: usize = 16;
const PROMPTS_MAX: usize = 8;
/// Names shown of one flight or lease.
const NAMES_MAX: usize = 3;
/// Occurrences shown of each kind.
const HAPPENED_MAX: usize = 30;
/// Models and leases are listed again when something happened, and at every so many looks: last uses change silently.
const LISTS_EVERY: u32 = 20;

/// What the page draws.
#[derive(Debug, Serialize)]
struct Snapshot<'a> {
    node: pb::Node,
    started: Timestamp,
    flights: Vec<pb::Flight>,
    flights_total: usize,
    calibration: pb::Calibration,
    predictions: pb::GetPredictionsResponse,
    servers: Vec<pb::ComfyServer>,
    #[serde(flatten)]
    lists: &'a Lists,
    left: &'a VecDeque<Row>,
    happened: &'a VecDeque<Row>,
}

/// What is listed again only when something happened.
#[derive(Debug, Default, Serialize)]
struct Lists {
    /// Where the models of prompts are. Only where there are prompts.
    #[serde(skip)]
    known: Option<Known>,
    workers: Vec<Worker>,
    vram: Models,
    ram: Models,
    disk: Models,
    leases: Vec<Lease>,
    leases_total: usize,
}

/// Models of one tier, the first of them.
#[derive(Debug, Default, Serialize)]
struct Models {
    total: u64,
    models: Vec<Model>,
}

#[derive(Debug, Serialize)]
struct Model {
    model: String,
    bytes: u64,
    last_used: Option<Timestamp>,
    leases: usize,
}

#[derive(Debug, Serialize)]
struct Lease {
    lease: u64,
    owner: String,
    models: String,
    ram: String,
    expires: Timestamp,
}

/// One device of a process that loads models.
#[derive(Debug, Serialize)]
struct Worker {
    worker: String,
    device: String,
    models: usize,
    running: u32,
    waiting: u32,
}

/// Something that happened, in the words of `tierd events`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Row {
    seq: u64,
    at: Timestamp,
    text: String,
    bad: bool,
}

/// Looks at the engine, and remembers what changes seldom.
pub(super) struct Watcher {
    from: Sources,
    clock: Clock,
    watch: Option<Watch>,
    started: Timestamp,
    lists: Lists,
    /// Looks since the lists were made.
    lists_age: u32,
    left: VecDeque<Row>,
    happened: VecDeque<Row>,
    told: String,
}

impl Watcher {
    pub(super) fn new(from: Sources) -> Self {
        Self {
            from,
            clock: Clock::start(),
            watch: None,
            started: Wall(0).into(),
            lists: Lists::default(),
            lists_age: LISTS_EVERY,
            left: VecDeque::new(),
            happened: VecDeque::new(),
            told: String::new(),
        }
    }

    /// The node as it is now, with the time of the look; none if nothing changed since the last look.
    ///
    /// # Errors
    ///
    /// [`Fault::ShuttingDown`].
    pub(super) async fn look(&mut self) -> Result<Option<String>, Fault> {
        let asked_for = self.lists.known.is_none() && self.has_prompts();
        if self.catch_up().await? || asked_for || self.lists_age >= LISTS_EVERY {
            self.lists = self.list().await?;
            self.lists_age = 0;
        }
        self.lists_age += 1;
        let node = self.from.engine.node().await?;
        let now = self.clock.wall();
        if self.told.is_empty() {
            let up = u64::try_from(node.uptime.as_millis()).unwrap_or(u64::MAX);
            self.started = Wall(now.0.saturating_sub(up)).into();
        }
        let node = self.whole(&node).await;
        let flights = self.from.engine.flights().await?;
        let reliability = self.from.engine.outlook().estimate(&[], Tier::Nvme).reliability;
        let mut predictions = pb::GetPredictionsResponse::from(&self.from.engine.predictions().await?);
        for row in &mut predictions.predictions {
            // It would change with every look.
            row.within = None;
        }
        let snapshot = Snapshot {
            node,
            started: self.started,
            flights_total: flights.len(),
            flights: flights.iter().take(ROWS_MAX).map(flight).collect(),
            calibration: pb::Calibration {
                samples: reliability.samples,
                median_error: reliability.median_error,
                within_twice: reliability.within_twice,
            },
            predictions,
            servers: self.servers(),
            lists: &self.lists,
            left: &self.left,
            happened: &self.happened,
        };
        let json = serde_json::to_string(&snapshot).map_err(|error| Fault::Store { detail: error.to_string() })?;
        if json == self.told {
            return Ok(None);
        }
        let told = format!("{{\"at\":\"{}\",\"snapshot\":{json}}}", Timestamp::from(now));
        self.told = json;
        Ok(Some(told))
    }

    /// The node with its devices, without what changes with every look.
    async fn whole(&self, view: &NodeView) -> pb::Node {
        let mut node = pb::Node::from(view);
        // The page counts it from the start.
        node.uptime = None;
        if let Some(figures) = self.from.devices.figures().await {
            node::add_devices(&mut node, &figures.devices);
            node.driver_detail.clone_from(&figures.detail);
        }
        node
    }

    fn servers(&self) -> Vec<pb::ComfyServer> {
        let (seen, nothing) = (self.from.seen.servers(), Known::default());
        let known = self.lists.known.as_ref().unwrap_or(&nothing);
        let server = |(name, view): (&String, &ServerView)| comfy::server(name, view, known, PROMPTS_MAX);
        seen.iter().take(SERVERS_MAX).map(server).collect()
    }

    fn has_prompts(&self) -> bool {
        self.from.seen.servers().values().any(|view| !view.queue.prompts.is_empty())
    }

    /// Reads what happened since the last look. Returns whether something did.
    async fn catch_up(&mut self) -> Result<bool, Fault> {
        let Some(watch) = &mut self.watch else {
            let mut watch = self.from.engine.watch(None).await?;
            let past = std::mem::take(&mut watch.past);
            self.watch = Some(watch);
            (self.left, self.happened) = (VecDeque::new(), VecDeque::new());
            past.iter().for_each(|occurrence| self.saw(occurrence));
            return Ok(true);
        };
        let mut news = Vec::new();
        let mut lost = false;
        loop {
            match watch.live.try_recv() {
                Ok(occurrence) => news.push(occurrence),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Lagged(_)) => lost = true,
                Err(TryRecvError::Closed) => return Err(Fault::ShuttingDown),
            }
        }
        if lost {
            // Everything that is remembered is read again at the next look.
            self.watch = None;
        }
        news.iter().for_each(|occurrence| self.saw(occurrence));
        Ok(lost || !news.is_empty())
    }

    fn saw(&mut self, occurrence: &Occurrence) {
        let (list, bad) = match &occurrence.what {
            What::Evicted { .. } | What::Demoted { .. } => (&mut self.left, false),
            What::FlightFailed { .. } | What::Damaged { .. } => (&mut self.happened, true),
            What::Origin { state, .. } => (&mut self.happened, *state != OriginState::Up),
            _ => (&mut self.happened, false),
        };
        let message = pb::Occurrence::from(occurrence);
        let text = message.what.as_ref().map(words).unwrap_or_default();
        list.push_front(Row { seq: occurrence.seq.0, at: occurrence.at.into(), text, bad });
        list.truncate(HAPPENED_MAX);
    }

    async fn list(&self) -> Result<Lists, Fault> {
        let mut leases = self.from.engine.leases().await?;
        let leases_total = leases.len();
        leases.truncate(ROWS_MAX);
        let mut workers: Vec<Worker> = self.from.engine.workers().await?.iter().flat_map(devices).collect();
        workers.truncate(ROWS_MAX);
        let known = if self.has_prompts() { Some(self.from.engine.known().await?) } else { None };
        Ok(Lists {
            known,
            workers,
            vram: self.models(Tier::Vram).await?,
            ram: self.models(Tier::Ram).await?,
            disk: self.models(Tier::Nvme).await?,
            leases: leases.iter().map(lease).collect(),
            leases_total,
        })
    }

    async fn models(&self, tier: Tier) -> Result<Models, Fault> {
        let filter = ModelFilter { tier: Some(tier), ..ModelFilter::default() };
        let page = self.from.engine.models(filter, None, MODELS_MAX).await?;
        let models = page.models.into_iter().map(|model| Model {
            model: model.model.to_string(),
            bytes: model.bytes,
            last_used: model.last_used.map(Into::into),
            leases: model.leases.len(),
        });
        Ok(Models { total: page.total, models: models.collect() })
    }
}

fn flight(flight: &FlightView) -> pb::Flight {
    let mut row = pb::Flight::from(flight);
    row.models.truncate(NAMES_MAX);
    row
}

/// One row a device; a worker without one has a row all the same.
fn devices(worker: &WorkerView) -> Vec<Worker> {
    let name = match (worker.hello.address.as_str(), worker.hello.pid) {
        ("", pid) => format!("process {pid}"),
        (address, pid) => format!("{address}, process {pid}"),
    };
    let row = |device: String, models| Worker {
        worker: name.clone(),
        device,
        models,
        running: worker.running,
        waiting: worker.waiting,
    };
    if worker.devices.is_empty() {
        return vec![row("none reported".to_owned(), 0)];
    }
    let device = |device: &DeviceReport| row(format!("{} {}", device.index, device.name), device.models.len());
    worker.devices.iter().map(device).collect()
}

fn lease(lease: &LeaseView) -> Lease {
    Lease {
        lease: lease.lease.0,
        owner: lease.owner.clone(),
        models: names(&lease.models),
        ram: pb::RamHold::from(lease.ram).word(),
        expires: lease.expires.into(),
    }
}

/// The first names, and how many more there are.
fn names(models: &[ModelKey]) -> String {
    let shown: Vec<&str> = models.iter().take(NAMES_MAX).map(ModelKey::as_str).collect();
    match models.len().saturating_sub(NAMES_MAX) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_lease_is_shown_by_its_first_names_and_the_number_of_the_rest() {
        let models: Vec<ModelKey> = ["a", "b", "c", "d", "e"]
            .iter()
            .map(|name| ModelKey::parse(&format!("vae/{name}")).expect("a name"))
            .collect();
        assert_eq!(names(&models), "vae/a, vae/b, vae/c and 2 more");
        assert_eq!(names(&models[..1]), "vae/a");
    }
}

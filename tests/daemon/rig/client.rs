//! A gRPC client that knows the manners of the contract: one plan first, exactly one end last.

use std::path::Path;

use tierd::rpc::pb;
use tierd::rpc::pb::cache_service_client::CacheServiceClient;
use tierd::rpc::pb::comfy_service_client::ComfyServiceClient;
use tierd::rpc::pb::ensure_response::Update;
use tierd::rpc::pb::node_service_client::NodeServiceClient;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

/// Speaks to one daemon. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    /// The cache's service.
    pub(crate) cache: CacheServiceClient<Channel>,
    /// The node's service.
    pub(crate) node: NodeServiceClient<Channel>,
    /// What is known of ComfyUI servers.
    pub(crate) comfy: ComfyServiceClient<Channel>,
    /// The channel itself, for health and reflection.
    pub(crate) channel: Channel,
}

/// What an ensure said.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// The first message.
    pub(crate) plan: Option<pb::Plan>,
    /// All progress.
    pub(crate) progress: Vec<pb::Progress>,
    /// The good end.
    pub(crate) ready: Option<pb::Ready>,
    /// The bad end.
    pub(crate) failed: Option<pb::Failed>,
    /// How the call ended, if not with OK.
    pub(crate) status: Option<Status>,
}

impl Outcome {
    /// The good end.
    #[track_caller]
    pub(crate) fn ready(&self) -> &pb::Ready {
        self.ready.as_ref().unwrap_or_else(|| panic!("not ready: {:?} {:?}", self.status, self.failed))
    }

    /// The kind of fault and the status code of the bad end.
    #[track_caller]
    pub(crate) fn fault(&self) -> (pb::FaultKind, Code, String) {
        assert!(self.ready.is_none(), "it is ready, but should have failed");
        let code = self.status.as_ref().map_or(Code::Ok, Status::code);
        let fault = self.failed.as_ref().and_then(|failed| failed.fault.clone()).unwrap_or_default();
        (fault.kind(), code, fault.text)
    }
}

impl Client {
    /// Connects to a Unix socket.
    pub(crate) async fn connect(socket: &Path) -> Result<Self, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()))?;
        Ok(Self::over(endpoint.connect().await?))
    }

    /// Speaks over a channel that is there.
    pub(crate) fn over(channel: Channel) -> Self {
        let cache = CacheServiceClient::new(channel.clone()).max_decoding_message_size(64 << 20);
        Self {
            cache,
            node: NodeServiceClient::new(channel.clone()),
            comfy: ComfyServiceClient::new(channel.clone()),
            channel,
        }
    }

    /// What is being fetched.
    pub(crate) async fn flights(&self) -> Vec<pb::Flight> {
        let answer = self.cache.clone().list_flights(pb::ListFlightsRequest {}).await;
        answer.expect("it answers").into_inner().flights
    }

    /// A request for these models.
    pub(crate) fn request(models: &[&str]) -> pb::EnsureRequest {
        let models = models.iter().map(|&model| model.to_owned()).collect();
        let progress_interval = Some(Milliseconds(50).into());
        pb::EnsureRequest { models, progress_interval, client: "test".to_owned(), ..Default::default() }
    }

    /// Ensures models and waits for the end, whatever it is.
    pub(crate) async fn ensure(&self, models: &[&str]) -> Outcome {
        self.ensure_with(Self::request(models)).await
    }

    /// The same with a request of one's own.
    pub(crate) async fn ensure_with(&self, request: pb::EnsureRequest) -> Outcome {
        let mut outcome = Outcome::default();
        let mut stream = match self.cache.clone().ensure(request).await {
            Ok(answer) => answer.into_inner(),
            Err(status) => return Outcome { status: Some(status), ..outcome },
        };
        loop {
            let update = match stream.message().await {
                Ok(Some(message)) => message.update.expect("an update is always set"),
                Ok(None) => break,
                Err(status) => {
                    outcome.status = Some(status);
                    break;
                }
            };
            let ended = outcome.ready.is_some() || outcome.failed.is_some();
            assert!(!ended, "{update:?} came behind the end");
            match update {
                Update::Plan(plan) => assert!(outcome.plan.replace(plan).is_none(), "a second plan"),
                Update::Progress(progress) => {
                    assert!(outcome.plan.is_some(), "progress before the plan");
                    outcome.progress.push(progress);
                }
                Update::Ready(ready) => outcome.ready = Some(ready),
                Update::Failed(failed) => outcome.failed = Some(failed),
            }
        }
        assert_eq!(outcome.ready.is_some(), outcome.status.is_none(), "ready and OK go together: {outcome:?}");
        outcome
    }

    /// Ensures models, all of which must become ready.
    pub(crate) async fn ready(&self, models: &[&str]) -> pb::Ready {
        let outcome = self.ensure(models).await;
        outcome.ready().clone()
    }

    /// One model.
    pub(crate) async fn model(&self, model: &str) -> Result<pb::Model, Status> {
        let answer = self.cache.clone().get_model(pb::GetModelRequest { model: model.to_owned() }).await?;
        Ok(answer.into_inner().model.expect("always set"))
    }

    /// Whether a model is on the disk.
    pub(crate) async fn stored(&self, model: &str) -> bool {
        self.model(model).await.is_ok_and(|model| matches!(model.tier(), pb::Tier::Nvme | pb::Tier::Ram))
    }

    /// All that happened and is remembered.
    pub(crate) async fn events(&self) -> Vec<pb::Occurrence> {
        self.events_after("").await
    }

    /// What happened after a token and is remembered.
    pub(crate) async fn events_after(&self, token: &str) -> Vec<pb::Occurrence> {
        let request = pb::WatchRequest { resume_token: token.to_owned(), past_only: true, ..Default::default() };
        let mut stream = self.node.clone().watch(request).await.expect("a watch begins").into_inner();
        let mut events = Vec::new();
        while let Some(message) = stream.message().await.expect("a watch of the past ends well") {
            match message.update.expect("an update is always set") {
                pb::watch_response::Update::Occurrence(occurrence) => events.push(occurrence),
                pb::watch_response::Update::Resync(resync) => panic!("resync: {}", resync.reason),
                other => panic!("{other:?} without being asked for"),
            }
        }
        events
    }

    /// The node.
    pub(crate) async fn node(&self) -> pb::Node {
        let answer = self.node.clone().get_node(pb::GetNodeRequest {}).await.expect("the node answers");
        answer.into_inner().node.expect("always set")
    }

    /// One tier of the node.
    pub(crate) async fn tier(&self, tier: pb::Tier) -> pb::TierStatus {
        let found = self.node().await.tiers.into_iter().find(|row| row.tier() == tier);
        found.unwrap_or_else(|| panic!("the node has no row for {tier:?}"))
    }

    /// Ensures models in RAM and waits for the end, whatever it is.
    pub(crate) async fn ensure_in_ram(&self, models: &[&str]) -> Outcome {
        self.ensure_with(pb::EnsureRequest { target: pb::Tier::Ram.into(), ..Self::request(models) }).await
    }

    /// Ensures models in RAM, all of which must become ready.
    pub(crate) async fn ready_in_ram(&self, models: &[&str]) -> pb::Ready {
        let outcome = self.ensure_in_ram(models).await;
        outcome.ready().clone()
    }

    /// Demotes models.
    pub(crate) async fn demote(&self, models: &[&str]) -> Result<pb::DemoteModelsResponse, Status> {
        let models = models.iter().map(|&model| model.to_owned()).collect();
        let request = pb::DemoteModelsRequest { models, client: "test".to_owned() };
        Ok(self.cache.clone().demote_models(request).await?.into_inner())
    }

    /// Holds models in RAM for ten minutes.
    pub(crate) async fn pin_in_ram(&self, models: &[&str], ram: pb::RamHold) -> Result<pb::Lease, Status> {
        let models = models.iter().map(|&model| model.to_owned()).collect();
        let (owner, ttl) = ("test".to_owned(), Some(Milliseconds(600_000).into()));
        let request = pb::PinRequest { models, owner, ttl, ram: ram.into() };
        Ok(self.cache.clone().pin(request).await?.into_inner().lease.expect("always set"))
    }

    /// Pins models for a while.
    pub(crate) async fn pin(&self, models: &[&str], owner: &str, ttl: Milliseconds) -> Result<pb::Lease, Status> {
        let models = models.iter().map(|&model| model.to_owned()).collect();
        let request = pb::PinRequest { models, owner: owner.to_owned(), ttl: Some(ttl.into()), ..Default::default() };
        Ok(self.cache.clone().pin(request).await?.into_inner().lease.expect("always set"))
    }

    /// Evicts models.
    pub(crate) async fn evict(&self, models: &[&str]) -> Result<pb::EvictResponse, Status> {
        let models = models.iter().map(|&model| model.to_owned()).collect();
        Ok(self.cache.clone().evict(pb::EvictRequest { models, client: "test".to_owned() }).await?.into_inner())
    }
}

/// A short time, as the messages spell it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Milliseconds(pub(crate) u32);

impl From<Milliseconds> for tierd::rpc::time::Duration {
    fn from(time: Milliseconds) -> Self {
        Self { seconds: i64::from(time.0 / 1000), nanos: (time.0 % 1000 * 1_000_000) as i32 }
    }
}

//! The gRPC server: both listeners with the same services, health, reflection and the node pack's endpoints, from bind to drain.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tierd_cache::engine::EngineHandle;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport;
use tonic_health::server::HealthReporter;
use tower::Layer;

use crate::activity::ActivityMeter;
use crate::comfy::bridge::Seen;
use crate::comfy::pack_api::{self, PackApi, Watches};
use crate::config::{ComfyConfig, ListenConfig};
use crate::gpu::{Devices, GpuMeter};
use crate::rpc::FILE_DESCRIPTOR_SET;
use crate::rpc::access::Access;
use crate::rpc::cache::Cache;
use crate::rpc::comfy::Comfy;
use crate::rpc::gate::Gate;
use crate::rpc::hint::HintRpc;
use crate::rpc::limits::Limits;
use crate::rpc::listen::{self, RpcError, UnixSocket};
use crate::rpc::node::Node;
use crate::rpc::pb::cache_service_server::CacheServiceServer;
use crate::rpc::pb::comfy_service_server::ComfyServiceServer;
use crate::rpc::pb::hint_service_server::HintServiceServer;
use crate::rpc::pb::node_service_server::NodeServiceServer;
use crate::rpc::pb::placement_service_server::PlacementServiceServer;
use crate::rpc::pb::report_service_server::ReportServiceServer;
use crate::rpc::pb::workflow_service_server::WorkflowServiceServer;
use crate::rpc::placement::Placement;
use crate::rpc::report::Reports;
use crate::rpc::tls::Tls;
use crate::rpc::workflow::{Reader, Workflow};

/// How often a silent connection is asked whether it lives: dead launchers must not hold streams for long.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
/// How long it may take to answer.
const KEEPALIVE_WAIT: Duration = Duration::from_secs(20);
/// Most calls of one connection at once; all connections together are bound by `requests_max`.
const STREAMS_MAX: u32 = 256;
/// Room for the other fields beside a call's workflows; also lets one that is a little too large be refused with the numbers.
const ENVELOPE_BYTES_MAX: usize = 4 << 20;
/// Most bytes of one call's headers.
const HEADER_BYTES_MAX: u32 = 16 << 10;

/// What is served.
#[derive(Debug, Clone)]
pub struct Served {
    /// The engine.
    pub engine: EngineHandle,
    /// The GPUs, as their driver has them.
    pub gpus: GpuMeter,
    /// What ComfyUI's node pack may do.
    pub comfy: ComfyConfig,
    /// Where models appear.
    pub models: std::path::PathBuf,
    /// ComfyUI's servers, as the bridge has them.
    pub seen: Arc<Seen>,
    /// Whether the node is needed.
    pub activity: ActivityMeter,
}

/// The sockets, bound and not yet served.
#[derive(Debug)]
pub struct Server {
    unix: UnixSocket,
    tcp: Option<(TcpListener, Option<Arc<Tls>>)>,
    config: ListenConfig,
}

impl Server {
    /// Binds the Unix socket and, if configured, TCP. Must be called inside a tokio runtime.
    ///
    /// # Errors
    ///
    /// [`RpcError`]: a socket is in use or cannot be made, TCP would be open to strangers, or its TLS files do not work.
    pub fn bind(config: &ListenConfig) -> Result<Self, RpcError> {
        // First, since it tells best that another daemon runs.
        let unix = listen::unix(&config.unix)?;
        let tcp = match &config.tcp {
            None => None,
            Some(tcp) => {
                let tls = tcp.tls.as_ref().map(Tls::load).transpose()?.map(Arc::new);
                let tokens = config.callers.iter().any(|caller| caller.token.is_some());
                Some((listen::tcp(tcp, tokens)?, tls))
            }
        };
        Ok(Self { unix, tcp, config: config.clone() })
    }

    /// The TCP address as bound: with the port that was chosen if the configuration says 0.
    #[must_use]
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        self.tcp.as_ref().and_then(|(listener, _)| listener.local_addr().ok())
    }

    /// Serves until `stop`, then refuses new calls, ends the streams with `SHUTTING_DOWN` and returns when every call has
    /// ended. How long that may take is the caller's to bound.
    ///
    /// # Errors
    ///
    /// [`RpcError::Serve`] if a listener ends by itself; the other one is stopped then.
    pub async fn run(self, served: Served, stop: CancellationToken) -> Result<(), RpcError> {
        let slots = Arc::new(Semaphore::new(self.config.requests_max as usize));
        let limits = Arc::new(Limits::new(self.config.client_requests_max, self.config.client_rate_max));
        let access = Arc::new(Access::socket(&self.config));
        let gate = Gate { slots, slots_max: self.config.requests_max, limits, access, remote: false };
        // A listener that fails stops the other one, and nothing else.
        let stop = stop.child_token();
        let (health, routes) = services(&served, &stop, &self.config).await?;

        let UnixSocket { listener, file } = self.unix;
        let unix = limited().serve_with_incoming_shutdown(
            gate.layer(routes.clone()),
            listen::unix_connections(listener),
            stop.clone().cancelled_owned(),
        );
        let tcp = async {
            let Some((listener, tls)) = self.tcp else { return Ok(()) };
            let service = Gate { access: Arc::new(Access::tcp(&self.config)), remote: true, ..gate }.layer(routes);
            let (server, ended) = (limited(), stop.clone().cancelled_owned());
            let Some(tls) = tls else {
                return server.serve_with_incoming_shutdown(service, listen::tcp_connections(listener), ended).await;
            };
            let connections = listen::tls_connections(listener, Arc::clone(&tls));
            let serving = server.serve_with_incoming_shutdown(service, connections, ended);
            tokio::join!(serving, tls.follow(stop.clone())).0
        };
        let draining = async {
            stop.cancelled().await;
            health.set_service_status("", tonic_health::ServingStatus::NotServing).await;
            health.set_not_serving::<CacheServiceServer<Cache>>().await;
            health.set_not_serving::<NodeServiceServer<Node>>().await;
            health.set_not_serving::<PlacementServiceServer<Placement>>().await;
            health.set_not_serving::<ReportServiceServer<Reports>>().await;
            health.set_not_serving::<WorkflowServiceServer<Workflow>>().await;
            health.set_not_serving::<HintServiceServer<HintRpc>>().await;
        };
        let (unix, tcp, ()) = tokio::join!(ends(unix, &stop), ends(tcp, &stop), draining);
        drop(file);
        unix.and(tcp)
    }
}

/// Waits for a listener's end; one that fails stops the others.
async fn ends(
    served: impl Future<Output = Result<(), transport::Error>>,
    stop: &CancellationToken,
) -> Result<(), RpcError> {
    served.await.map_err(|error| {
        stop.cancel();
        RpcError::Serve { detail: chain(&error) }
    })
}

/// A tonic server with our limits.
fn limited() -> transport::Server {
    transport::Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_WAIT))
        .max_concurrent_streams(STREAMS_MAX)
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        // For the node pack, which speaks nothing newer.
        .accept_http1(true)
}

/// The services of every listener, and the switch of the health service.
async fn services(
    served: &Served,
    stop: &CancellationToken,
    config: &ListenConfig,
) -> Result<(HealthReporter, Routes), RpcError> {
    let handle = &served.engine;
    let cache = CacheServiceServer::new(Cache { engine: handle.clone(), stop: stop.clone() })
        .max_decoding_message_size(config.message_bytes_max);
    let (gpus, activity) = (served.gpus.clone(), served.activity.clone());
    let node = Node { engine: handle.clone(), gpus, activity, stop: stop.clone() };
    let node = NodeServiceServer::new(node).max_decoding_message_size(config.message_bytes_max);
    let hint = HintServiceServer::new(HintRpc { engine: handle.clone(), stop: stop.clone() })
        .max_decoding_message_size(config.message_bytes_max);
    let (bytes_max, reader) = (config.workflow_bytes_max, Reader::new(handle.clone(), config.workflow_bytes_max));
    let devices = Devices::new(handle.clone(), served.gpus.clone());
    let placement = Placement { engine: handle.clone(), reader: reader.clone(), devices };
    let placement = PlacementServiceServer::new(placement).max_decoding_message_size(bytes_max + ENVELOPE_BYTES_MAX);
    let report = ReportServiceServer::new(Reports { engine: handle.clone() })
        .max_decoding_message_size(config.message_bytes_max);
    let workflow = Workflow { engine: handle.clone(), stop: stop.clone(), reader };
    let workflow = WorkflowServiceServer::new(workflow).max_decoding_message_size(bytes_max + ENVELOPE_BYTES_MAX);
    let comfy = ComfyServiceServer::new(Comfy { engine: handle.clone(), seen: served.seen.clone() })
        .max_decoding_message_size(config.message_bytes_max);
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<CacheServiceServer<Cache>>().await;
    health.set_serving::<NodeServiceServer<Node>>().await;
    health.set_serving::<PlacementServiceServer<Placement>>().await;
    health.set_serving::<ReportServiceServer<Reports>>().await;
    health.set_serving::<WorkflowServiceServer<Workflow>>().await;
    health.set_serving::<HintServiceServer<HintRpc>>().await;

    let describe = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let failed = |error: tonic_reflection::server::Error| RpcError::Serve { detail: chain(&error) };
    // Both versions: older tools know only v1alpha.
    let v1 = describe().build_v1().map_err(failed)?;
    let v1alpha = describe().build_v1alpha().map_err(failed)?;
    let mut routes = Routes::new(cache)
        .add_service(node)
        .add_service(hint)
        .add_service(placement)
        .add_service(workflow)
        .add_service(report);
    routes = routes.add_service(comfy).add_service(health_service).add_service(v1).add_service(v1alpha);
    let pack = pack_api::router(PackApi {
        engine: handle.clone(),
        comfy: served.comfy.clone(),
        models: served.models.clone(),
        watches: Watches::default(),
        stop: stop.clone(),
    });
    let router = routes.axum_router_mut();
    *router = std::mem::take(router).merge(pack);
    Ok((health, routes.prepare()))
}

/// An error with its causes: tonic's own text is just `transport error`.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.ends_with(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    text
}

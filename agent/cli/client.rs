//! The way to a daemon: a Unix socket or HTTP(S), with the token, and what to do when nobody answers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Status};

use crate::cli::exit::{Exit, Failure};
use crate::config;
use crate::rpc::ANSWER_BYTES_MAX;
use crate::rpc::pb::cache_service_client::CacheServiceClient;
use crate::rpc::pb::comfy_service_client::ComfyServiceClient;
use crate::rpc::pb::node_service_client::NodeServiceClient;
use crate::rpc::pb::placement_service_client::PlacementServiceClient;
use crate::rpc::pb::report_service_client::ReportServiceClient;
use crate::rpc::pb::workflow_service_client::WorkflowServiceClient;
use tonic_health::pb::health_client::HealthClient;

/// Longest wait for a connection.
const CONNECT_WAIT: Duration = Duration::from_secs(5);

/// Where the system keeps the authorities that it trusts, by distribution.
const SYSTEM_AUTHORITIES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// How to reach the daemon.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Reach {
    /// The daemon: path of its Unix socket, or http(s)://host:port [default: where the configuration puts it, else where `tierd serve` would]
    #[arg(long, global = true, env = "TIERD_SOCKET", value_name = "PATH|URL", help_heading = "Daemon")]
    pub socket: Option<String>,
    /// File with the bearer token for http(s); the token itself may stand in TIERD_TOKEN
    #[arg(long, global = true, value_name = "FILE", help_heading = "Daemon")]
    pub token_file: Option<PathBuf>,
    /// PEM file with the authorities to trust for https [default: the system's]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Daemon")]
    pub ca: Option<PathBuf>,
    /// PEM file with a client certificate for https
    #[arg(long, global = true, value_name = "FILE", requires = "key", help_heading = "Daemon")]
    pub cert: Option<PathBuf>,
    /// PEM file with the certificate's key
    #[arg(long, global = true, value_name = "FILE", requires = "cert", help_heading = "Daemon")]
    pub key: Option<PathBuf>,
    /// Longest time for the whole command, such as 30s or 5min; a fetch goes on behind it
    #[arg(long, global = true, value_name = "TIME", value_parser = tierd_cache::units::parse_duration, help_heading = "Daemon")]
    pub timeout: Option<Duration>,
}

/// The channel with its token.
pub(crate) type Wire = InterceptedService<Channel, Bearer>;

/// Adds the token and the deadline to every call.
#[derive(Debug, Clone)]
pub(crate) struct Bearer {
    header: Option<MetadataValue<Ascii>>,
    timeout: Option<Duration>,
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(header) = &self.header {
            request.metadata_mut().insert("authorization", header.clone());
        }
        if let Some(timeout) = self.timeout {
            request.set_timeout(timeout);
        }
        Ok(request)
    }
}

/// The clients of one daemon.
#[derive(Debug, Clone)]
pub(crate) struct Daemon {
    /// `CacheService`.
    pub cache: CacheServiceClient<Wire>,
    /// `NodeService`.
    pub node: NodeServiceClient<Wire>,
    /// `PlacementService`.
    pub placement: PlacementServiceClient<Wire>,
    /// `ReportService`.
    pub report: ReportServiceClient<Wire>,
    /// `WorkflowService`.
    pub workflow: WorkflowServiceClient<Wire>,
    /// `grpc.health.v1`.
    pub health: HealthClient<Wire>,
}

/// Connects to the daemon.
///
/// # Errors
///
/// [`Exit::Unreachable`] with what to do; [`Exit::Usage`] for a bad address or an unreadable file.
pub(crate) async fn connect(reach: &Reach, env: &BTreeMap<String, String>) -> Result<Daemon, Failure> {
    let channel = channel(reach, env).await?;
    let bearer = Bearer { header: token(reach, env)?, timeout: reach.timeout };
    let wire = InterceptedService::new(channel, bearer);
    Ok(Daemon {
        cache: CacheServiceClient::new(wire.clone()).max_decoding_message_size(ANSWER_BYTES_MAX),
        node: NodeServiceClient::new(wire.clone()).max_decoding_message_size(ANSWER_BYTES_MAX),
        placement: PlacementServiceClient::new(wire.clone()).max_decoding_message_size(ANSWER_BYTES_MAX),
        report: ReportServiceClient::new(wire.clone()).max_decoding_message_size(ANSWER_BYTES_MAX),
        workflow: WorkflowServiceClient::new(wire.clone()).max_decoding_message_size(ANSWER_BYTES_MAX),
        health: HealthClient::new(wire),
    })
}

/// Connects to the daemon's `ComfyService`.
///
/// # Errors
///
/// As [`connect`].
pub(crate) async fn comfy(reach: &Reach, env: &BTreeMap<String, String>) -> Result<ComfyServiceClient<Wire>, Failure> {
    let bearer = Bearer { header: token(reach, env)?, timeout: reach.timeout };
    let wire = InterceptedService::new(channel(reach, env).await?, bearer);
    Ok(ComfyServiceClient::new(wire).max_decoding_message_size(ANSWER_BYTES_MAX))
}

/// Connects to the place that was given, or to the first socket of this user or this system where somebody answers.
async fn channel(reach: &Reach, env: &BTreeMap<String, String>) -> Result<Channel, Failure> {
    if let Some(place) = reach.socket.as_deref().filter(|given| !given.is_empty()) {
        if place.starts_with("http://") || place.starts_with("https://") {
            return remote(reach, place).await;
        }
        return local(socket_path(place)).await;
    }
    let mut first = None;
    for socket in config::client_sockets(env) {
        match local(&socket).await {
            Ok(channel) => return Ok(channel),
            // The likeliest place is the one to tell of.
            Err(failure) => first = first.or(Some(failure)),
        }
    }
    Err(first.unwrap_or_else(|| Failure::new(Exit::Usage, "name the daemon's socket with --socket")))
}

/// The path of a socket, which may be written as gRPC writes it: `unix:/run/tierd.sock`.
fn socket_path(place: &str) -> &Path {
    Path::new(place.strip_prefix("unix://").or_else(|| place.strip_prefix("unix:")).unwrap_or(place))
}

async fn local(path: &Path) -> Result<Channel, Failure> {
    let path = path.to_owned();
    let connector = {
        let path = path.clone();
        tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        })
    };
    // The address is never looked up: the connector knows the way. It only fills the `:authority` header.
    let endpoint = Endpoint::from_static("http://tierd.local").connect_timeout(CONNECT_WAIT);
    endpoint.connect_with_connector(connector).await.map_err(|error| unreachable(&path.display().to_string(), &error))
}

async fn remote(reach: &Reach, url: &str) -> Result<Channel, Failure> {
    let bad = |error: tonic::transport::Error| {
        Failure::new(Exit::Usage, format_args!("{url}: {}", crate::rpc::chain(&error)))
    };
    let mut endpoint = Endpoint::from_shared(url.to_owned()).map_err(bad)?.connect_timeout(CONNECT_WAIT);
    if url.starts_with("https://") {
        let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(&authorities(reach)?)?));
        if let (Some(cert), Some(key)) = (&reach.cert, &reach.key) {
            tls = tls.identity(Identity::from_pem(read(cert)?, read(key)?));
        }
        endpoint = endpoint.tls_config(tls).map_err(bad)?;
    }
    endpoint.connect().await.map_err(|error| unreachable(url, &error))
}

fn authorities(reach: &Reach) -> Result<PathBuf, Failure> {
    if let Some(ca) = &reach.ca {
        return Ok(ca.clone());
    }
    SYSTEM_AUTHORITIES.iter().map(PathBuf::from).find(|path| path.exists()).ok_or_else(|| {
        Failure::new(Exit::Usage, "this system has no bundle of trusted authorities: name one with --ca FILE")
    })
}

fn token(reach: &Reach, env: &BTreeMap<String, String>) -> Result<Option<MetadataValue<Ascii>>, Failure> {
    let token = match &reach.token_file {
        Some(file) => String::from_utf8(read(file)?).ok(),
        None => match env.get("TIERD_TOKEN") {
            Some(token) if !token.is_empty() => Some(token.clone()),
            _ => return Ok(None),
        },
    };
    // The value itself never goes into the message.
    let header = token.and_then(|token| format!("Bearer {}", token.trim()).parse::<MetadataValue<Ascii>>().ok());
    match header {
        Some(mut header) => {
            header.set_sensitive(true);
            Ok(Some(header))
        }
        None => Err(Failure::new(Exit::Usage, "the token holds characters that no HTTP header can carry")),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path)
        .map_err(|error| Failure::new(Exit::Usage, format_args!("cannot read {}: {error}", path.display())))
}

fn unreachable(place: &str, error: &tonic::transport::Error) -> Failure {
    let why = crate::rpc::chain(error);
    Failure::new(
        Exit::Unreachable,
        format_args!(
            "no daemon answers on {place} ({why})\n  \
             start one:          tierd serve        (or: systemctl start tierd)\n  \
             or do without one:  tierd ensure --standalone MODEL...\n  \
             or name its socket: --socket PATH|URL  (or TIERD_SOCKET)"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_absent_daemon_is_explained() {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("no.sock").to_string_lossy().into_owned();
        let reach = Reach { socket: Some(socket.clone()), ..Reach::default() };
        let failure = connect(&reach, &BTreeMap::new()).await.expect_err("nobody listens");
        assert_eq!(failure.exit, Exit::Unreachable);
        for hint in
            [socket.as_str(), "tierd serve", "systemctl start tierd", "--standalone", "TIERD_SOCKET", "No such file"]
        {
            assert!(failure.text.contains(hint), "{hint} is missing in:\n{}", failure.text);
        }
    }

    #[test]
    fn a_token_comes_from_its_file_or_the_environment_and_never_shows() {
        let env = BTreeMap::from([("TIERD_TOKEN".to_owned(), "hunter2".to_owned())]);
        let header = token(&Reach::default(), &env).expect("read").expect("there");
        assert_eq!(header.to_str().expect("ascii"), "Bearer hunter2");
        assert!(!format!("{header:?}").contains("hunter2"));
        let bad = BTreeMap::from([("TIERD_TOKEN".to_owned(), "hunter\n2".to_owned())]);
        let failure = token(&Reach::default(), &bad).expect_err("refused");
        assert!(!failure.text.contains("hunter"), "{}", failure.text);
        assert!(token(&Reach::default(), &BTreeMap::new()).expect("read").is_none());
    }

    #[test]
    fn a_place_may_be_written_as_grpc_writes_it() {
        for place in ["unix:///run/t.sock", "unix:/run/t.sock", "/run/t.sock"] {
            assert_eq!(socket_path(place), Path::new("/run/t.sock"), "{place}");
        }
    }
}

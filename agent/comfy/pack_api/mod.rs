//! `comfy/v1`: JSON over HTTP/1.1 beside gRPC on the same sockets, for a client that has nothing but Python's standard library.
//! The gate in front of the listener checks tokens and counts requests; here sizes, times and lists are bounded.

mod ensure;
mod message;
mod process;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::header::{CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tierd_cache::engine::EngineHandle;
use tierd_cache::fault::Fault;
use tierd_cache::metrics::vram::{Dropped, Hint, dropped, received};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::UdsConnectInfo;

use crate::config::ComfyConfig;
use message::{Absent, EnsureBody, HelloAnswer, HelloBody, ReportBody};
pub(crate) use process::Watches;

/// Where everything of it lies.
pub(crate) const PREFIX: &str = "/comfy/v1/";
/// Largest message: 32 devices with a hundred models of long paths each.
const BODY_BYTES_MAX: usize = 1 << 20;
/// Longest wait for a message's body: it comes from the same machine.
const BODY_WAIT: Duration = Duration::from_secs(10);
/// How often a worker should report: a tenth of the time after which it is forgotten by default.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// Longest wait for the engine, which answers in microseconds unless it hangs.
const ANSWER_WAIT: Duration = Duration::from_secs(10);

/// What the endpoints need.
#[derive(Debug)]
pub(crate) struct PackApi {
    pub(crate) engine: EngineHandle,
    pub(crate) comfy: ComfyConfig,
    pub(crate) models: PathBuf,
    pub(crate) watches: Watches,
    /// Ends streams when the daemon drains.
    pub(crate) stop: CancellationToken,
}

/// A refusal: a status and a sentence.
#[derive(Debug)]
struct Refusal(StatusCode, String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        refusal(self.0, &self.1)
    }
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        let (status, reason) = match fault {
            Fault::Invalid { .. } => (StatusCode::BAD_REQUEST, Some(Dropped::Invalid)),
            Fault::NotFound { .. } => (StatusCode::NOT_FOUND, Some(Dropped::Unknown)),
            Fault::Busy { .. } => (StatusCode::TOO_MANY_REQUESTS, Some(Dropped::Busy)),
            _ => (StatusCode::SERVICE_UNAVAILABLE, None),
        };
        reason.into_iter().for_each(dropped);
        Self(status, fault.to_string())
    }
}

/// An error as every endpoint says it.
pub(crate) fn refusal(status: StatusCode, text: &str) -> Response {
    let body = serde_json::json!({ "error": text }).to_string();
    (status, [(CONTENT_TYPE, "application/json")], body).into_response()
}

/// The endpoints.
pub(crate) fn router(api: PackApi) -> Router {
    let nothing = || async { refusal(StatusCode::NOT_FOUND, "try hello, report, ensure or absent below /comfy/v1/") };
    Router::new()
        .route("/comfy/v1/hello", post(hello))
        .route("/comfy/v1/report", post(report))
        .route("/comfy/v1/ensure", post(ensure_one))
        .route("/comfy/v1/absent", get(absent))
        .route("/comfy/v1/{*rest}", any(nothing))
        .method_not_allowed_fallback(|| async {
            refusal(StatusCode::METHOD_NOT_ALLOWED, "absent is asked for with GET, the others are told with POST")
        })
        .with_state(Arc::new(api))
}

async fn hello(State(api): State<Arc<PackApi>>, request: Request) -> Result<Response, Refusal> {
    received(Hint::Hello);
    // The kernel's word counts, not the worker's: a number from another pid namespace would name a stranger.
    let peer = request.extensions().get::<UdsConnectInfo>().and_then(|info| info.peer_cred);
    let watched = peer.and_then(|peer| peer.pid()).and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid > 0);
    let (worker, mut hello) = body::<HelloBody>(request).await?.checked()?;
    hello.watched = watched;
    answer(api.engine.worker_hello(worker, hello)).await?;
    if let Some(pid) = watched {
        api.watches.watch(pid, &api.engine);
    }
    Ok(json(&HelloAnswer {
        gate: api.comfy.gate,
        gate_timeout_s: api.comfy.gate_timeout.as_secs(),
        report_interval_ms: REPORT_INTERVAL.as_millis() as u64,
        models_path: api.models.to_string_lossy().into_owned(),
    }))
}

async fn report(State(api): State<Arc<PackApi>>, request: Request) -> Result<Response, Refusal> {
    received(Hint::Report);
    let (worker, report) = body::<ReportBody>(request).await?.checked()?;
    answer(api.engine.worker_report(worker, report)).await?;
    Ok(json(&serde_json::json!({})))
}

async fn ensure_one(State(api): State<Arc<PackApi>>, request: Request) -> Result<Response, Refusal> {
    received(Hint::Ensure);
    let (worker, model) = body::<EnsureBody>(request).await?.checked()?;
    let lines = ensure::lines(&api, worker, model).await;
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response())
}

async fn absent(State(api): State<Arc<PackApi>>, headers: HeaderMap) -> Result<Response, Refusal> {
    received(Hint::Absent);
    let models = answer(api.engine.absent()).await?;
    let mut hasher = blake3::Hasher::new();
    for model in &models {
        hasher.update(model.as_str().as_bytes());
        hasher.update(b"\n");
    }
    let tag = format!("\"{}\"", &hasher.finalize().to_hex()[..32]);
    let known = headers.get(IF_NONE_MATCH).and_then(|given| given.to_str().ok());
    let is_known =
        known.is_some_and(|known| known.split(',').any(|one| matches!(one.trim(), "*") || one.trim() == tag));
    let mut response = if is_known { StatusCode::NOT_MODIFIED.into_response() } else { json(&Absent { models }) };
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        response.headers_mut().insert(ETAG, tag);
    }
    Ok(response)
}

/// Reads a message, within its size and time.
async fn body<T: DeserializeOwned>(request: Request) -> Result<T, Refusal> {
    let bytes = match tokio::time::timeout(BODY_WAIT, axum::body::to_bytes(request.into_body(), BODY_BYTES_MAX)).await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(error)) if is_too_large(&error) => {
            dropped(Dropped::TooLarge);
            let text = format!("a message has at most {BODY_BYTES_MAX} bytes: send the rest with the next one");
            return Err(Refusal(StatusCode::PAYLOAD_TOO_LARGE, text));
        }
        Ok(Err(error)) => return Err(Refusal(StatusCode::BAD_REQUEST, format!("the message broke off: {error}"))),
        Err(_) => {
            let text = format!("the message did not come within {} s", BODY_WAIT.as_secs());
            return Err(Refusal(StatusCode::REQUEST_TIMEOUT, text));
        }
    };
    parse(&bytes)
}

fn is_too_large(error: &axum::Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(inner) = cause {
        if inner.is::<http_body_util::LengthLimitError>() {
            return true;
        }
        cause = inner.source();
    }
    false
}

fn parse<T: DeserializeOwned>(bytes: &Bytes) -> Result<T, Refusal> {
    serde_json::from_slice(bytes).map_err(|error| {
        dropped(Dropped::Invalid);
        Refusal(StatusCode::BAD_REQUEST, format!("the message is not understood: {error}"))
    })
}

/// Bytes as each of the messages, for the fuzzer.
pub(crate) fn hostile(bytes: &[u8]) {
    if let Ok(hello) = serde_json::from_slice::<HelloBody>(bytes) {
        drop(hello.checked());
    }
    if let Ok(report) = serde_json::from_slice::<ReportBody>(bytes) {
        drop(report.checked());
    }
    if let Ok(ensure) = serde_json::from_slice::<EnsureBody>(bytes) {
        drop(ensure.checked());
    }
}

fn json(value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => ([(CONTENT_TYPE, "application/json")], body).into_response(),
        Err(error) => refusal(StatusCode::SERVICE_UNAVAILABLE, &format!("the answer cannot be written: {error}")),
    }
}

async fn answer<T>(asked: impl Future<Output = Result<T, Fault>>) -> Result<T, Refusal> {
    match tokio::time::timeout(ANSWER_WAIT, asked).await {
        Ok(answer) => answer.map_err(Refusal::from),
        Err(_) => Err(Refusal(StatusCode::SERVICE_UNAVAILABLE, "the engine does not answer".to_owned())),
    }
}

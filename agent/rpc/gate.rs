//! The gate in front of every call of a listener: the bearer token, what TCP may not do, the bound on requests, and the
//! two metrics. It knows paths and headers, never messages.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{HeaderMap, Request, Response};
use http_body::{Frame, SizeHint};
use tierd_cache::config::Secret;
use tierd_cache::fault::Fault;
use tierd_cache::metrics;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Bytes};
use tonic::{Code, Status};
use tower::{Layer, Service};

use crate::comfy::pack_api;
use crate::rpc::fault;

/// The methods that metrics name; all others are `other`.
pub(crate) const METHODS: &[&str] = &[
    "Advise",
    "CancelFlight",
    "DemoteModels",
    "Ensure",
    "EnsureWorkflow",
    "EstimateReadiness",
    "Evict",
    "GetFlight",
    "GetModel",
    "GetNode",
    "GetPredictions",
    "GetReport",
    "Import",
    "ListComfyServers",
    "ListFlights",
    "ListLeases",
    "ListModels",
    "Pin",
    "Prefetch",
    "PromoteModels",
    "RankWorkflows",
    "Refresh",
    "Report",
    "ResolveWorkflow",
    "Unpin",
    "Verify",
    "Watch",
];

/// Names paths of the node, so it is for those who can open the Unix socket.
const LOCAL_ONLY: &str = "/tierd.v1.CacheService/Import";
/// Answers even when every slot is taken: a busy daemon is not a dead one.
const ALWAYS: &str = "/grpc.health.v1.Health/Check";

/// What all connections of one listener share.
#[derive(Debug, Clone)]
pub(crate) struct Gate {
    /// Slots for requests, shared by all listeners.
    pub(crate) slots: Arc<Semaphore>,
    /// How many slots there are.
    pub(crate) slots_max: u32,
    /// The token that every call must carry, if one is set.
    pub(crate) token: Option<Arc<Secret>>,
    /// Whether callers come over TCP.
    pub(crate) remote: bool,
}

impl Gate {
    /// Lets a call in, with the slot that it holds; health checks hold none.
    fn admit(&self, path: &str, headers: &HeaderMap) -> Result<Option<OwnedSemaphorePermit>, Box<Status>> {
        if let Some(token) = &self.token
            && !bears(headers, token)
        {
            return Err(Box::new(Status::unauthenticated("this listener wants `authorization: Bearer <token>`")));
        }
        if self.remote && path == LOCAL_ONLY {
            let text = "Import names paths of the node: use the Unix socket on the node itself";
            return Err(Box::new(Status::permission_denied(text)));
        }
        if path == ALWAYS {
            return Ok(None);
        }
        match Arc::clone(&self.slots).try_acquire_owned() {
            Ok(slot) => Ok(Some(slot)),
            Err(_) => {
                let busy = Fault::Busy { limit: "listen.requests_max", max: u64::from(self.slots_max) };
                Err(Box::new(fault::status(&busy)))
            }
        }
    }
}

/// Whether the headers carry the token. Takes as long for a wrong token as for a right one of the same length.
fn bears(headers: &HeaderMap, token: &Secret) -> bool {
    let Some(given) = headers.get(http::header::AUTHORIZATION).map(http::HeaderValue::as_bytes) else {
        return false;
    };
    let Some((scheme, given)) = given.split_at_checked("Bearer ".len()) else { return false };
    let wanted = token.expose().as_bytes();
    if !scheme.eq_ignore_ascii_case(b"Bearer ") || given.len() != wanted.len() {
        return false;
    }
    let mut differing = 0;
    for (left, right) in given.iter().zip(wanted) {
        // The barrier keeps the compiler from leaving the loop at the first difference.
        differing = std::hint::black_box(differing | (left ^ right));
    }
    differing == 0
}

/// The gate's refusals, for a client that knows HTTP alone.
fn http_status(code: Code) -> http::StatusCode {
    match code {
        Code::Unauthenticated => http::StatusCode::UNAUTHORIZED,
        Code::ResourceExhausted => http::StatusCode::SERVICE_UNAVAILABLE,
        _ => http::StatusCode::FORBIDDEN,
    }
}

fn label(path: &str) -> &'static str {
    let method = path.strip_prefix("/tierd.v1.").and_then(|rest| rest.split_once('/')).map(|(_, method)| method);
    METHODS.iter().copied().find(|known| Some(*known) == method).unwrap_or("other")
}

impl<S> Layer<S> for Gate {
    type Service = Gated<S>;

    fn layer(&self, inner: S) -> Gated<S> {
        Gated { inner, gate: self.clone() }
    }
}

/// A service behind the gate.
#[derive(Debug, Clone)]
pub(crate) struct Gated<S> {
    inner: S,
    gate: Gate,
}

impl<S> Service<Request<Body>> for Gated<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Send,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<Response<Body>, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let path = request.uri().path();
        if path.starts_with(pack_api::PREFIX) {
            let admitted = self.gate.admit(path, request.headers());
            let answer = admitted.map(|slot| (slot, self.inner.call(request)));
            return Box::pin(async move {
                match answer {
                    Ok((slot, answer)) => {
                        Ok(answer.await?.map(|inner| Body::new(Metered { inner, meter: None, _slot: slot })))
                    }
                    // In words that a client of JSON understands.
                    Err(status) => Ok(pack_api::refusal(http_status(status.code()), status.message()).map(Body::new)),
                }
            });
        }
        let mut meter = Meter { method: label(path), begun: Instant::now(), code: None };
        match self.gate.admit(path, request.headers()) {
            Ok(slot) => {
                let answer = self.inner.call(request);
                Box::pin(async move {
                    let response = answer.await?;
                    metrics::rpc_answered(meter.method, meter.begun.elapsed());
                    meter.read(response.headers());
                    Ok(response.map(|inner| Body::new(Metered { inner, meter: Some(meter), _slot: slot })))
                })
            }
            Err(status) => {
                meter.code = Some(status.code());
                Box::pin(async move { Ok(status.into_http()) })
            }
        }
    }
}

/// Counts a call when it is dropped, however it ended.
struct Meter {
    method: &'static str,
    begun: Instant,
    code: Option<Code>,
}

impl Meter {
    fn read(&mut self, headers: &HeaderMap) {
        if let Some(code) = headers.get("grpc-status") {
            self.code = Some(Code::from_bytes(code.as_bytes()));
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        // No status: the caller hung up, or its deadline passed, before there was one.
        let code = word(self.code.unwrap_or(Code::Cancelled));
        metrics::rpc_ended(self.method, code);
    }
}

/// A status code as metrics spell it.
fn word(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// An answer's body that keeps the slot and reads the status as it passes.
struct Metered {
    inner: Body,
    /// None for the node pack's endpoints, which count their messages themselves.
    meter: Option<Meter>,
    _slot: Option<OwnedSemaphorePermit>,
}

impl http_body::Body for Metered {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(trailers) = frame.trailers_ref()
            && let Some(meter) = &mut self.meter
        {
            meter.read(trailers);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(slots: u32, token: Option<&str>, remote: bool) -> Gate {
        let token = token.map(|token| Arc::new(Secret::new(token)));
        Gate { slots: Arc::new(Semaphore::new(slots as usize)), slots_max: slots, token, remote }
    }

    fn bearing(value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert("authorization", value.parse().expect("a header value"));
        headers
    }

    #[test]
    fn only_the_exact_token_passes() {
        let gate = gate(1, Some("s3cret"), true);
        for value in ["Bearer s3cret", "bearer s3cret"] {
            assert!(gate.admit("/x", &bearing(value)).is_ok(), "{value}");
        }
        for value in ["s3cret", "Bearer", "Bearer ", "Bearer s3creT", "Bearer s3cret ", "Basic s3cret", "Bearer s3cre"]
        {
            let status = gate.admit("/x", &bearing(value)).expect_err("refused");
            assert_eq!(status.code(), Code::Unauthenticated, "{value}");
            assert!(!status.message().contains("s3cret"));
        }
        assert!(gate.admit("/x", &HeaderMap::new()).is_err());
        assert!(gate.admit(ALWAYS, &HeaderMap::new()).is_err(), "a health check needs the token too");
    }

    #[test]
    fn a_full_house_refuses_at_once_but_answers_health_checks() {
        let gate = gate(1, None, false);
        let slot = gate.admit("/x", &HeaderMap::new()).expect("the first");
        let status = gate.admit("/x", &HeaderMap::new()).expect_err("the second");
        assert_eq!(fault::of_status(&status).limit, "listen.requests_max");
        assert!(gate.admit(ALWAYS, &HeaderMap::new()).is_ok());
        drop(slot);
        assert!(gate.admit("/x", &HeaderMap::new()).is_ok());
    }

    #[test]
    fn paths_of_the_node_are_not_read_over_tcp() {
        assert_eq!(
            gate(1, None, true).admit(LOCAL_ONLY, &HeaderMap::new()).expect_err("refused").code(),
            Code::PermissionDenied
        );
        assert!(gate(1, None, false).admit(LOCAL_ONLY, &HeaderMap::new()).is_ok());
    }

    #[test]
    fn labels_are_closed() {
        assert_eq!(label("/tierd.v1.CacheService/Ensure"), "Ensure");
        for path in ["/tierd.v1.CacheService/Nope", "/Ensure", "", "/tierd.v1.", "/grpc.health.v1.Health/Check"] {
            assert_eq!(label(path), "other", "{path}");
        }
    }
}

//! The gate in front of every call of a listener: who calls, which role each method needs, what TCP may not do, the limits of
//! one client and of all, and the two metrics. It knows paths and headers, never messages.

use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use tierd_cache::fault::Fault;
use tierd_cache::metrics;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tonic::body::Body;
use tonic::codegen::BoxFuture;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};
use tower::{Layer, Service};

use crate::comfy::pack_api;
use crate::config::Role;
use crate::rpc::access::{Access, Client};
use crate::rpc::fault;
use crate::rpc::limits::{Limits, Over, Ticket};
use crate::rpc::meter::{Meter, Metered};
use crate::rpc::pb;

/// Every method of ours with the role that it needs. Metrics name these; all others are `other`.
pub(crate) const METHODS: &[(&str, Role)] = &[
    ("Advise", Role::Read),
    ("CancelFlight", Role::Admin),
    ("DemoteModels", Role::Admin),
    ("Ensure", Role::Ensure),
    ("EnsureWorkflow", Role::Ensure),
    ("EstimateReadiness", Role::Read),
    ("Evict", Role::Admin),
    ("Explain", Role::Read),
    ("GetFlight", Role::Read),
    ("GetModel", Role::Read),
    ("GetNode", Role::Read),
    ("GetPredictions", Role::Read),
    ("GetReport", Role::Read),
    ("Import", Role::Admin),
    ("ListComfyServers", Role::Read),
    ("ListFlights", Role::Read),
    ("ListLeases", Role::Read),
    ("ListModels", Role::Read),
    ("Pin", Role::Ensure),
    ("Prefetch", Role::Ensure),
    ("PromoteModels", Role::Ensure),
    ("RankWorkflows", Role::Read),
    ("Refresh", Role::Ensure),
    ("Report", Role::Ensure),
    ("ResolveWorkflow", Role::Read),
    ("Unpin", Role::Ensure),
    ("Verify", Role::Admin),
    ("Watch", Role::Read),
];

/// Services of others that only tell: health, and the description of the API.
const TELLING: [&str; 2] = ["/grpc.health.v1.Health/", "/grpc.reflection."];
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
    /// Each client's part, shared by all listeners.
    pub(crate) limits: Arc<Limits>,
    /// Who may come in.
    pub(crate) access: Arc<Access>,
    /// Whether callers come over TCP.
    pub(crate) remote: bool,
}

/// What a call holds while it runs.
#[derive(Debug)]
pub(crate) struct Admitted {
    _slot: OwnedSemaphorePermit,
    _ticket: Ticket,
}

impl Gate {
    /// Lets a call in, with what it holds; health checks hold nothing. The call is told who makes it.
    fn admit<B>(&self, request: &mut Request<B>) -> Result<Option<Admitted>, Box<Status>> {
        let (client, role) = self.access.know(request.headers(), request.extensions())?;
        let path = request.uri().path();
        may(path, &client, role)?;
        if self.remote && path == LOCAL_ONLY {
            let text = "Import names paths of the node: use the Unix socket on the node itself";
            return Err(Box::new(Status::permission_denied(text)));
        }
        if self.remote && path.starts_with(pack_api::PREFIX) && request.headers().contains_key(http::header::ORIGIN) {
            let text = "this is for ComfyUI's node pack, not for pages in a browser";
            return Err(Box::new(Status::permission_denied(text)));
        }
        if path == ALWAYS {
            return Ok(None);
        }
        let ticket = self.limits.admit(&client, Instant::now()).map_err(|over| Box::new(over_limit(&client, over)))?;
        request.extensions_mut().insert(client);
        match Arc::clone(&self.slots).try_acquire_owned() {
            Ok(slot) => Ok(Some(Admitted { _slot: slot, _ticket: ticket })),
            Err(_) => {
                let busy = Fault::Busy { limit: "listen.requests_max", max: u64::from(self.slots_max) };
                Err(Box::new(fault::status(&busy)))
            }
        }
    }
}

/// The role that a path needs. What nobody thought of needs the highest.
fn needed(path: &str) -> Role {
    if path.starts_with(pack_api::PREFIX) {
        return Role::Ensure;
    }
    if TELLING.iter().any(|service| path.starts_with(service)) {
        return Role::Read;
    }
    method(path).map_or(Role::Admin, |(_, role)| role)
}

/// Refuses a call whose caller has too low a role, and says which one it needs.
fn may(path: &str, client: &Client, role: Role) -> Result<(), Box<Status>> {
    let needed = needed(path);
    if role >= needed {
        return Ok(());
    }
    let name = path.rsplit('/').next().unwrap_or_default();
    let (has, needs) = (role.word(), needed.word());
    tracing::debug!(%client, method = name, has, needs, "a call was denied");
    let text = format!("{name} needs the role {needs}, and {client} has {has}: the operator gives roles in [[caller]]");
    let metadata = [("method", name), ("role", has), ("role_needed", needs)];
    let metadata = metadata.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let details = ErrorDetails::with_error_info("ROLE_TOO_LOW", fault::DOMAIN, metadata);
    Err(Box::new(Status::with_error_details(Code::PermissionDenied, text, details)))
}

/// The refusal of a client that has its part already, with the time to wait.
fn over_limit(client: &Client, over: Over) -> Status {
    let (limit, max, wait) = match over {
        Over::Requests(max) => ("listen.client_requests_max", max, fault::BUSY_WAIT),
        Over::Rate(max, wait) => ("listen.client_rate_max", max, wait),
    };
    fault::status_of(&pb::Fault {
        kind: pb::FaultKind::Busy.into(),
        text: format!("{client} is at its limit {limit} ({max}): ask again later"),
        limit: limit.to_owned(),
        limit_max: Some(u64::from(max)),
        retry_after: Some(wait.into()),
        ..pb::Fault::default()
    })
}

/// The gate's refusals, for a client that knows HTTP alone.
fn http_status(code: Code) -> http::StatusCode {
    match code {
        Code::Unauthenticated => http::StatusCode::UNAUTHORIZED,
        Code::ResourceExhausted => http::StatusCode::SERVICE_UNAVAILABLE,
        _ => http::StatusCode::FORBIDDEN,
    }
}

/// The row of a path of ours.
fn method(path: &str) -> Option<(&'static str, Role)> {
    let (_, method) = path.strip_prefix("/tierd.v1.")?.split_once('/')?;
    METHODS.iter().copied().find(|(known, _)| *known == method)
}

fn label(path: &str) -> &'static str {
    method(path).map_or("other", |(name, _)| name)
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

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let path = request.uri().path();
        if path.starts_with(pack_api::PREFIX) {
            let admitted = self.gate.admit(&mut request);
            let answer = admitted.map(|held| (held, self.inner.call(request)));
            return Box::pin(async move {
                match answer {
                    Ok((held, answer)) => Ok(answer.await?.map(|inner| Body::new(Metered::new(inner, None, held)))),
                    // In words that a client of JSON understands.
                    Err(status) => Ok(pack_api::refusal(http_status(status.code()), status.message()).map(Body::new)),
                }
            });
        }
        let mut meter = Meter { method: label(path), begun: Instant::now(), code: None };
        match self.gate.admit(&mut request) {
            Ok(held) => {
                let answer = self.inner.call(request);
                Box::pin(async move {
                    let response = answer.await?;
                    metrics::rpc_answered(meter.method, meter.begun.elapsed());
                    meter.read(response.headers());
                    Ok(response.map(|inner| Body::new(Metered::new(inner, Some(meter), held))))
                })
            }
            Err(status) => {
                meter.code = Some(status.code());
                Box::pin(async move { Ok(status.into_http()) })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ListenConfig, TcpConfig};
    use crate::rpc::access::tests::{bearing, listen, tcp};
    use http::HeaderMap;
    use std::time::Duration;

    fn gate(slots: u32, token: Option<&str>, role: Role) -> Gate {
        let tcp = TcpConfig { open_role: Some(role), ..tcp(token) };
        let access = Arc::new(Access::tcp(&ListenConfig { tcp: Some(tcp), ..listen() }));
        let (slots_max, slots) = (slots, Arc::new(Semaphore::new(slots as usize)));
        Gate { slots, slots_max, limits: Arc::new(Limits::new(100, 100)), access, remote: true }
    }

    fn asked(gate: &Gate, path: &str, headers: HeaderMap) -> Result<Option<Admitted>, Box<Status>> {
        let mut request = Request::builder().uri(path).body(()).expect("a request");
        *request.headers_mut() = headers;
        gate.admit(&mut request)
    }

    fn plain(gate: &Gate, path: &str) -> Result<Option<Admitted>, Box<Status>> {
        asked(gate, path, HeaderMap::new())
    }

    #[test]
    fn a_call_without_the_token_is_unauthenticated_whatever_it_asks_for() {
        let gate = gate(1, Some("s3cret"), Role::Admin);
        for path in
            [ALWAYS, "/tierd.v1.CacheService/Evict", "/comfy/v1/hello", "/x", "/grpc.reflection.v1.ServerReflection/x"]
        {
            assert_eq!(plain(&gate, path).expect_err("refused").code(), Code::Unauthenticated, "{path}");
            assert!(asked(&gate, path, bearing("Bearer s3cret")).is_ok(), "{path}");
        }
    }

    #[test]
    fn each_method_wants_its_role_and_says_which() {
        for role in [Role::Read, Role::Ensure, Role::Admin] {
            let gate = gate(9, None, role);
            for (method, needed) in METHODS.iter().filter(|(method, _)| *method != "Import") {
                let answer = plain(&gate, &format!("/tierd.v1.SomeService/{method}"));
                assert_eq!(answer.is_ok(), role >= *needed, "{method} by {role:?}");
                if let Err(status) = answer {
                    assert_eq!(status.code(), Code::PermissionDenied);
                    assert!(status.message().contains(&format!("needs the role {}", needed.word())), "{status}");
                    assert_eq!(status.get_error_details().error_info().expect("told").reason, "ROLE_TOO_LOW");
                }
            }
        }
    }

    #[test]
    fn what_nobody_thought_of_is_for_admins() {
        let (reader, pack) = (gate(9, None, Role::Read), gate(9, None, Role::Ensure));
        for path in ["/tierd.v1.NewService/Do", "/", "", "/tierd.v1.CacheService/", "/other.v1.X/Y", "/comfy/v2/x"] {
            let path = if path.is_empty() { "*" } else { path };
            assert!(plain(&reader, path).is_err() && plain(&pack, path).is_err(), "{path:?}");
        }
        assert!(plain(&reader, ALWAYS).is_ok() && plain(&reader, "/grpc.reflection.v1.ServerReflection/X").is_ok());
        assert!(plain(&reader, "/comfy/v1/hello").is_err() && plain(&pack, "/comfy/v1/hello").is_ok());
    }

    #[test]
    fn a_full_house_refuses_at_once_but_answers_health_checks() {
        let gate = gate(1, None, Role::Admin);
        let slot = plain(&gate, "/x").expect("the first");
        let status = plain(&gate, "/x").expect_err("the second");
        assert_eq!(fault::of_status(&status).limit, "listen.requests_max");
        assert!(plain(&gate, ALWAYS).is_ok());
        drop(slot);
        assert!(plain(&gate, "/x").is_ok());
    }

    #[test]
    fn a_client_at_its_limit_is_told_how_long_to_wait() {
        let gate = Gate { limits: Arc::new(Limits::new(1, 2)), ..gate(9, None, Role::Admin) };
        let held = plain(&gate, "/x").expect("the first");
        let status = plain(&gate, "/x").expect_err("at once");
        assert_eq!(status.code(), Code::ResourceExhausted);
        let told = fault::of_status(&status);
        assert_eq!((told.limit.as_str(), told.limit_max), ("listen.client_requests_max", Some(1)));
        drop(held);
        assert!(plain(&gate, "/x").is_ok());
        let status = plain(&gate, "/x").expect_err("in a second");
        let wait = status.get_error_details().retry_info().expect("told").retry_delay.expect("a wait");
        assert!(wait > Duration::ZERO && wait <= Duration::from_millis(500), "{wait:?}");
        assert_eq!(fault::of_status(&status).limit, "listen.client_rate_max");
        assert!(plain(&gate, ALWAYS).is_ok(), "health checks are not counted");
    }

    #[test]
    fn paths_of_the_node_are_not_read_over_tcp_and_pages_in_a_browser_are_not_the_pack() {
        let gate = gate(9, None, Role::Admin);
        assert_eq!(plain(&gate, LOCAL_ONLY).expect_err("refused").code(), Code::PermissionDenied);
        assert!(plain(&Gate { remote: false, ..gate.clone() }, LOCAL_ONLY).is_ok());
        let mut headers = HeaderMap::new();
        headers.insert("origin", "https://evil.example".parse().expect("a value"));
        let status = asked(&gate, "/comfy/v1/ensure", headers).expect_err("refused");
        assert_eq!(status.code(), Code::PermissionDenied);
        assert!(plain(&gate, "/comfy/v1/ensure").is_ok());
    }

    #[test]
    fn labels_are_closed() {
        assert_eq!(label("/tierd.v1.CacheService/Ensure"), "Ensure");
        for path in ["/tierd.v1.CacheService/Nope", "/Ensure", "", "/tierd.v1.", "/grpc.health.v1.Health/Check"] {
            assert_eq!(label(path), "other", "{path}");
        }
    }
}

//! The wire: one HTTP/1.1 client per origin, with a limit on every wait, and the only place that sees a status before
//! anyone else. Never tries again: the engine does. Never logs an address: a redirect's may be signed.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::header::{AUTHORIZATION, HeaderValue, LOCATION, USER_AGENT};
use http::{Method, Request, Response, StatusCode, Uri};
use hyper::body::Incoming;
use hyper_util::client::legacy::{Client, Error as ClientError};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse, HttpResponseBody,
    HttpService,
};

use super::address::{redirect, same_server};
use super::answer;
use super::body::Body;
use super::dial::Dial;
use super::error::{OriginError, find, innermost};
use super::inner::{Inner, is_inner_host};
use super::pulse::Pulse;
use crate::clock::Clock;
use crate::config::{OriginConfig, OriginKind};

/// Largest read from a socket, and so the largest chunk. hyper starts at 8 KiB and grows a connection's buffer to this,
/// so idle and small answers stay small. Measured over loopback with 16 connections: 64 KiB costs up to half as much
/// CPU again, 1 MiB faults in more pages than it saves in calls.
const READ_BYTES_MAX: usize = 256 << 10;
/// How long an unused connection is kept. Below the 20 s after which common servers close theirs.
const IDLE: Duration = Duration::from_secs(15);
/// Redirects that one request follows.
const REDIRECTS_MAX: usize = 5;
/// Most of an error's or a redirect's body that is read, to learn the code and keep the connection.
const ERROR_BYTES_MAX: usize = 16 << 10;
/// Largest answer of the calls that `object_store` makes: tokens and multipart replies.
const REPLY_BYTES_MAX: usize = 8 << 20;
/// An upload gets this much time for its body on top of the request's limit: one second for so many bytes.
const UPLOAD_BYTES_PER_SECOND_MIN: u64 = 128 << 10;

/// One origin's HTTP client. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Wire {
    client: Client<Dial, HttpRequestBody>,
    /// For where redirects lead; the same as above if the origin itself is on this node.
    elsewhere: Client<Dial, HttpRequestBody>,
    connect_timeout: Duration,
    request_timeout: Duration,
    /// Longest silence inside a body.
    pub(crate) stall: Duration,
    pub(crate) pulse: Arc<Pulse>,
    clock: Clock,
}

impl Wire {
    /// A client with an origin's limits. Opens no connection.
    pub(crate) fn new(config: &OriginConfig, pulse: Arc<Pulse>) -> Self {
        let build = |guarded| {
            let dial = Dial::new(config.connect_timeout, Arc::clone(&pulse.open), guarded);
            Client::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(IDLE)
                .pool_max_idle_per_host(config.connections_max as usize)
                .http1_max_buf_size(READ_BYTES_MAX)
                .build(dial)
        };
        let client = build(false);
        let elsewhere = if is_on_this_node(config) { client.clone() } else { build(true) };
        Self {
            client,
            elsewhere,
            connect_timeout: config.connect_timeout,
            request_timeout: config.request_timeout,
            stall: config.stall_timeout,
            pulse,
            clock: Clock::start(),
        }
    }

    /// Sends one request and waits for the head of a good answer: a status of 2xx, or 416, whose headers the caller
    /// must judge. With `follow`, GET and HEAD follow redirects. `path` stands in errors.
    pub(crate) async fn call(
        &self,
        request: HttpRequest,
        path: &str,
        follow: bool,
    ) -> Result<Response<Incoming>, OriginError> {
        let result = self.hop(request, path, follow).await;
        match &result {
            Ok(_) => self.pulse.good(),
            Err(error) => self.pulse.bad(error),
        }
        result
    }

    async fn hop(&self, mut request: HttpRequest, path: &str, follow: bool) -> Result<Response<Incoming>, OriginError> {
        request
            .headers_mut()
            .insert(USER_AGENT, HeaderValue::from_static(concat!("tierd/", env!("CARGO_PKG_VERSION"))));
        let mut client = &self.client;
        for _ in 0..=REDIRECTS_MAX {
            let answer = self.send(client, request.clone(), path).await?;
            let status = answer.status();
            if status.is_success() || status == StatusCode::RANGE_NOT_SATISFIABLE {
                return Ok(answer);
            }
            let location = answer.headers().get(LOCATION).filter(|_| follow && status.is_redirection()).cloned();
            let is_read = *request.method() == Method::GET || *request.method() == Method::HEAD;
            let Some(location) = location.filter(|_| is_read) else {
                return Err(self.failure(answer, path).await);
            };
            // Read so that the connection can be used again; what it says does not matter.
            let _ = Body::collect(answer.into_body(), path, ERROR_BYTES_MAX, self.stall).await;
            let bad = |detail: &str| OriginError::BadAnswer { path: path.to_owned(), detail: detail.to_owned() };
            let to: Uri = redirect(request.uri(), location.as_bytes()).map_err(bad)?;
            if !same_server(request.uri(), &to) {
                request.headers_mut().remove(AUTHORIZATION);
                client = &self.elsewhere;
            }
            *request.uri_mut() = to;
        }
        Err(OriginError::BadAnswer { path: path.to_owned(), detail: format!("more than {REDIRECTS_MAX} redirects") })
    }

    /// One request, one answer, whatever its status.
    async fn send(
        &self,
        client: &Client<Dial, HttpRequestBody>,
        request: HttpRequest,
        path: &str,
    ) -> Result<Response<Incoming>, OriginError> {
        self.pulse.request();
        let upload = request.body().content_length() as u64 / UPLOAD_BYTES_PER_SECOND_MIN;
        let limit = self.request_timeout + Duration::from_secs(upload);
        match tokio::time::timeout(limit, client.request(request)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(self.unsent(&error, path)),
            Err(_) => {
                Err(OriginError::Timeout { path: path.to_owned(), what: "the first byte of the answer", after: limit })
            }
        }
    }

    /// What a request without an answer means.
    fn unsent(&self, error: &ClientError, path: &str) -> OriginError {
        let path = path.to_owned();
        if !error.is_connect() {
            return OriginError::Reset { path, detail: innermost(error) };
        }
        if let Some(inner) = find::<Inner>(error) {
            return OriginError::BadAnswer { path, detail: inner.to_string() };
        }
        let timed_out = find::<std::io::Error>(error).is_some_and(|io| io.kind() == std::io::ErrorKind::TimedOut);
        if timed_out {
            return OriginError::Timeout { path, what: "connecting", after: self.connect_timeout };
        }
        OriginError::Connect { path, detail: innermost(error) }
    }

    /// What an answer that is no success means. Reads the S3 error code from its body, if there is one.
    async fn failure(&self, answer: Response<Incoming>, path: &str) -> OriginError {
        let (head, body) = answer.into_parts();
        let body = Body::collect(body, path, ERROR_BYTES_MAX, self.stall).await.unwrap_or_default();
        let now_ms = i64::try_from(self.clock.wall().0).unwrap_or(i64::MAX);
        answer::failure(path, head.status, &head.headers, answer::s3_code(&body).as_deref(), now_ms)
    }

    /// The same for `object_store`, which wants the whole (small) answer and gets our errors inside its own.
    async fn reply(&self, request: HttpRequest) -> Result<HttpResponse, OriginError> {
        let path = request.uri().path().to_owned();
        let (head, body) = self.call(request, &path, false).await?.into_parts();
        let body = Body::collect(body, &path, REPLY_BYTES_MAX, self.stall).await?;
        Ok(Response::from_parts(head, HttpResponseBody::from(body)))
    }
}

/// Whether an origin's configured address is this node itself.
fn is_on_this_node(config: &OriginConfig) -> bool {
    let address = match &config.kind {
        OriginKind::S3 { endpoint, .. } => endpoint.as_deref(),
        OriginKind::Http { url, .. } => Some(url.as_str()),
        OriginKind::Folder { .. } => None,
    };
    let uri = address.and_then(|address| address.parse::<Uri>().ok());
    uri.as_ref().and_then(Uri::host).is_some_and(is_inner_host)
}

/// A request without a body.
pub(crate) fn request(method: Method, uri: Uri) -> HttpRequest {
    let mut request = Request::new(HttpRequestBody::empty());
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    request
}

impl HttpService for Wire {
    // What `#[async_trait]` makes of `async fn call`, so that we need not depend on it.
    fn call<'a, 'b>(
        &'a self,
        request: HttpRequest,
    ) -> Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(
            async move { self.reply(request).await.map_err(|error| HttpError::new(HttpErrorKind::Unknown, error)) },
        )
    }
}

impl HttpConnector for Wire {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

//! The HTTP listener for those that watch: `/metrics`, `/livez`, `/readyz` for machines, the status page at `/` for people.
//! Read-only, plain, bounded; one request a connection.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::header::{ACCEPT, CONNECTION, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{MissedTickBehavior, Sleep};
use tokio_util::sync::CancellationToken;

use super::health::Health;
use super::page::{self, Live};
use super::vram::VramMeter;
use crate::host::ProcessMeter;

/// Most connections at once; more wait in the kernel's queue. A scraper or two and a kubelet need three.
const CONNECTIONS_MAX: usize = 32;
/// Longest life of a connection: one request that is answered in milliseconds. Slower ones are cut.
const CONNECTION_TIME_MAX: Duration = Duration::from_secs(10);
/// How long to wait after a failed accept (no file descriptor left): trying at once would only burn CPU.
const ACCEPT_WAIT: Duration = Duration::from_millis(500);
/// How often histograms are folded into their buckets, so that they do not grow while nobody scrapes.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(30);

/// What the endpoints tell.
#[derive(Clone)]
pub struct HttpState {
    /// How the daemon is.
    pub health: Arc<Health>,
    /// What was measured.
    pub metrics: PrometheusHandle,
    /// Measures the process when somebody asks.
    pub process: Arc<ProcessMeter>,
    /// What the status page shows.
    pub page: Arc<Live>,
    /// Measures VRAM when somebody asks.
    pub vram: VramMeter,
}

/// Why the listener could not be opened or ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The address cannot be bound.
    #[error("listen.http: cannot listen on {address}: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The system's answer.
        source: io::Error,
    },
    /// The server ended by itself.
    #[error("the http listener failed: {0}")]
    Serve(io::Error),
}

/// The listener, bound and not yet served.
#[derive(Debug)]
pub struct HttpServer {
    listener: TcpListener,
}

impl HttpServer {
    /// Binds the address. Port 0 lets the system choose.
    ///
    /// # Errors
    ///
    /// [`HttpError::Bind`].
    pub async fn bind(address: SocketAddr) -> Result<Self, HttpError> {
        let listener = TcpListener::bind(address).await.map_err(|source| HttpError::Bind { address, source })?;
        Ok(Self { listener })
    }

    /// The address as bound.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.listener.local_addr().ok()
    }

    /// Serves until `stop`, then lets the requests that are under way end.
    ///
    /// # Errors
    ///
    /// [`HttpError::Serve`] if the listener ends by itself.
    pub async fn run(self, state: HttpState, stop: CancellationToken) -> Result<(), HttpError> {
        let upkeep = tokio::spawn(upkeep(state.metrics.clone()));
        let local = self.address().is_some_and(|address| address.ip().is_loopback());
        let page = page::routes(state.page.clone(), local);
        let router = Router::new()
            .route("/metrics", get(metrics))
            .route("/livez", get(livez))
            .route("/readyz", get(readyz))
            .fallback(|| async { (StatusCode::NOT_FOUND, "try /, /metrics, /livez or /readyz\n") })
            .with_state(state)
            .merge(page);
        // Each connection carries one request: then the limits on connections are limits on requests.
        let router = router.layer(axum::middleware::map_response(close));
        let bounded = Bounded { listener: self.listener, slots: Arc::new(Semaphore::new(CONNECTIONS_MAX)) };
        let served = axum::serve(bounded, router).with_graceful_shutdown(stop.cancelled_owned()).await;
        upkeep.abort();
        served.map_err(HttpError::Serve)
    }
}

/// Binds and serves until `stop`: [`HttpServer::bind`] and [`HttpServer::run`] in one.
///
/// # Errors
///
/// [`HttpError`].
pub async fn serve_http(address: SocketAddr, state: HttpState, stop: CancellationToken) -> Result<(), HttpError> {
    HttpServer::bind(address).await?.run(state, stop).await
}

async fn upkeep(metrics: PrometheusHandle) {
    let mut interval = tokio::time::interval(UPKEEP_INTERVAL);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        metrics.run_upkeep();
    }
}

async fn close(mut response: Response) -> Response {
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

async fn metrics(State(state): State<HttpState>) -> Response {
    state.process.measure();
    state.vram.measure().await;
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], state.metrics.render()).into_response()
}

async fn livez(State(state): State<HttpState>) -> Response {
    if state.health.is_alive().await {
        (StatusCode::OK, "alive\n").into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "the engine does not answer\n").into_response()
    }
}

async fn readyz(State(state): State<HttpState>, headers: HeaderMap) -> Response {
    let readiness = state.health.readiness().await;
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let wants_json = headers.get(ACCEPT).is_some_and(|accept| accept.as_bytes().starts_with(b"application/json"));
    if wants_json {
        let json = serde_json::to_string(&readiness).expect("five booleans are JSON");
        return (status, [(CONTENT_TYPE, "application/json")], json).into_response();
    }
    (status, readiness.to_string()).into_response()
}

/// A listener with at most so many connections, each of a bounded life.
struct Bounded {
    listener: TcpListener,
    slots: Arc<Semaphore>,
}

impl axum::serve::Listener for Bounded {
    type Io = BoundedStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (BoundedStream, SocketAddr) {
        let slot = self.slots.clone().acquire_owned().await.expect("nobody closes the semaphore");
        loop {
            match self.listener.accept().await {
                Ok((stream, address)) => {
                    let end = Box::pin(tokio::time::sleep(CONNECTION_TIME_MAX));
                    return (BoundedStream { stream, end, _slot: slot }, address);
                }
                Err(error) => {
                    tracing::warn!(%error, "http listener cannot accept");
                    tokio::time::sleep(ACCEPT_WAIT).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that ends when its time is over.
struct BoundedStream {
    stream: TcpStream,
    end: Pin<Box<Sleep>>,
    _slot: OwnedSemaphorePermit,
}

impl BoundedStream {
    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        match self.end.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::Error::new(io::ErrorKind::TimedOut, "the connection's time is over")),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for BoundedStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.check(cx)?;
        Pin::new(&mut this.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for BoundedStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.check(cx)?;
        Pin::new(&mut this.stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.check(cx)?;
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use metrics_exporter_prometheus::PrometheusBuilder;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::super::health::tests::Fake;
    use super::*;

    struct Running {
        address: SocketAddr,
        health: Arc<Health>,
        stop: CancellationToken,
        task: tokio::task::JoinHandle<Result<(), HttpError>>,
    }

    async fn running() -> Running {
        let server = HttpServer::bind(([127, 0, 0, 1], 0).into()).await.expect("a port");
        let address = server.address().expect("bound");
        let health = Arc::new(Health::default());
        let metrics = PrometheusBuilder::new().build_recorder().handle();
        let process = Arc::new(ProcessMeter::default());
        let (page, vram) = (Arc::default(), VramMeter::default());
        let state = HttpState { health: health.clone(), metrics, process, page, vram };
        let stop = CancellationToken::new();
        let task = tokio::spawn(server.run(state, stop.clone()));
        Running { address, health, stop, task }
    }

    async fn ask(address: SocketAddr, path: &str, accept: &str) -> String {
        let mut stream = TcpStream::connect(address).await.expect("connected");
        let request = format!("GET {path} HTTP/1.1\r\nHost: h\r\nAccept: {accept}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("the server closes after one answer");
        answer
    }

    #[tokio::test]
    async fn the_endpoints_say_how_the_daemon_is_and_close() {
        let server = running().await;
        let answer = ask(server.address, "/readyz", "*/*").await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("store: opening"), "{answer}");
        assert!(ask(server.address, "/livez", "*/*").await.starts_with("HTTP/1.1 200"));
        let engine = Fake::default();
        server.health.opened(Box::new(engine.clone()));
        server.health.listening();
        let answer = ask(server.address, "/readyz", "application/json").await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"ready\":true"), "{answer}");
        engine.hangs.store(true, Ordering::Release);
        assert!(ask(server.address, "/livez", "*/*").await.starts_with("HTTP/1.1 503"));
        let answer = ask(server.address, "/metrics", "*/*").await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("version=0.0.4"), "{answer}");
        assert!(ask(server.address, "/nothing", "*/*").await.starts_with("HTTP/1.1 404"));
        server.stop.cancel();
        server.task.await.expect("no panic").expect("a clean end");
    }

    #[tokio::test]
    async fn an_address_in_use_is_named_in_the_error() {
        let server = running().await;
        let error = HttpServer::bind(server.address).await.expect_err("in use").to_string();
        assert!(error.contains(&server.address.to_string()) && error.contains("listen.http"), "{error}");
        server.stop.cancel();
    }

    #[tokio::test]
    async fn silent_connections_are_cut_and_make_room_for_others() {
        let server = running().await;
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            silent.push(TcpStream::connect(server.address).await.expect("connected"));
        }
        // With every slot taken, this one waits until time has cut the others.
        let waiting = tokio::spawn(ask(server.address, "/livez", "*/*"));
        tokio::task::yield_now().await;
        tokio::time::pause();
        for mut stream in silent {
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
            assert!(rest.is_empty(), "an answer to no question");
        }
        assert!(waiting.await.expect("no panic").starts_with("HTTP/1.1 200"));
        server.stop.cancel();
    }
}

//! Opens connections for the wire: TCP with `TCP_NODELAY`, TLS where the address asks for it, both within one time
//! limit, and counts those that are open. Must never send a byte of HTTP, nor decide whether to try again.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower::Service;

use super::inner::{Inner, Lookup, is_inner, literal};

/// How long a silent connection stays before the system asks the peer whether it is still there.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// The TLS connector, made when the first `https` address is dialled: reading the system's roots costs a few
/// milliseconds and a megabyte, which a node whose origin is on its own network need not pay. The second one is guarded.
static TLS: [OnceLock<HttpsConnector<HttpConnector<Lookup>>>; 2] = [OnceLock::new(), OnceLock::new()];

/// Any error, as the HTTP client wants it.
type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Dials one address. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Dial {
    tcp: HttpConnector<Lookup>,
    guarded: bool,
    limit: Duration,
    open: Arc<AtomicU32>,
}

impl Dial {
    /// A dialler that gives up after `limit`, handshakes included, and keeps the number of its open connections in
    /// `open`. Guarded, it dials no address that is this node or its own link: for where redirects lead.
    pub(crate) fn new(limit: Duration, open: Arc<AtomicU32>, guarded: bool) -> Self {
        Self { tcp: tcp(guarded), guarded, limit, open }
    }
}

/// The TCP connector that both kinds of address use.
fn tcp(guarded: bool) -> HttpConnector<Lookup> {
    let mut tcp = HttpConnector::new_with_resolver(Lookup { guarded });
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(KEEPALIVE));
    tcp
}

/// The TLS connector: the system's roots, or Mozilla's where the system has none (a bare container).
fn tls(guarded: bool) -> HttpsConnector<HttpConnector<Lookup>> {
    let ring = rustls::crypto::ring::default_provider;
    let builder = match HttpsConnectorBuilder::new().with_provider_and_native_roots(ring()) {
        Ok(builder) => builder,
        Err(error) => {
            tracing::info!(%error, "no root certificates on this system, taking the built-in ones");
            HttpsConnectorBuilder::new()
                .with_provider_and_webpki_roots(ring())
                .expect("ring speaks the default TLS versions")
        }
    };
    builder.https_only().enable_http1().wrap_connector(tcp(guarded))
}

impl Service<Uri> for Dial {
    type Response = Counted;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Counted, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let Self { mut tcp, guarded, limit, open } = self.clone();
        let dial = async move {
            // An address that is written as one is never looked up.
            if let Some(address) = uri.host().and_then(literal).filter(|address| guarded && is_inner(*address)) {
                return Err(BoxError::from(Inner(address)));
            }
            if uri.scheme() != Some(&http::uri::Scheme::HTTPS) {
                return Ok::<_, BoxError>(MaybeHttpsStream::Http(tcp.call(uri).await?));
            }
            // The roots are files: not on a thread that others wait for.
            let mut tls =
                tokio::task::spawn_blocking(move || TLS[usize::from(guarded)].get_or_init(|| tls(guarded)).clone())
                    .await?;
            tls.call(uri).await
        };
        Box::pin(async move {
            let stream = tokio::time::timeout(limit, dial)
                .await
                .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "connecting took too long"))??;
            open.fetch_add(1, Ordering::Relaxed);
            Ok(Counted { stream, open })
        })
    }
}

/// An open connection. Counts itself until it is dropped.
#[derive(Debug)]
pub(crate) struct Counted {
    stream: MaybeHttpsStream<TokioIo<TcpStream>>,
    open: Arc<AtomicU32>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Connection for Counted {
    fn connected(&self) -> Connected {
        self.stream.connected()
    }
}

impl Read for Counted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl Write for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
}

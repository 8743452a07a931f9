//! The sockets: a Unix socket that replaces a dead daemon's and respects a living one's, and TCP that is never open to
//! strangers. Binding happens before anything is served, so that a mistake ends the start.

use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io};

use futures_util::Stream;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio_rustls::server::TlsStream;

use crate::config::TcpConfig;
use crate::rpc::connection::{Connection, Place, Places, notice_a_lost_peer};
use crate::rpc::tls::Tls;

/// Most connections of one listener at once; more wait in the kernel's queue. As many as there may be
/// requests by default.
const CONNECTIONS_MAX: usize = 1024;
/// Most connections of one address, so that no stranger holds them all. What is beyond is closed at once.
const ADDRESS_CONNECTIONS_MAX: u32 = 256;
/// Pause after a failed accept, such as when the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Longest TLS handshake: a stranger must not hold a slot by saying nothing.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// Mode of the Unix socket: the daemon's user and its group.
const SOCKET_MODE: u32 = 0o660;

/// Mode of the folders that are made for it.
const FOLDER_MODE: u32 = 0o750;

/// Why the server cannot start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum RpcError {
    /// A daemon answers on the socket.
    #[error("{} is in use: another tierd listens there; stop it, or set [listen] unix to another path", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something that is no socket is in the way.
    #[error("{} exists and is not a socket: remove it, or set [listen] unix to another path", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The Unix socket cannot be made.
    #[error("cannot listen on {}: {source}", path.display())]
    Unix {
        /// The socket.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The TCP address cannot be bound.
    #[error("cannot listen on {address}: {source}")]
    Tcp {
        /// The address.
        address: SocketAddr,
        /// The system's answer.
        source: io::Error,
    },
    /// TCP would be open to strangers.
    #[error(
        "refusing to listen on {address}: an address beyond loopback needs [listen.tcp.tls] and either client_ca or a token"
    )]
    Exposed {
        /// The address.
        address: SocketAddr,
    },
    /// A TLS file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    TlsFile {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The TLS files do not work.
    #[error("the certificate and key of [listen.tcp.tls] do not work: {detail}")]
    Tls {
        /// What the TLS library says.
        detail: String,
    },
    /// A listener ended by itself.
    #[error("the gRPC server failed: {detail}")]
    Serve {
        /// What tonic says.
        detail: String,
    },
}

/// The Unix socket; its file goes when this is dropped.
#[derive(Debug)]
pub(crate) struct UnixSocket {
    pub(crate) listener: UnixListener,
    pub(crate) file: SocketFile,
}

/// The file of a Unix socket, removed on drop unless somebody else has replaced it.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    identity: (u64, u64, i64, i64),
}

/// What tells one file from the next under the same name: inode numbers are used again, so the time of change is part of it.
fn identity(found: &fs::Metadata) -> (u64, u64, i64, i64) {
    (found.dev(), found.ino(), found.ctime(), found.ctime_nsec())
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|found| identity(&found) == self.identity);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "the socket file stays behind");
        }
    }
}

/// Binds the Unix socket, mode 0660, making its folder if need be.
///
/// # Errors
///
/// [`RpcError::InUse`] if a daemon answers there, [`RpcError::NotASocket`], [`RpcError::Unix`].
pub(crate) fn unix(path: &Path) -> Result<UnixSocket, RpcError> {
    let failed = |source| RpcError::Unix { path: path.to_owned(), source };
    if let Some(folder) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(folder).map_err(failed)?;
    }
    clear(path)?;
    let listener = UnixListener::bind(path).map_err(failed)?;
    fs::set_permissions(path, fs::Permissions::from_mode(SOCKET_MODE)).map_err(failed)?;
    let found = fs::symlink_metadata(path).map_err(failed)?;
    Ok(UnixSocket { listener, file: SocketFile { path: path.to_owned(), identity: identity(&found) } })
}

/// Removes the socket of a dead daemon: one that refuses connections.
fn clear(path: &Path) -> Result<(), RpcError> {
    let failed = |source| RpcError::Unix { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(found) if !found.file_type().is_socket() => return Err(RpcError::NotASocket { path: path.to_owned() }),
        Ok(_) => {}
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(RpcError::InUse { path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            tracing::info!(path = %path.display(), "removing the socket of a daemon that is gone");
            fs::remove_file(path).map_err(failed)
        }
        Err(error) => Err(failed(error)),
    }
}

/// Binds TCP. `tokens` says whether any caller has one.
///
/// # Errors
///
/// [`RpcError::Exposed`] if strangers could reach it, [`RpcError::Tcp`].
pub(crate) fn tcp(config: &TcpConfig, tokens: bool) -> Result<TcpListener, RpcError> {
    let known = tokens || config.token.is_some() || config.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
    if !config.address.ip().is_loopback() && (config.tls.is_none() || !known) {
        return Err(RpcError::Exposed { address: config.address });
    }
    let failed = |source| RpcError::Tcp { address: config.address, source };
    let listener = std::net::TcpListener::bind(config.address).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    TcpListener::from_std(listener).map_err(failed)
}

/// The connections of a Unix socket. Never ends and never fails: tonic would stop serving.
pub(crate) fn unix_connections(
    listener: UnixListener,
) -> impl Stream<Item = Result<Connection<UnixStream>, io::Error>> + Send + 'static {
    let places = Places::new(CONNECTIONS_MAX, ADDRESS_CONNECTIONS_MAX);
    futures_util::stream::unfold((listener, places), |(listener, places)| async {
        let place = places.take().await;
        loop {
            match listener.accept().await {
                Ok((stream, _)) => return Some((Ok(Connection::new(stream, place)), (listener, places))),
                Err(error) => pause(&error).await,
            }
        }
    })
}

/// The connections of a TCP socket. Never ends and never fails: tonic would stop serving.
pub(crate) fn tcp_connections(
    listener: TcpListener,
) -> impl Stream<Item = Result<Connection<TcpStream>, io::Error>> + Send + 'static {
    let places = Places::new(CONNECTIONS_MAX, ADDRESS_CONNECTIONS_MAX);
    futures_util::stream::unfold((listener, places), |(listener, places)| async {
        let (stream, place) = accept(&listener, &places).await;
        Some((Ok(Connection::new(stream, place)), (listener, places)))
    })
}

/// The same with TLS: connections come when their handshake is done, in no order. Those that fail are passed over.
pub(crate) fn tls_connections(
    listener: TcpListener,
    tls: Arc<Tls>,
) -> impl Stream<Item = Result<Connection<TlsStream<TcpStream>>, io::Error>> + Send + 'static {
    let places = Places::new(CONNECTIONS_MAX, ADDRESS_CONNECTIONS_MAX);
    let walk = (listener, places, tls, JoinSet::new());
    futures_util::stream::unfold(walk, |(listener, places, tls, mut handshakes)| async {
        loop {
            tokio::select! {
                (stream, place) = accept(&listener, &places) => drop(handshakes.spawn(handshake(stream, place, tls.clone()))),
                Some(done) = handshakes.join_next() => {
                    if let Ok(Some(connection)) = done {
                        return Some((Ok(connection), (listener, places, tls, handshakes)));
                    }
                }
            }
        }
    })
}

/// The next connection for which there is a place. May be dropped at any time.
async fn accept(listener: &TcpListener, places: &Places) -> (TcpStream, Place) {
    loop {
        let place = places.take().await;
        match listener.accept().await {
            Ok((stream, peer)) => {
                let Some(place) = place.of(peer.ip().to_canonical()) else {
                    tracing::debug!(%peer, max = ADDRESS_CONNECTIONS_MAX, "too many connections of one address, one more closed");
                    continue;
                };
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "nodelay is refused: answers may be late");
                }
                notice_a_lost_peer(&stream);
                return (stream, place);
            }
            Err(error) => pause(&error).await,
        }
    }
}

async fn handshake(stream: TcpStream, place: Place, tls: Arc<Tls>) -> Option<Connection<TlsStream<TcpStream>>> {
    let why = match tokio::time::timeout(HANDSHAKE_MAX, tls.acceptor().accept(stream)).await {
        Ok(Ok(stream)) => return Some(Connection::new(stream, place)),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("not done within {} s", HANDSHAKE_MAX.as_secs()),
    };
    tracing::debug!(why, "a TLS handshake failed");
    None
}

async fn pause(error: &io::Error) {
    tracing::warn!(%error, "a connection could not be accepted");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_socket_of_a_dead_daemon_is_replaced_and_a_living_one_is_left_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("run/tierd.sock");
        let first = unix(&path).expect("binds and makes its folder");
        let mode = fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, SOCKET_MODE);
        let made = fs::metadata(folder.path().join("run")).expect("there").permissions().mode();
        assert_eq!(made & 0o007, 0, "{made:o}");
        assert!(matches!(unix(&path), Err(RpcError::InUse { .. })));

        // A killed daemon leaves its file and no listener.
        let UnixSocket { listener, file } = first;
        drop(listener);
        let second = unix(&path).expect("the stale file is replaced");
        drop(file);
        assert!(path.exists(), "the first one's guard removed the second one's socket");
        drop(second);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_never_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("precious");
        fs::write(&path, "data").expect("writes");
        assert!(matches!(unix(&path), Err(RpcError::NotASocket { .. })));
        assert_eq!(fs::read(&path).expect("still there"), b"data");
    }

    #[tokio::test]
    async fn tcp_is_never_open_to_strangers() {
        use crate::config::TlsConfig;
        use crate::rpc::access;
        use tierd_cache::config::Secret;
        let tls =
            |client_ca| Some(TlsConfig { certificate: "c".into(), key: "k".into(), client_ca, client_role: None });
        let token = || Some(Secret::new("t"));
        let open: SocketAddr = "0.0.0.0:0".parse().expect("an address");
        for (tls, token) in [(None, None), (None, token()), (tls(None), None)] {
            let config = TcpConfig { address: open, tls, token, open_role: None };
            assert!(matches!(tcp(&config, false), Err(RpcError::Exposed { .. })), "{config:?}");
        }
        let loopback = TcpConfig { address: "127.0.0.1:0".parse().expect("an address"), ..access::tests::tcp(None) };
        assert!(tcp(&loopback, false).is_ok());
    }
}

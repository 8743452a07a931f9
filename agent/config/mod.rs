//! The daemon's configuration: what code may hold. Parsed once from a TOML file and the environment; all mistakes are
//! reported together. Nothing here is read again while the daemon runs.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tierd_cache::config::{EngineConfig, Secret};

/// Everything that the daemon is told at its start.
#[derive(Debug, Clone)]
pub struct Config {
    /// The engine's part.
    pub engine: EngineConfig,
    /// Where the daemon listens.
    pub listen: ListenConfig,
    /// How it logs.
    pub log: LogConfig,
    /// Longest time for a graceful drain. Default 20 s: below systemd's 90 s and Kubernetes' 30 s.
    pub drain_deadline: Duration,
}

/// Where the daemon listens.
#[derive(Debug, Clone)]
pub struct ListenConfig {
    /// The Unix socket, mode 0660, full API.
    pub unix: PathBuf,
    /// gRPC over TCP, off by default.
    pub tcp: Option<TcpConfig>,
    /// `/metrics`, `/livez`, `/readyz`: plain HTTP, read-only. Default 127.0.0.1:9469.
    pub http: Option<SocketAddr>,
    /// Most requests at once, over all connections. Default 1024.
    pub requests_max: u32,
    /// Largest message that is read. Default 4 MiB.
    pub message_bytes_max: usize,
}

/// gRPC over TCP. Refused on a non-loopback address without TLS and either client certificates or a token.
#[derive(Debug, Clone)]
pub struct TcpConfig {
    /// The address.
    pub address: SocketAddr,
    /// TLS.
    pub tls: Option<TlsConfig>,
    /// Bearer token that every call must carry.
    pub token: Option<Secret>,
}

/// TLS of the TCP listener.
#[derive(Debug, Clone)]
pub struct TlsConfig {
    /// PEM file with the certificate chain.
    pub certificate: PathBuf,
    /// PEM file with the private key.
    pub key: PathBuf,
    /// PEM file with the authorities whose client certificates are accepted. With it, a client certificate is required.
    pub client_ca: Option<PathBuf>,
}

/// How the daemon logs.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// `text` for people, `json` for machines.
    pub format: LogFormat,
    /// `info`, or a filter such as `info,tierd_cache::origin=debug`.
    pub filter: String,
}

/// A log's format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One line for people.
    Text,
    /// One JSON object a line.
    Json,
}

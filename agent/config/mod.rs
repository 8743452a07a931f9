//! The daemon's configuration: what code may hold. Parsed once from a TOML file and the environment; all mistakes are
//! reported together. Nothing here is read again while the daemon runs.

mod callers;
mod fleet;
mod kind;
mod options;
mod origins;
mod parse;
mod places;
mod print;
mod problems;
mod raw;
mod reader;
mod reference;
#[cfg(test)]
mod tests;
mod units;
mod variables;

use std::collections::BTreeMap;
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tierd_cache::config::{EngineConfig, Secret};

pub use callers::{CallerConfig, Role};
pub use places::{client_sockets, default_socket, find_config};
pub use problems::{ConfigProblems, PROBLEMS_MAX, Place, Problem};
pub use reference::{reference_markdown, reference_toml};

use crate::comfy::bridge::ServerConfig;
use problems::Gathered;
use reader::Reader;

/// Largest configuration file, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

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
    /// What is run when the node has been idle; nothing by default.
    pub idle: crate::idle::IdleConfig,
    /// Where traces go; nowhere by default.
    pub otlp: Option<crate::telemetry::otlp::OtlpConfig>,
    /// How it takes part in a fleet; not at all by default.
    pub fleet: Option<crate::fleet::FleetConfig>,
    /// ComfyUI on this node.
    pub comfy: ComfyConfig,
}

/// What the daemon does for ComfyUI, beside what its engine is told.
#[derive(Debug, Clone)]
pub struct ComfyConfig {
    /// Whether the node pack may hold a prompt until its models are there. Default true.
    pub gate: bool,
    /// Longest time that it holds one. Default 30 min: a large checkpoint over a slow link.
    pub gate_timeout: Duration,
    /// Whether advice is carried out by `POST /free`. Default false: it unloads every model of a server.
    pub free: bool,
    /// Servers whose queues are read ahead. Default none.
    pub servers: Vec<ServerConfig>,
    /// Prompts of a queue, the running one included, whose models are held in RAM. Default 2.
    pub ram_ahead: u32,
}

impl Default for ComfyConfig {
    fn default() -> Self {
        Self { gate: true, gate_timeout: Duration::from_secs(30 * 60), free: false, servers: Vec::new(), ram_ahead: 2 }
    }
}

/// Where the daemon listens.
#[derive(Debug, Clone)]
pub struct ListenConfig {
    /// The Unix socket, mode 0660, full API.
    pub unix: PathBuf,
    /// gRPC over TCP, off by default.
    pub tcp: Option<TcpConfig>,
    /// The status page, `/metrics`, `/livez`, `/readyz`: plain HTTP, read-only. Default 127.0.0.1:9469.
    pub http: Option<SocketAddr>,
    /// Most requests at once, over all connections. Default 1024.
    pub requests_max: u32,
    /// Most requests of one client at once. Default 512.
    pub client_requests_max: u32,
    /// Most requests of one client in a second. Default 10000.
    pub client_rate_max: u32,
    /// Who may do what.
    pub callers: Vec<CallerConfig>,
    /// Role on the Unix socket of users that no caller names; none lets nobody else in. Default admin.
    pub socket_role: Option<Role>,
    /// Largest message that is read. Default 4 MiB.
    pub message_bytes_max: usize,
    /// Largest workflow that is read; all of one call together. Default 16 MiB.
    pub workflow_bytes_max: usize,
}

/// gRPC over TCP. Refused on a non-loopback address without TLS and either client certificates or a token.
#[derive(Debug, Clone)]
pub struct TcpConfig {
    /// The address.
    pub address: SocketAddr,
    /// TLS.
    pub tls: Option<TlsConfig>,
    /// A bearer token of the role admin.
    pub token: Option<Secret>,
    /// Role of calls that need prove nothing. Default admin.
    pub open_role: Option<Role>,
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
    /// Role of client certificates that no caller names; none lets nobody else in. Default admin.
    pub client_role: Option<Role>,
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

impl Config {
    /// Reads the file (none: the defaults), then the overrides in `env`, and checks everything.
    ///
    /// Also reads the files and variables that hold secrets, and looks whether TLS files are there.
    ///
    /// # Errors
    ///
    /// Every mistake at once, each with its key and place. No secret is in any message.
    pub fn load(path: Option<&Path>, env: &BTreeMap<String, String>) -> Result<Self, ConfigProblems> {
        Self::load_as(path, env, places::is_root())
    }

    /// Where the daemon with this file and these variables makes its socket; `None` if they do not say.
    ///
    /// For clients: they may not read the secrets that the rest of the configuration names, so no other option is
    /// looked at, and mistakes in them are left to the daemon.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or the path is none.
    pub fn socket(path: Option<&Path>, env: &BTreeMap<String, String>) -> Result<Option<PathBuf>, ConfigProblems> {
        let text = path.map_or_else(|| Ok(String::new()), read_file);
        let mut problems = Gathered::default();
        let text = text.unwrap_or_else(|error| {
            problems.add(&Place::Whole, "", format!("cannot be read: {error}"));
            String::new()
        });
        let mut others = Gathered::default();
        let mut raw = raw::read(&text, &mut others);
        variables::apply(env, &mut raw, &mut others);
        let mut reader = Reader { env, root: places::is_root(), folder: folder_of(path), problems: &mut problems };
        let listen = raw.tables.get(&options::Section::Listen);
        let socket = listen.and_then(|table| reader.path(table, "unix"));
        if problems.is_empty() { Ok(socket) } else { Err(problems.finish(path.map(Path::to_owned))) }
    }

    /// Reads a text as the file without a place of its own: relative paths in it are mistakes. Else as [`Config::load`].
    ///
    /// # Errors
    ///
    /// Every mistake at once.
    pub fn parse(text: &str, env: &BTreeMap<String, String>) -> Result<Self, ConfigProblems> {
        let mut problems = Gathered::default();
        let mut raw = raw::read(text, &mut problems);
        variables::apply(env, &mut raw, &mut problems);
        let config = parse::build(&raw, &mut Reader { env, root: false, folder: None, problems: &mut problems });
        if problems.is_empty() { Ok(config) } else { Err(problems.finish(None)) }
    }

    fn load_as(path: Option<&Path>, env: &BTreeMap<String, String>, root: bool) -> Result<Self, ConfigProblems> {
        let mut text = String::new();
        let mut problems = Gathered::default();
        if let Some(path) = path {
            match read_file(path) {
                Ok(read) => text = read,
                Err(error) => problems.add(&Place::Whole, "", format!("cannot be read: {error}")),
            }
        }
        let mut raw = raw::read(&text, &mut problems);
        variables::apply(env, &mut raw, &mut problems);
        let config = parse::build(&raw, &mut Reader { env, root, folder: folder_of(path), problems: &mut problems });
        if problems.is_empty() { Ok(config) } else { Err(problems.finish(path.map(Path::to_owned))) }
    }
}

/// The folder that relative paths of a file start from.
fn folder_of(path: Option<&Path>) -> Option<PathBuf> {
    path.and_then(|path| std::path::absolute(path).ok()?.parent().map(Path::to_owned))
}

fn read_file(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(std::io::Error::other(format!("it has more than {FILE_BYTES_MAX} bytes")));
    }
    Ok(text)
}

//! What the tests stand on: a daemon, its clients, an origin with faults, other people's servers, contents, deadlines. Knows
//! the daemon only from outside: its binary, its sockets, its files.

#![allow(dead_code, reason = "a rig offers what a test may need next")]

mod answer;
mod claims;
pub(crate) mod client;
pub(crate) mod comfy;
pub(crate) mod content;
pub(crate) mod daemon;
pub(crate) mod http;
pub(crate) mod origin;
pub(crate) mod patience;
pub(crate) mod pki;
pub(crate) mod servers;
pub(crate) mod watch;

use std::future::Future;
use std::io::Write;
use std::pin::pin;
use std::time::Duration;

pub(crate) use client::Client;
pub(crate) use comfy::ComfyStub;
pub(crate) use content::Content;
pub(crate) use daemon::{Cli, Daemon, Settings};
pub(crate) use origin::{Fault, FaultOrigin};
pub(crate) use patience::{PATIENCE, assert_within, is_crowded};

/// One MiB.
pub(crate) const MIB: u64 = 1 << 20;
/// The daemon's unit of fetch.
pub(crate) const PIECE: u64 = 8 * MIB;

/// Runs a test's body against a deadline, and a crowded machine's patience. What the body holds is dropped while panicking, so a daemon
/// shows its log.
pub(crate) async fn within<T>(seconds: u64, body: impl Future<Output = T>) -> T {
    let mut body = pin!(body);
    match tokio::time::timeout(Duration::from_secs(seconds) * PATIENCE, body.as_mut()).await {
        Ok(out) => out,
        Err(_) => panic!("not done within {PATIENCE} times {seconds} s"),
    }
}

/// Asks until the answer is there, every 5 ms. The seconds are those of a machine with time, and end what hangs: see [`PATIENCE`].
pub(crate) async fn until<T, F: Future<Output = Option<T>>>(what: &str, seconds: u64, mut ask: impl FnMut() -> F) -> T {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(seconds) * PATIENCE;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(tokio::time::Instant::now() < deadline, "{what}: not within {PATIENCE} times {seconds} s");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Says that a test was skipped, past the capture of the test harness; fails where nothing may be skipped.
pub(crate) fn skip(test: &str, why: &str) {
    assert!(
        std::env::var_os("TIERD_TEST_REQUIRE_SERVERS").is_none_or(|value| value.is_empty() || value == "0"),
        "{test}: {why}, and TIERD_TEST_REQUIRE_SERVERS is set"
    );
    let line = format!("skipped {test}: {why}\n");
    // A harness without standard error has nobody to tell.
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// The seed of a random test: `TIERD_TEST_SEED`, or a new one. Printed, so that a failure can be repeated.
pub(crate) fn seed(test: &str) -> u64 {
    let seed =
        std::env::var("TIERD_TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    println!("{test}: TIERD_TEST_SEED={seed}");
    seed
}

/// A port of the loopback that nobody listened on just now.
pub(crate) fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("the loopback has free ports");
    listener.local_addr().expect("it is bound").port()
}

/// Whether this process may do what only root may.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

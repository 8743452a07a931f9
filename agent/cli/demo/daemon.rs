//! The demo's daemon: this very program as a child process, which never outlives the demo.

use std::collections::BTreeMap;
use std::fs::File;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use rustix::process::{Pid, Signal, kill_process};

use super::Place;
use crate::cli::client::{self, Reach};
use crate::cli::exit::{Exit, Failure, Outcome};

/// Between two looks at the child.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// Looks until it must answer: 15 s.
const START_LOOKS_MAX: u32 = 750;
/// Looks until it must have stopped: 30 s, more than its own drain deadline.
const STOP_LOOKS_MAX: u32 = 1500;

/// A running daemon. Killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: Child,
    socket: std::path::PathBuf,
}

/// Starts the daemon and waits until it answers.
///
/// # Errors
///
/// If it ends by itself, or does not answer in time.
pub(crate) async fn start(place: &Place, env: &BTreeMap<String, String>) -> Result<Daemon, Failure> {
    let program = std::env::current_exe().context("this program cannot find itself")?;
    let log = File::create(place.log()).context("the daemon's log cannot be made")?;
    let mut command = Command::new(program);
    command.arg("serve").arg("--config").arg(place.config());
    // The demo's daemon hears its file and nobody else: not the variables, the socket or the watchdog of another one.
    for name in env
        .keys()
        .filter(|name| name.starts_with("TIERD_") || name.starts_with("NOTIFY_") || name.starts_with("WATCHDOG_"))
    {
        command.env_remove(name);
    }
    let errors = log.try_clone().context("the daemon's log cannot be shared")?;
    command.stdin(Stdio::null()).stdout(log).stderr(errors);
    let child = command.spawn().context("the daemon cannot be started")?;
    let mut daemon = Daemon { child, socket: place.socket() };
    let reach = Reach { socket: Some(place.socket().to_string_lossy().into_owned()), ..Reach::default() };
    for _ in 0..START_LOOKS_MAX {
        if let Some(status) = daemon.ended()? {
            return Err(Failure::new(Exit::Failed, format_args!("the daemon ended while it started: {status}")));
        }
        if let Ok(mut clients) = client::connect(&reach, &BTreeMap::new()).await
            && clients.node.get_node(crate::rpc::pb::GetNodeRequest {}).await.is_ok()
        {
            return Ok(daemon);
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
    Err(Failure::new(Exit::Failed, "the daemon does not answer"))
}

impl Daemon {
    /// Asks the daemon to stop and checks that it does, with success and without traces.
    ///
    /// # Errors
    ///
    /// If it does not stop in time, fails, or leaves its socket.
    pub(crate) async fn stop(&mut self) -> Outcome {
        kill_process(Pid::from_child(&self.child), Signal::TERM).context("the daemon cannot be told to stop")?;
        for _ in 0..STOP_LOOKS_MAX {
            match self.ended()? {
                Some(status) if !status.success() => {
                    return Err(Failure::new(Exit::Failed, format_args!("the daemon ended with {status}")));
                }
                Some(_) if self.socket.exists() => {
                    return Err(Failure::new(Exit::Failed, "the daemon left its socket behind"));
                }
                Some(_) => return Ok(()),
                None => tokio::time::sleep(LOOK_INTERVAL).await,
            }
        }
        Err(Failure::new(Exit::Failed, "the daemon does not stop"))
    }

    fn ended(&mut self) -> Result<Option<ExitStatus>, Failure> {
        self.child.try_wait().map_err(|error| anyhow!("the daemon cannot be watched: {error}").into())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Both do nothing but report an error if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

//! The idle command: run once each time that the node falls idle, as a list of words and never by a shell. It gets little of the
//! daemon's environment, a process group of its own and a deadline; what it says goes to the log.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use tierd_cache::clock::{Clock, Tick, Wall};
use tierd_cache::engine::EngineHandle;
use tokio_util::sync::CancellationToken;

use crate::activity::ActivityMeter;
use crate::rpc::pb;

/// Bytes of a command's output that reach the log; the rest is read and dropped.
const OUTPUT_BYTES_MAX: usize = 16 << 10;
/// Longest line of it.
const LINE_CHARS_MAX: usize = 500;
/// How often a command that runs is looked at for a stop of the daemon.
const SLICE: Duration = Duration::from_millis(100);
/// Shortest wait between two looks at the node: a clock that stands must not make a busy loop.
const WAIT_MIN: Duration = Duration::from_millis(50);
/// What a command keeps of the daemon's environment: no secret stands in these.
const KEPT: [&str; 5] = ["PATH", "HOME", "LANG", "TZ", "TMPDIR"];

/// What is run, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdleConfig {
    /// The command and its arguments; empty for none.
    pub command: Vec<String>,
    /// Idle time after which it runs. Default 15 min: longer than people think between two prompts.
    pub after: Duration,
    /// Longest time that it may take. Default 1 min: enough to call a control plane.
    pub timeout: Duration,
}

impl Default for IdleConfig {
    fn default() -> Self {
        Self { command: Vec::new(), after: Duration::from_secs(15 * 60), timeout: Duration::from_secs(60) }
    }
}

/// The command, and how it went last.
#[derive(Debug)]
pub struct Hook {
    config: IdleConfig,
    /// Told to the command as `TIERD_SOCKET`, so that it can ask.
    socket: PathBuf,
    last: Mutex<Option<(Wall, String)>>,
}

impl Hook {
    /// The configured command; `None` if there is none.
    #[must_use]
    pub fn new(config: &IdleConfig, socket: PathBuf) -> Option<Arc<Self>> {
        (!config.command.is_empty()).then(|| Arc::new(Self { config: config.clone(), socket, last: Mutex::default() }))
    }

    /// The same as a message.
    #[must_use]
    pub fn told(&self) -> pb::IdleHook {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
        pb::IdleHook {
            after: Some(self.config.after.into()),
            ran: last.as_ref().map(|(at, _)| (*at).into()),
            outcome: last.map(|(_, outcome)| outcome).unwrap_or_default(),
        }
    }

    fn note(&self, at: Wall, outcome: &str) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some((at, outcome.to_owned()));
    }
}

/// Runs the command each time that the node falls idle, until `stop`.
pub async fn run(hook: Arc<Hook>, engine: EngineHandle, meter: ActivityMeter, stop: CancellationToken) {
    let clock = Clock::start();
    // When the command ran last: a node that was not needed since is in the same idle time.
    let mut ran: Option<Tick> = None;
    loop {
        let Ok(node) = engine.node().await else { return };
        let (now, idle) = (clock.now(), meter.idle(&node));
        let is_new = ran.is_none_or(|ran| now.since(ran) > idle);
        if is_new && idle >= hook.config.after {
            ran = Some(now);
            let (hook, stop) = (hook.clone(), stop.clone());
            let work = tokio::task::spawn_blocking(move || once(&hook, idle, &stop));
            if let Err(panic) = work.await {
                tracing::error!(%panic, "running the idle command panicked");
            }
            continue;
        }
        let due = if is_new { hook.config.after - idle } else { hook.config.after };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(due.max(WAIT_MIN)) => {}
        }
    }
}

/// Runs the command to its end, and says how that was.
fn once(hook: &Hook, idle: Duration, stop: &CancellationToken) {
    let (clock, command) = (Clock::start(), hook.config.command.join(" "));
    let at = clock.wall();
    tracing::info!(command, idle_seconds = idle.as_secs(), "idle: the idle command runs");
    hook.note(at, "still running");
    let outcome = match start(hook, idle) {
        Ok((child, output)) => watch(child, output, hook.config.timeout, &clock, stop),
        Err(error) => format!("could not be started: {error}"),
    };
    hook.note(at, &outcome);
    if outcome == "exit 0" {
        tracing::info!(command, outcome, "the idle command is over");
    } else {
        tracing::warn!(
            command,
            outcome,
            "the idle command did not end well; it runs again when the node falls idle anew"
        );
    }
}

fn start(hook: &Hook, idle: Duration) -> std::io::Result<(Child, std::io::PipeReader)> {
    let (output, input) = std::io::pipe()?;
    let mut command = Command::new(&hook.config.command[0]);
    command.args(&hook.config.command[1..]).env_clear().stdin(Stdio::null());
    command.envs(KEPT.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
    command.env("TIERD_SOCKET", &hook.socket).env("TIERD_IDLE_SECONDS", idle.as_secs().to_string());
    command.stdout(input.try_clone()?).stderr(input);
    // So that what it starts ends with it, and a terminal's ctrl-c is the daemon's alone.
    command.process_group(0);
    let child = command.spawn()?;
    fcntl_setfl(&output, fcntl_getfl(&output)? | OFlags::NONBLOCK)?;
    Ok((child, output))
}

/// Waits for its end, for the deadline, or for the daemon's; logs what it says.
fn watch(
    mut child: Child,
    mut output: std::io::PipeReader,
    timeout: Duration,
    clock: &Clock,
    stop: &CancellationToken,
) -> String {
    let mut said = Vec::new();
    let deadline = clock.now().after(timeout);
    let ended = pidfd_open(Pid::from_child(&child), PidfdFlags::empty());
    let outcome = loop {
        let fds: Vec<BorrowedFd<'_>> = ended.iter().map(AsFd::as_fd).chain([output.as_fd()]).collect();
        wait(&fds);
        drain(&mut output, &mut said);
        match child.try_wait() {
            Ok(Some(status)) => break words(status),
            Ok(None) => {}
            Err(error) => break format!("cannot be waited for: {error}"),
        }
        let why = if stop.is_cancelled() {
            "stopped with the daemon".to_owned()
        } else if clock.now() >= deadline {
            format!("killed after {timeout:?}")
        } else {
            continue;
        };
        // A group that has just ended needs no signal.
        let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
        let _ = child.wait();
        break why;
    };
    drain(&mut output, &mut said);
    for line in String::from_utf8_lossy(&said).lines() {
        let line: String = line.chars().filter(|letter| !letter.is_control()).take(LINE_CHARS_MAX).collect();
        tracing::info!(line, "idle command");
    }
    outcome
}

/// Waits until one of these has something to say, a moment at most.
fn wait(fds: &[BorrowedFd<'_>]) {
    let mut fds: Vec<PollFd<'_>> = fds.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
    let slice = Timespec { tv_sec: 0, tv_nsec: i64::from(SLICE.subsec_nanos()) };
    // A wait that was interrupted is looked after like one that is over.
    let _ = poll(&mut fds, Some(&slice));
}

/// Reads what is there, and keeps the beginning.
fn drain(output: &mut std::io::PipeReader, said: &mut Vec<u8>) {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = output.read(&mut buffer) {
        let room = OUTPUT_BYTES_MAX.saturating_sub(said.len());
        said.extend_from_slice(&buffer[..count.min(room)]);
    }
}

fn words(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit {code}"),
        (None, Some(signal)) => format!("ended by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

//! `tierd top`: the node live, one frame a second and one when something happens. Draws with plain ANSI and nothing else; a terminal is put back as it was
//! on every way out.

use std::collections::VecDeque;
use std::io::{self, IsTerminal, Read, Write};
use std::time::Duration;

use clap::Args;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::Streaming;

use crate::cli::client::Daemon;
use crate::cli::exit::{Failure, Outcome};
use crate::cli::{Context, client, events, status, workers};
use crate::host::StopSignals;
use crate::rpc::pb::{self, watch_response::Update};

/// Most time between two frames: bytes move without anything happening.
const FRAME_INTERVAL: Duration = Duration::from_secs(1);
/// Least time between two frames, however much happens.
const FRAME_INTERVAL_MIN: Duration = Duration::from_millis(250);
/// Longest wait for the daemon's answers to one frame.
const ANSWER_WAIT: Duration = Duration::from_secs(5);
/// Events in a frame.
const EVENTS_MAX: usize = 12;
/// Flights in a frame.
const FLIGHTS_MAX: usize = 16;
/// A terminal that does not tell its size.
const SIZE_UNKNOWN: (usize, usize) = (110, 50);

/// `tierd top`.
#[derive(Debug, Args)]
#[command(after_help = "Ends with q or ctrl-c. Prints one frame where there is no terminal.")]
pub(crate) struct TopArgs {
    /// Print one frame and end
    #[arg(long)]
    pub once: bool,
}

/// What a frame shows.
#[derive(Debug, Default)]
struct Frame {
    node: pb::Node,
    flights: Vec<pb::Flight>,
    events: VecDeque<pb::Occurrence>,
    /// Why the frame is an old one.
    stale: Option<String>,
}

/// Runs `tierd top`.
pub(crate) async fn top(context: &Context, args: TopArgs) -> Outcome {
    let mut daemon = client::connect(&context.reach, &context.env).await?;
    let mut frame = Frame::default();
    frame.ask(&mut daemon).await?;
    let out = context.out;
    if args.once || out.json || out.quiet || !io::stdout().is_terminal() {
        let mut past = Happening::past(&mut daemon).await?;
        while let Some(update) = past.next(&mut daemon).await? {
            frame.saw(update);
        }
        let events: Vec<_> = frame.events.iter().collect();
        out.document(&serde_json::json!({ "node": frame.node, "flights": frame.flights, "events": events }))?;
        for line in frame.lines() {
            out.line(line)?;
        }
        return Ok(());
    }
    let mut signals = StopSignals::catch()?;
    let screen = Screen::enter()?;
    let mut keys = keys();
    let mut happening = Happening::default();
    let mut drawn = Instant::now();
    let mut due = drawn;
    loop {
        tokio::select! {
            _ = signals.next() => return Ok(()),
            Some(b'q' | b'Q') = keys.recv() => return Ok(()),
            () = tokio::time::sleep_until(due) => {
                // A daemon that restarts is waited for: the last frame stays, and says so.
                let answered = tokio::time::timeout(ANSWER_WAIT, frame.ask(&mut daemon)).await;
                frame.stale = match answered {
                    Ok(Ok(())) => None,
                    Ok(Err(failure)) => Some(failure.text),
                    Err(_) => Some("the daemon does not answer".to_owned()),
                };
                screen.draw(&frame.lines())?;
                drawn = Instant::now();
                due = drawn + FRAME_INTERVAL;
            }
            Ok(Some(update)) = happening.next(&mut daemon) => {
                frame.saw(update);
                due = due.min(drawn + FRAME_INTERVAL_MIN);
            }
        }
    }
}

/// What happens, told as it does: one stream, opened again where it was when it breaks.
#[derive(Default)]
struct Happening {
    steps: Option<Streaming<pb::WatchResponse>>,
    /// Where it goes on.
    resume_token: String,
}

impl Happening {
    /// What is remembered, and nothing more.
    async fn past(daemon: &mut Daemon) -> Result<Self, Failure> {
        let request = pb::WatchRequest { past_only: true, ..Default::default() };
        Ok(Self { steps: Some(daemon.node.watch(request).await?.into_inner()), ..Self::default() })
    }

    /// The next thing that happened; `None` at an end. May be dropped at any time.
    async fn next(&mut self, daemon: &mut Daemon) -> Result<Option<Update>, Failure> {
        let Some(steps) = &mut self.steps else {
            let request = pb::WatchRequest { resume_token: self.resume_token.clone(), ..Default::default() };
            match daemon.node.watch(request).await {
                Ok(answer) => self.steps = Some(answer.into_inner()),
                // The next frame says why; until then nobody is asked again.
                Err(_) => tokio::time::sleep(FRAME_INTERVAL).await,
            }
            return Ok(Some(Update::Resync(pb::Resync::default())));
        };
        match steps.message().await {
            Ok(Some(step)) => {
                if let Some(Update::Occurrence(occurrence)) = &step.update {
                    self.resume_token.clone_from(&occurrence.resume_token);
                }
                Ok(step.update)
            }
            Ok(None) => {
                self.steps = None;
                Ok(None)
            }
            Err(status) => {
                self.steps = None;
                Err(status.into())
            }
        }
    }
}

impl Frame {
    /// Asks for what moves without anything happening.
    async fn ask(&mut self, daemon: &mut Daemon) -> Result<(), Failure> {
        self.node = daemon.node.get_node(pb::GetNodeRequest {}).await?.into_inner().node.unwrap_or_default();
        self.flights = daemon.cache.list_flights(pb::ListFlightsRequest {}).await?.into_inner().flights;
        Ok(())
    }

    fn saw(&mut self, update: Update) {
        match update {
            Update::Occurrence(occurrence) => {
                self.events.push_back(occurrence);
                if self.events.len() > EVENTS_MAX {
                    self.events.pop_front();
                }
            }
            // What was missed is older than what is shown.
            Update::Resync(_) | Update::Snapshot(_) | Update::Change(_) => {}
        }
    }

    fn lines(&self) -> Vec<String> {
        let mut lines = vec![status::summary(&self.node)];
        lines.extend(self.stale.as_ref().map(|why| {
            let first = why.lines().next().unwrap_or_default();
            format!("-- what follows is old: {first}")
        }));
        lines.push(String::new());
        lines.extend(status::tier_lines(&self.node));
        lines.push(String::new());
        let devices = workers::device_lines(&self.node);
        if !devices.is_empty() {
            lines.extend(devices);
            lines.push(String::new());
        }
        if self.flights.is_empty() {
            lines.push("no flights under way".to_owned());
        } else {
            lines.extend(status::flight_lines(&self.flights[..self.flights.len().min(FLIGHTS_MAX)]));
            if self.flights.len() > FLIGHTS_MAX {
                lines.push(format!("and {} more", self.flights.len() - FLIGHTS_MAX));
            }
        }
        lines.push(String::new());
        lines.extend(status::origin_lines(&self.node));
        lines.push(String::new());
        lines.extend(self.events.iter().map(events::line));
        lines
    }
}

/// The keys that are pressed. The thread ends with the process: a read of a terminal cannot be taken back.
fn keys() -> mpsc::Receiver<u8> {
    let (send, keys) = mpsc::channel(1);
    let reading = std::thread::Builder::new().name("keys".to_owned()).spawn(move || {
        let mut byte = [0];
        while matches!(io::stdin().read(&mut byte), Ok(1)) {
            if send.blocking_send(byte[0]).is_err() {
                return;
            }
        }
    });
    if let Err(error) = reading {
        tracing::debug!(%error, "no keys can be read; ctrl-c ends it");
    }
    keys
}

/// A terminal that is drawn on: its other screen, no cursor, keys without Enter. Put back on drop.
struct Screen {
    before: Option<Termios>,
}

impl Screen {
    fn enter() -> io::Result<Self> {
        // Without a terminal to read from there are no keys to hear.
        let before = tcgetattr(io::stdin()).ok();
        if let Some(before) = &before {
            let mut raw = before.clone();
            raw.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO);
            tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        }
        let screen = Self { before };
        put("\x1b[?1049h\x1b[?25l")?;
        Ok(screen)
    }

    /// Draws the lines from the top, cut to the terminal.
    fn draw(&self, lines: &[String]) -> io::Result<()> {
        let size = tcgetwinsize(io::stdout()).ok().filter(|size| size.ws_col > 0 && size.ws_row > 0);
        let (columns, rows) = size.map_or(SIZE_UNKNOWN, |size| (usize::from(size.ws_col), usize::from(size.ws_row)));
        put(&drawn(lines, columns, rows))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that went away needs no repair.
        let _ = put("\x1b[?25h\x1b[?1049l");
        if let Some(before) = &self.before {
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
    }
}

/// The bytes of one frame. Overwrites line by line and clears what is left of each: no flicker.
fn drawn(lines: &[String], columns: usize, rows: usize) -> String {
    let mut text = String::from("\x1b[H");
    for (row, line) in lines.iter().take(rows).enumerate() {
        if row > 0 {
            text.push_str("\r\n");
        }
        // What a name holds must not steer the terminal.
        text.extend(line.chars().filter(|letter| !letter.is_control()).take(columns));
        text.push_str("\x1b[K");
    }
    text.push_str("\x1b[J");
    text
}

fn put(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_never_leaves_the_terminal_nor_steers_it() {
        let lines = ["abcdef".to_owned(), "x\x1b[2Jy".to_owned(), "below".to_owned()];
        assert_eq!(drawn(&lines, 4, 2), "\x1b[Habcd\x1b[K\r\nx[2J\x1b[K\x1b[J");
    }

    #[test]
    fn a_frame_says_when_it_is_old_and_how_many_flights_it_leaves_out() {
        let tier = pb::TierStatus {
            tier: pb::Tier::Ram.into(),
            detail: "limited by [ram] budget".into(),
            ..Default::default()
        };
        let node = pb::Node { tiers: vec![tier], ..Default::default() };
        let flights = vec![pb::Flight::default(); FLIGHTS_MAX + 3];
        let stale = Some("no daemon answers\n  start one".to_owned());
        let text = Frame { node, flights, stale, ..Default::default() }.lines().join("\n");
        for part in ["-- what follows is old: no daemon answers\n", "and 3 more", "ram: limited by [ram] budget"] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
    }
}

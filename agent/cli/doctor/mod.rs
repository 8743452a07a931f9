//! `tierd doctor`: what limits this node and what to change. Asks the daemon where one answers, and looks for itself where
//! not. Changes nothing but a probe file that is removed at once.

use serde::Serialize;
use tierd_cache::clock::Clock;

use crate::cli::client::Daemon;
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::{Context, client};
use crate::config::Config;
use crate::rpc::pb;

mod disk;
mod gpu;
mod memory;
mod origins;

/// 2025-01-01: older than any build of this program. A clock before it makes every signature and certificate wrong.
const CLOCK_MS_MIN: u64 = 1_735_689_600_000;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    /// As it should be.
    Good,
    /// It works, but something is lost.
    Note,
    /// Something does not work, or not as configured.
    Wrong,
}

/// One thing that was looked at.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Finding {
    verdict: Verdict,
    topic: &'static str,
    text: String,
    /// What to do about it; empty if nothing needs to be done.
    change: String,
}

impl Finding {
    fn good(topic: &'static str, text: impl Into<String>) -> Self {
        Self { verdict: Verdict::Good, topic, text: text.into(), change: String::new() }
    }

    fn note(topic: &'static str, text: impl Into<String>, change: impl Into<String>) -> Self {
        Self { verdict: Verdict::Note, topic, text: text.into(), change: change.into() }
    }

    fn wrong(topic: &'static str, text: impl Into<String>, change: impl Into<String>) -> Self {
        Self { verdict: Verdict::Wrong, topic, text: text.into(), change: change.into() }
    }
}

/// Runs `tierd doctor`.
pub(crate) async fn doctor(context: &Context) -> Outcome {
    let mut findings = Vec::new();
    let node = match client::connect(&context.reach, &context.env).await {
        Ok(mut daemon) => node(&mut daemon, &mut findings).await,
        Err(failure) if failure.exit == Exit::Unreachable => {
            let first = failure.text.lines().next().unwrap_or_default().to_owned();
            let change =
                "start it with `tierd serve`, or name its socket with --socket; what follows is seen from this shell";
            findings.push(Finding::note("daemon", first, change));
            None
        }
        Err(failure) => return Err(failure),
    };
    match context.config() {
        Ok(config) => look(&config, node.as_ref(), &mut findings).await,
        Err(failure) => {
            findings.push(Finding::wrong("configuration", failure.text, "see `tierd check-config --example`"));
        }
    }
    findings.push(clock(Clock::start().wall().0));
    tell(context, &findings)
}

/// What the daemon says of itself, if it does.
async fn node(daemon: &mut Daemon, findings: &mut Vec<Finding>) -> Option<pb::Node> {
    match daemon.node.get_node(pb::GetNodeRequest {}).await {
        Ok(answer) => {
            let node = answer.into_inner().node.unwrap_or_default();
            let own = env!("CARGO_PKG_VERSION");
            findings.push(if node.version == own {
                Finding::good("daemon", format!("version {own} answers"))
            } else {
                let text = format!("version {} answers, this is {own}", node.version);
                Finding::note("daemon", text, "restart the daemon with the installed version")
            });
            Some(node)
        }
        Err(status) => {
            let failure = Failure::from(status);
            findings.push(Finding::wrong("daemon", format!("it does not tell how it is: {}", failure.text), ""));
            None
        }
    }
}

/// Everything that depends on the configuration.
async fn look(config: &Config, node: Option<&pb::Node>, findings: &mut Vec<Finding>) {
    findings.push(Finding::good("configuration", "no mistakes"));
    let tier = |wanted: pb::Tier| node.and_then(|node| node.tiers.iter().find(|tier| tier.tier() == wanted));
    findings.extend(memory::look(&config.engine.ram, tier(pb::Tier::Ram)));
    findings.extend(gpu::look(node).await);
    findings.extend(disk::look(&config.engine.store, tier(pb::Tier::Nvme)));
    match node {
        Some(node) => findings.extend(node.origins.iter().map(origins::told)),
        None => findings.extend(origins::try_all(&config.engine.origins).await),
    }
}

fn clock(now_ms: u64) -> Finding {
    if now_ms < CLOCK_MS_MIN {
        let text = "the clock stands before 2025: signed requests and certificates are refused";
        return Finding::wrong("clock", text, "set it: timedatectl set-ntp true");
    }
    Finding::good("clock", pb_time(now_ms))
}

fn pb_time(ms: u64) -> String {
    crate::rpc::time::Timestamp::from(tierd_cache::clock::Wall(ms)).to_string()
}

/// Prints the findings. Something wrong is the exit code.
fn tell(context: &Context, findings: &[Finding]) -> Outcome {
    context.out.document(&serde_json::json!({ "findings": findings }))?;
    for finding in findings {
        let mark = match finding.verdict {
            Verdict::Good => "good ",
            Verdict::Note => "note ",
            Verdict::Wrong => "WRONG",
        };
        context.out.line(format_args!("{mark}  {:<14}{}", finding.topic, finding.text))?;
        if !finding.change.is_empty() {
            context.out.line(format_args!("{:<21}-> {}", "", finding.change))?;
        }
    }
    let wrong = findings.iter().filter(|finding| finding.verdict == Verdict::Wrong).count();
    if wrong > 0 { Err(Failure::told(Exit::Failed)) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_of_1970_is_wrong_and_one_of_today_is_good() {
        assert_eq!(clock(0).verdict, Verdict::Wrong);
        let good = clock(1_767_225_600_000);
        assert_eq!((good.verdict, good.text.as_str()), (Verdict::Good, "2026-01-01T00:00:00.000Z"));
    }
}

//! What a server says of a prompt that left its queue: how it ended and how long it took. Pure.

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

/// Largest answer that is read of one prompt. Its outputs are names of files; its graph comes along.
pub const HISTORY_BYTES_MAX: usize = 8 << 20;

/// How a prompt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It has results.
    Succeeded,
    /// It failed, or was stopped.
    Failed,
    /// The history does not know it: it was taken out of the queue, or the server was restarted.
    Left,
}

impl Outcome {
    /// Its label in metrics.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Left => "left",
        }
    }
}

#[derive(Deserialize)]
struct Entry {
    status: Option<Status>,
}

#[derive(Deserialize)]
struct Status {
    status_str: Option<String>,
    #[serde(default)]
    messages: Vec<Value>,
}

/// Reads the answer of `GET /history/<prompt>`: how it ended, and how long it ran if that is told.
#[must_use]
pub fn outcome(body: &[u8], prompt: &str) -> (Outcome, Option<Duration>) {
    let entries: Option<std::collections::HashMap<String, Entry>> = serde_json::from_slice(body).ok();
    let status = entries.and_then(|mut entries| entries.remove(prompt)).and_then(|entry| entry.status);
    let Some(status) = status else { return (Outcome::Left, None) };
    let outcome = match status.status_str.as_deref() {
        Some("success") => Outcome::Succeeded,
        Some(_) => Outcome::Failed,
        None => Outcome::Left,
    };
    let time = |message: &Value| message.get(1)?.get("timestamp")?.as_u64();
    let started = status.messages.first().and_then(time);
    let ended = status.messages.last().and_then(time);
    let took = started.zip(ended).and_then(|(started, ended)| ended.checked_sub(started)).map(Duration::from_millis);
    (outcome, took)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(status: &str) -> Vec<u8> {
        format!(r#"{{"p":{{"prompt":[1],"outputs":{{}},"status":{status}}}}}"#).into_bytes()
    }

    #[test]
    fn recorded_histories_of_a_real_server_say_how_prompts_ended() {
        let good = include_bytes!("../../../comfyui/tests/recorded/history_success.json");
        let (outcome, took) = super::outcome(good, "21c9fa16-e821-4dd9-ab3b-a12edac5002d");
        assert_eq!((outcome, took), (Outcome::Succeeded, Some(Duration::from_millis(1180))));
        let stopped = include_bytes!("../../../comfyui/tests/recorded/history_interrupted.json");
        assert_eq!(super::outcome(stopped, "1438ddda-dbd6-4ac1-b017-1a3142c2984f").0, Outcome::Failed);
    }

    #[test]
    fn a_prompt_succeeded_failed_or_left_without_a_trace() {
        let messages = r#"[["execution_start",{"timestamp":1000}],["execution_success",{"timestamp":2180}]]"#;
        let good = entry(&format!(r#"{{"status_str":"success","completed":true,"messages":{messages}}}"#));
        assert_eq!(outcome(&good, "p"), (Outcome::Succeeded, Some(Duration::from_millis(1180))));
        let bad = entry(r#"{"status_str":"error","completed":false,"messages":[]}"#);
        assert_eq!(outcome(&bad, "p"), (Outcome::Failed, None));
        for body in [&good[..], b"{}", b"", b"[1]", b"{\"p\":7}"] {
            assert_eq!(outcome(body, "q").0, Outcome::Left);
        }
    }
}

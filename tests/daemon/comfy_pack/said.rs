//! What the node pack would say, said by hand over raw sockets: nothing here mends what the daemon gets wrong.

use std::path::Path;

use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;

/// An answer: its status, its headers in lower case, its body.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }
}

pub(crate) fn head(method: &str, path: &str, extra: &str, length: usize) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: tierd\r\nConnection: close\r\n{extra}Content-Length: {length}\r\n\r\n")
}

/// One request over a stream, and the whole answer to it.
pub(crate) async fn ask_over(mut stream: impl AsyncRead + AsyncWrite + Unpin, head: String, body: &[u8]) -> Answer {
    stream.write_all(head.as_bytes()).await.expect("the daemon reads");
    // A daemon that has read enough to refuse need not read the rest.
    let _ = stream.write_all(body).await;
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes).await;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    let body =
        if head.to_lowercase().contains("transfer-encoding: chunked") { unchunked(body) } else { body.to_owned() };
    Answer { status, head: head.to_lowercase(), body }
}

pub(crate) fn unchunked(mut text: &str) -> String {
    let mut out = String::new();
    while let Some((size, rest)) = text.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap_or(0);
        if size == 0 || rest.len() < size {
            break;
        }
        out.push_str(&rest[..size]);
        text = rest[size..].trim_start_matches("\r\n");
    }
    out
}

pub(crate) async fn get(socket: &Path, path: &str, extra: &str) -> Answer {
    let stream = UnixStream::connect(socket).await.expect("the daemon listens");
    ask_over(stream, head("GET", &format!("/comfy/v1/{path}"), extra, 0), b"").await
}

pub(crate) async fn post(socket: &Path, path: &str, body: &Value) -> Answer {
    let body = body.to_string();
    let stream = UnixStream::connect(socket).await.expect("the daemon listens");
    ask_over(stream, head("POST", &format!("/comfy/v1/{path}"), "", body.len()), body.as_bytes()).await
}

pub(crate) fn hello(worker: &str) -> Value {
    json!({ "worker": worker, "pid": 4242, "pack_version": "0.1.0", "comfyui_version": "0.33.0",
        "address": "http://127.0.0.1:8188", "argv": ["main.py"], "hooks": { "reads": "attached" }, "folders": {} })
}

/// A report of one device with these files on it.
pub(crate) fn report(worker: &str, seq: u64, files: &[(&Path, bool)]) -> Value {
    let model =
        |(file, in_use): &(&Path, bool)| json!({ "file": file, "bytes": 10, "loaded_bytes": 10, "in_use": in_use });
    let models: Vec<Value> = files.iter().map(model).collect();
    json!({ "worker": worker, "seq": seq, "events": [], "devices": [{ "index": 0, "name": "card", "uuid": "u",
        "total_bytes": 100, "free_bytes": 50, "torch_bytes": 20, "models": models }] })
}

/// The lines of a streamed answer.
pub(crate) fn lines(answer: &Answer) -> Vec<Value> {
    answer.body.lines().map(|line| serde_json::from_str(line).expect("a line is an object")).collect()
}

//! A ComfyUI server inside the test: its queue, its WebSocket, its history, in the shapes that a real one was recorded with
//! (comfyui/tests/recorded). Runs nothing: the test says when a prompt starts and ends.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use futures_util::SinkExt;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::http::{self, Request};

const SYSTEM_STATS: &str = include_str!("../../../comfyui/tests/recorded/system_stats.json");
const FOLDER_PATHS: &str = include_str!("../../../comfyui/tests/recorded/folder_paths.json");

/// One prompt.
#[derive(Debug, Clone)]
struct Prompt {
    number: i64,
    id: String,
    graph: Value,
    extra: Value,
}

impl Prompt {
    fn row(&self) -> Value {
        json!([self.number, self.id, self.graph, self.extra, ["9"]])
    }
}

#[derive(Debug, Default)]
struct State {
    running: Vec<Prompt>,
    pending: Vec<Prompt>,
    history: BTreeMap<String, Value>,
    number: i64,
    /// Says this instead of its queue.
    garbage: Option<String>,
    sockets_refused: bool,
    argv: Vec<String>,
    asked: Vec<String>,
}

/// The server. Ends, with its connections, when it is dropped.
#[derive(Debug)]
pub(crate) struct ComfyStub {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    changes: watch::Sender<u64>,
    serving: Option<JoinHandle<()>>,
}

impl Drop for ComfyStub {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The graph of a prompt that loads these models, `folder/name`, each by its own loader.
pub(crate) fn graph(models: &[&str]) -> Value {
    let mut nodes = serde_json::Map::new();
    for (at, model) in models.iter().enumerate() {
        let (folder, name) = model.split_once('/').expect("folder/name");
        let (class, input) = match folder {
            "diffusion_models" => ("UNETLoader", "unet_name"),
            "text_encoders" => ("CLIPLoader", "clip_name"),
            "vae" => ("VAELoader", "vae_name"),
            "checkpoints" => ("CheckpointLoaderSimple", "ckpt_name"),
            folder => panic!("the stub knows no loader for {folder}"),
        };
        nodes.insert((at + 1).to_string(), json!({ "class_type": class, "inputs": { input: name } }));
    }
    Value::Object(nodes)
}

impl ComfyStub {
    /// Starts on a free port.
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("the loopback has free ports");
        let address = listener.local_addr().expect("it is bound");
        let (changes, _) = watch::channel(0);
        let mut stub = Self { address, state: Arc::default(), changes, serving: None };
        stub.serve(listener);
        stub
    }

    fn serve(&mut self, listener: TcpListener) {
        let (state, changes) = (self.state.clone(), self.changes.clone());
        self.serving = Some(tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(converse(stream, state.clone(), changes.clone()));
                while connections.try_join_next().is_some() {}
            }
        }));
    }

    /// `host:port`.
    pub(crate) fn name(&self) -> String {
        self.address.to_string()
    }

    /// Its address.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changes.send_modify(|number| *number += 1);
    }

    /// Its process ends: connections break, the queue is lost.
    pub(crate) fn stop(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.abort();
        }
        let mut state = self.state();
        state.running.clear();
        state.pending.clear();
        state.history.clear();
    }

    /// Starts again on its port, with an empty queue.
    pub(crate) async fn restart(&mut self) {
        let listener =
            super::until("the port is free again", 10, || async { TcpListener::bind(self.address).await.ok() });
        let listener = listener.await;
        self.serve(listener);
    }

    /// Queues a prompt, as a browser does.
    pub(crate) fn queue(&self, id: &str, models: &[&str]) {
        self.queue_graph(id, graph(models), false);
    }

    /// Queues a prompt in front of all others.
    pub(crate) fn queue_front(&self, id: &str, models: &[&str]) {
        self.queue_graph(id, graph(models), true);
    }

    /// Queues a graph.
    pub(crate) fn queue_graph(&self, id: &str, graph: Value, front: bool) {
        self.change(|state| {
            state.number += 1;
            let number = if front { -state.number } else { state.number };
            let extra =
                json!({ "client_id": "browser", "extra_pnginfo": { "workflow": { "nodes": [], "links": [] } } });
            // A heap, not a sorted list: the newest first serves to show that.
            state.pending.insert(0, Prompt { number, id: id.to_owned(), graph, extra });
        });
    }

    /// Makes the next row so large that the queue has at least so many bytes.
    pub(crate) fn pad(&self, bytes: usize) {
        self.change(|state| {
            if let Some(prompt) = state.pending.first_mut() {
                prompt.extra["padding"] = "x".repeat(bytes).into();
            }
        });
    }

    /// Takes the next prompt out of the queue and runs it.
    pub(crate) fn run_next(&self) -> Option<String> {
        let mut id = None;
        self.change(|state| {
            state.pending.sort_by_key(|prompt| prompt.number);
            if !state.pending.is_empty() {
                let prompt = state.pending.remove(0);
                id = Some(prompt.id.clone());
                state.running.push(prompt);
            }
        });
        id
    }

    /// Ends the prompt that runs.
    pub(crate) fn finish(&self, succeeds: bool) {
        self.change(|state| {
            for prompt in state.running.drain(..) {
                let status = if succeeds { "success" } else { "error" };
                let messages =
                    json!([["execution_start", { "timestamp": 1000 }], ["execution_success", { "timestamp": 3000 }]]);
                let status = json!({ "status_str": status, "completed": succeeds, "messages": messages });
                let entry = json!({ "prompt": prompt.row(), "outputs": {}, "status": status, "meta": {} });
                state.history.insert(prompt.id.clone(), entry);
            }
        });
    }

    /// Takes a waiting prompt out of the queue.
    pub(crate) fn cancel(&self, id: &str) {
        self.change(|state| state.pending.retain(|prompt| prompt.id != id));
    }

    /// Says this instead of its queue; `None` ends that.
    pub(crate) fn say(&self, garbage: Option<&str>) {
        self.change(|state| state.garbage = garbage.map(str::to_owned));
    }

    /// Refuses WebSockets, as some proxies do.
    pub(crate) fn refuse_sockets(&self) {
        self.state().sockets_refused = true;
    }

    /// Adds a word to its command line.
    pub(crate) fn argv(&self, word: &str) {
        self.state().argv.push(word.to_owned());
    }

    /// Paths that were asked for.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.state().asked.clone()
    }
}

async fn converse(mut stream: TcpStream, state: Arc<Mutex<State>>, changes: watch::Sender<u64>) {
    let mut rest = Vec::new();
    while let Ok(Some(request)) = http::read_request(&mut stream, &mut rest).await {
        state.lock().expect("no holder panics").asked.push(request.path.clone());
        if request.path == "ws" {
            let refused = state.lock().expect("no holder panics").sockets_refused;
            match request.headers.get("sec-websocket-key").filter(|_| !refused) {
                Some(key) => return bystander(stream, key, &state, changes.subscribe()).await,
                None => {
                    let _ = answer(&mut stream, 403, "no sockets here").await;
                    continue;
                }
            }
        }
        let (status, body) = respond(&request, &state);
        if answer(&mut stream, status, &body).await.is_err() {
            return;
        }
    }
}

fn respond(request: &Request, state: &Mutex<State>) -> (u16, String) {
    let state = state.lock().expect("no holder panics");
    let rows = |prompts: &[Prompt]| prompts.iter().map(Prompt::row).collect::<Vec<_>>();
    match request.path.as_str() {
        "queue" => match &state.garbage {
            Some(garbage) => (200, garbage.clone()),
            None => {
                let queue = json!({ "queue_running": rows(&state.running), "queue_pending": rows(&state.pending) });
                (200, queue.to_string())
            }
        },
        "system_stats" => {
            let mut stats: Value = serde_json::from_str(SYSTEM_STATS).expect("recorded");
            let argv = stats["system"]["argv"].as_array_mut().expect("recorded");
            argv.extend(state.argv.iter().map(|word| word.as_str().into()));
            (200, stats.to_string())
        }
        "internal/folder_paths" => (200, FOLDER_PATHS.to_owned()),
        path => match path.strip_prefix("history/") {
            Some(id) => {
                let entry = state.history.get(id).map(|entry| json!({ id: entry }));
                (200, entry.unwrap_or_else(|| json!({})).to_string())
            }
            None => (404, "{}".to_owned()),
        },
    }
}

async fn answer(stream: &mut TcpStream, status: u16, body: &str) -> std::io::Result<()> {
    let length = body.len();
    let head = format!("HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await
}

/// Tells how long the queue is at each change, as to anyone who queued nothing.
async fn bystander(mut stream: TcpStream, key: &str, state: &Mutex<State>, mut changes: watch::Receiver<u64>) {
    let accept = derive_accept_key(key.as_bytes());
    let head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
    );
    if stream.write_all(head.as_bytes()).await.is_err() {
        return;
    }
    let mut socket = WebSocketStream::from_raw_socket(stream, Role::Server, None).await;
    loop {
        let remaining = {
            let state = state.lock().expect("no holder panics");
            state.running.len() + state.pending.len()
        };
        let status =
            json!({ "type": "status", "data": { "status": { "exec_info": { "queue_remaining": remaining } } } });
        if socket.send(Message::text(status.to_string())).await.is_err() || changes.changed().await.is_err() {
            return;
        }
    }
}

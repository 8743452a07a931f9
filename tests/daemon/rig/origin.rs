//! An HTTP origin inside the test: objects in memory, every request counted, faults to the byte. Serves over raw sockets, so
//! that no library mends what a test breaks.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::Content;
use super::answer::converse;

/// What the origin does wrong.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// Answers with this status and these headers, and no body.
    Status(u16, Vec<(&'static str, String)>),
    /// Resets the connection after so many bytes of the body.
    Reset(u64),
    /// Falls silent after so many bytes of the body, and keeps the connection.
    Stall(u64),
    /// Closes the connection in order after so many bytes of the body.
    Close(u64),
    /// Promises so many bytes fewer in `Content-Length`, and sends no more than that.
    Short(u64),
    /// Says in every head that the object is so many bytes larger than it is.
    Larger(u64),
    /// Flips a bit of the byte at this place of the object, where an answer covers it.
    Corrupt(u64),
    /// Answers a ranged request with 200 and everything.
    IgnoreRange,
    /// Answers although `If-Match` does not match.
    IgnoreIfMatch,
    /// Never answers the request at all.
    Silent,
}

/// When the origin does it.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) method: Option<&'static str>,
    pub(super) path: String,
    pub(super) covers: Option<u64>,
    pub(super) times: u64,
    pub(super) fault: Fault,
}

/// One request that was answered, or is being answered.
#[derive(Debug, Clone)]
pub(crate) struct Served {
    /// `GET` or `HEAD`.
    pub(crate) method: String,
    /// The object's path.
    pub(crate) path: String,
    /// The bytes that were asked for; everything if no range was given.
    pub(crate) range: Range<u64>,
    /// Whether a range was given.
    pub(crate) ranged: bool,
    /// Status of the answer.
    pub(crate) status: u16,
    /// Bytes of the body that went to the socket.
    pub(crate) sent: u64,
}

#[derive(Debug, Clone)]
pub(super) struct Object {
    pub(super) content: Content,
    pub(super) version: u32,
    pub(super) etag: bool,
    pub(super) redirect: Option<String>,
}

impl Object {
    pub(super) fn etag(&self) -> String {
        format!("\"version-{}\"", self.version)
    }

    pub(super) fn modified(&self) -> String {
        format!("Wed, 21 Oct 2026 07:28:{:02} GMT", self.version % 60)
    }
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) objects: BTreeMap<String, Object>,
    pub(super) rules: Vec<Rule>,
    pub(super) log: Vec<Served>,
    pub(super) rate: Option<u64>,
    pub(super) allowance: Option<u64>,
    /// Connections of an earlier age are cut.
    pub(super) age: u64,
    pub(super) connections: usize,
    pub(super) connections_peak: usize,
}

#[derive(Debug, Default)]
pub(super) struct World {
    pub(super) state: Mutex<State>,
    pub(super) moved: Notify,
}

impl World {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }
}

/// A running origin; ends when dropped.
#[derive(Debug)]
pub(crate) struct FaultOrigin {
    address: SocketAddr,
    world: Arc<World>,
    accepting: JoinHandle<()>,
}

impl Drop for FaultOrigin {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl FaultOrigin {
    /// Starts on a free port.
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("the loopback has free ports");
        let address = listener.local_addr().expect("it is bound");
        let world = Arc::new(World::default());
        let served = Arc::clone(&world);
        let accepting = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(converse(stream, Arc::clone(&served)));
                while connections.try_join_next().is_some() {}
            }
        });
        Self { address, world, accepting }
    }

    /// `host:port`.
    pub(crate) fn address(&self) -> String {
        self.address.to_string()
    }

    /// Where ComfyUI's layout starts.
    pub(crate) fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// Puts an object there, or another content (with another ETag) in its place.
    pub(crate) fn put(&self, path: &str, content: &Content) {
        let mut state = self.world.state();
        let version = state.objects.get(path).map_or(1, |object| object.version + 1);
        state.objects.insert(path.to_owned(), Object { content: content.clone(), version, etag: true, redirect: None });
    }

    /// Takes the ETag away: only size and Last-Modified are left.
    pub(crate) fn without_etag(&self, path: &str) {
        self.world.state().objects.get_mut(path).expect("the object is there").etag = false;
    }

    /// Answers requests for `path` with a redirect.
    pub(crate) fn redirect(&self, path: &str, location: String) {
        let object = Object { content: Content::raw(0, 0), version: 1, etag: false, redirect: Some(location) };
        self.world.state().objects.insert(path.to_owned(), object);
    }

    /// Puts a manifest there that names these models with what is given of their digests.
    pub(crate) fn put_manifest(&self, models: &[(&str, &Content, Option<String>, Option<String>)]) {
        let rows: Vec<_> = models
            .iter()
            .map(|(name, content, blake3, sha256)| {
                let mut row = serde_json::json!({ "name": name, "size": content.bytes() });
                for (key, digest) in [("blake3", blake3), ("sha256", sha256)] {
                    if let Some(digest) = digest {
                        row[key] = digest.clone().into();
                    }
                }
                row
            })
            .collect();
        let text = serde_json::json!({ "version": 1, "models": rows }).to_string();
        self.put("tierd-manifest.json", &Content::text(&text));
    }

    /// Removes an object.
    pub(crate) fn remove(&self, path: &str) {
        self.world.state().objects.remove(path);
    }

    /// Does `fault` for the next `times` requests of any method for `path`.
    pub(crate) fn fault(&self, path: &str, times: u64, fault: Fault) {
        self.rule(Rule { method: None, path: path.to_owned(), covers: None, times, fault });
    }

    /// Does `fault` for the next `times` GETs of `path`.
    pub(crate) fn fault_get(&self, path: &str, times: u64, fault: Fault) {
        self.rule(Rule { method: Some("GET"), path: path.to_owned(), covers: None, times, fault });
    }

    /// Does `fault` for the next `times` GETs of `path` that cover the byte at `offset`.
    pub(crate) fn fault_at(&self, path: &str, offset: u64, times: u64, fault: Fault) {
        self.rule(Rule { method: Some("GET"), path: path.to_owned(), covers: Some(offset), times, fault });
    }

    fn rule(&self, rule: Rule) {
        self.world.state().rules.push(rule);
    }

    /// Behaves from here on.
    pub(crate) fn heal(&self) {
        let mut state = self.world.state();
        state.rules.clear();
        state.rate = None;
        state.allowance = None;
        drop(state);
        self.world.moved.notify_waiters();
    }

    /// Sends at most so many bytes a second on each connection.
    pub(crate) fn limit_rate(&self, bytes_per_second: u64) {
        self.world.state().rate = Some(bytes_per_second);
    }

    /// Sends so many bytes of bodies, over all connections, then waits for the next word.
    pub(crate) fn allow(&self, bytes: u64) {
        self.world.state().allowance = Some(bytes);
        self.world.moved.notify_waiters();
    }

    /// Cuts every connection, so that nothing of an earlier client is left.
    pub(crate) fn hang_up(&self) {
        self.world.state().age += 1;
        self.world.moved.notify_waiters();
    }

    /// Every request so far.
    pub(crate) fn log(&self) -> Vec<Served> {
        self.world.state().log.clone()
    }

    /// GETs of `path` that were answered with its bytes or a part of them.
    pub(crate) fn gets(&self, path: &str) -> Vec<Served> {
        let mut log = self.log();
        log.retain(|served| served.method == "GET" && served.path == path && served.status < 300);
        log
    }

    /// Bytes sent of `path`.
    pub(crate) fn sent(&self, path: &str) -> u64 {
        self.gets(path).iter().map(|served| served.sent).sum()
    }

    /// Forgets the requests so far.
    pub(crate) fn forget(&self) {
        self.world.state().log.clear();
    }

    /// Most connections that were open at once.
    pub(crate) fn connections_peak(&self) -> usize {
        self.world.state().connections_peak
    }

    /// Waits until `bytes` of `path` were sent.
    pub(crate) async fn until_sent(&self, path: &str, bytes: u64, seconds: u64) {
        super::until(&format!("{bytes} bytes of {path} sent"), seconds, || async {
            (self.sent(path) >= bytes).then_some(())
        })
        .await;
    }
}

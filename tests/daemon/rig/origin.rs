//! An HTTP origin inside the test: objects in memory, every request counted, faults to the byte. Serves over raw sockets, so
//! that no library mends what a test breaks.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::Content;
use super::http::{Request, read_request};

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
struct Rule {
    method: Option<&'static str>,
    path: String,
    covers: Option<u64>,
    times: u64,
    fault: Fault,
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
struct Object {
    content: Content,
    version: u32,
    etag: bool,
    redirect: Option<String>,
}

impl Object {
    fn etag(&self) -> String {
        format!("\"version-{}\"", self.version)
    }

    fn modified(&self) -> String {
        format!("Wed, 21 Oct 2026 07:28:{:02} GMT", self.version % 60)
    }
}

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<String, Object>,
    rules: Vec<Rule>,
    log: Vec<Served>,
    rate: Option<u64>,
    allowance: Option<u64>,
    connections: usize,
    connections_peak: usize,
}

#[derive(Debug, Default)]
struct World {
    state: Mutex<State>,
    moved: Notify,
}

impl World {
    fn state(&self) -> MutexGuard<'_, State> {
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
        super::until(&format!("{bytes} bytes of {path} sent"), seconds, || async { (self.sent(path) >= bytes).then_some(()) })
            .await;
    }
}

async fn converse(mut stream: TcpStream, world: Arc<World>) {
    {
        let mut state = world.state();
        state.connections += 1;
        state.connections_peak = state.connections_peak.max(state.connections);
    }
    // An error here is a client that went away.
    let _ = serve(&mut stream, &world).await;
    world.state().connections -= 1;
}

async fn serve(stream: &mut TcpStream, world: &World) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut rest = Vec::new();
    while let Some(request) = read_request(stream, &mut rest).await? {
        let last = request.headers.get("connection").is_some_and(|word| word == "close");
        if !answer(stream, world, &request).await? || last {
            break;
        }
    }
    Ok(())
}

/// What one answer will be.
struct Plan {
    head: String,
    body: Range<u64>,
    fault: Option<Fault>,
    object: Option<Object>,
    entry: usize,
}

/// Answers one request. Says whether the connection goes on.
async fn answer(stream: &mut TcpStream, world: &World, request: &Request) -> io::Result<bool> {
    let plan = plan(world, request);
    if matches!(plan.fault, Some(Fault::Silent)) {
        wait_for_end(stream).await;
        return Ok(false);
    }
    stream.write_all(plan.head.as_bytes()).await?;
    let Some(object) = plan.object.filter(|_| request.method == "GET") else { return Ok(true) };
    let cut = match plan.fault {
        Some(Fault::Reset(after) | Fault::Stall(after) | Fault::Close(after)) => Some(after),
        _ => None,
    };
    let mut at = plan.body.start;
    let end = cut.map_or(plan.body.end, |after| plan.body.end.min(at.saturating_add(after)));
    while at < end {
        let mut part = object.content.slice(at..end, 256 << 10);
        if part.is_empty() {
            // The head promised more than there is.
            part = Bytes::from(vec![0; usize::try_from((end - at).min(256 << 10)).expect("small")]);
        }
        part = spend(world, part).await;
        if let Some(Fault::Corrupt(place)) = plan.fault
            && (at..at + part.len() as u64).contains(&place)
        {
            let mut bad = part.to_vec();
            bad[(place - at) as usize] ^= 1;
            part = bad.into();
        }
        stream.write_all(&part).await?;
        at += part.len() as u64;
        world.state().log.get_mut(plan.entry).into_iter().for_each(|served| served.sent += part.len() as u64);
    }
    match plan.fault {
        Some(Fault::Reset(_)) => {
            stream.set_zero_linger()?;
            Ok(false)
        }
        Some(Fault::Stall(_)) => {
            wait_for_end(stream).await;
            Ok(false)
        }
        Some(Fault::Close(_)) => Ok(false),
        _ => Ok(true),
    }
}

async fn wait_for_end(stream: &mut TcpStream) {
    let mut byte = [0];
    while let Ok(1..) = tokio::io::AsyncReadExt::read(stream, &mut byte).await {}
}

/// Waits for leave to send, and cuts the part down to it.
async fn spend(world: &World, mut part: Bytes) -> Bytes {
    loop {
        let moved = world.moved.notified();
        tokio::pin!(moved);
        moved.as_mut().enable();
        let rate = {
            let mut state = world.state();
            let rate = state.rate;
            match &mut state.allowance {
                Some(0) => None,
                Some(left) => {
                    part.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
                    *left -= part.len() as u64;
                    Some(rate)
                }
                None => Some(rate),
            }
        };
        match rate {
            Some(Some(rate)) => {
                tokio::time::sleep(Duration::from_secs_f64(part.len() as f64 / rate as f64)).await;
                return part;
            }
            Some(None) => return part,
            None => moved.await,
        }
    }
}

/// Decides on the answer, and takes it down.
fn plan(world: &World, request: &Request) -> Plan {
    let mut state = world.state();
    let object = state.objects.get(&request.path).cloned();
    let size = object.as_ref().map_or(0, |object| object.content.bytes());
    let asked = request.headers.get("range").and_then(|range| parse_range(range, size));
    let range = asked.clone().unwrap_or(0..size);
    let fault = take_fault(&mut state.rules, request, &range);
    let larger = if let Some(Fault::Larger(by)) = fault { by } else { 0 };
    let (status, body, mut headers) = match (&fault, &object) {
        (Some(Fault::Status(status, headers)), _) => (*status, 0..0, headers.clone()),
        (_, None) => (404, 0..0, Vec::new()),
        (_, Some(Object { redirect: Some(location), .. })) => (302, 0..0, vec![("Location", location.clone())]),
        (fault, Some(object)) if !holds(request, object) && !matches!(fault, Some(Fault::IgnoreIfMatch)) => {
            (412, 0..0, Vec::new())
        }
        (Some(Fault::IgnoreRange), Some(_)) => (200, 0..size, Vec::new()),
        _ if asked.as_ref().is_some_and(|range| range.start >= size) => (416, 0..0, Vec::new()),
        _ if asked.is_some() => {
            let shown = format!("bytes {}-{}/{}", range.start, range.end - 1, size + larger);
            (206, range.clone(), vec![("Content-Range", shown)])
        }
        _ => (200, 0..size + larger, Vec::new()),
    };
    let mut body = body;
    if let Some(Fault::Short(by)) = fault {
        body.end = body.end.saturating_sub(by).max(body.start);
    }
    if let Some(object) = object.as_ref().filter(|object| object.redirect.is_none()) {
        headers.push(("Last-Modified", object.modified()));
        headers.push(("Accept-Ranges", "bytes".to_owned()));
        if object.etag {
            headers.push(("ETag", object.etag()));
        }
    }
    let length = body.end - body.start;
    let mut head = format!("HTTP/1.1 {status} Told\r\nContent-Length: {length}\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    let entry = state.log.len();
    let (method, path) = (request.method.clone(), request.path.clone());
    state.log.push(Served { method, path, range, ranged: asked.is_some(), status, sent: 0 });
    let object = object.filter(|_| status < 300);
    Plan { head, body, fault, object, entry }
}

fn take_fault(rules: &mut [Rule], request: &Request, range: &Range<u64>) -> Option<Fault> {
    let rule = rules.iter_mut().find(|rule| {
        rule.times > 0
            && rule.path == request.path
            && rule.method.is_none_or(|method| method == request.method)
            && rule.covers.is_none_or(|offset| range.contains(&offset))
    })?;
    rule.times -= 1;
    Some(rule.fault.clone())
}

/// Whether the request's conditions hold.
fn holds(request: &Request, object: &Object) -> bool {
    let matches = request.headers.get("if-match").is_none_or(|tag| *tag == object.etag());
    let unmodified = request.headers.get("if-unmodified-since").is_none_or(|date| *date == object.modified());
    matches && unmodified
}

fn parse_range(text: &str, size: u64) -> Option<Range<u64>> {
    let (start, end) = text.strip_prefix("bytes=")?.split_once('-')?;
    let start = start.parse().ok()?;
    let end = end.parse::<u64>().map_or(size, |last| (last + 1).min(size));
    Some(start..end.max(start))
}

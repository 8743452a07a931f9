//! How the origin answers: heads and bodies to the byte, with the fault that was asked for.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::http::{Request, read_request};
use super::origin::{Fault, Object, Rule, Served, World};

/// Answers one connection to its end.
pub(super) async fn converse(mut stream: TcpStream, world: Arc<World>) {
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
    let age = world.state().age;
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
        part = spend(world, age, part).await?;
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
    while let Ok(1..) = stream.read(&mut byte).await {}
}

/// Waits for leave to send, and cuts the part down to it.
async fn spend(world: &World, age: u64, mut part: Bytes) -> io::Result<Bytes> {
    loop {
        let moved = world.moved.notified();
        tokio::pin!(moved);
        moved.as_mut().enable();
        let rate = {
            let mut state = world.state();
            if state.age != age {
                return Err(io::Error::other("hung up"));
            }
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
                return Ok(part);
            }
            Some(None) => return Ok(part),
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

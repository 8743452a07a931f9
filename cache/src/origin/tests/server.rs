//! A server that answers what it is told, byte for byte, and records what it was asked.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

/// What the server does with one request.
pub(crate) struct Reply {
    bytes: Vec<u8>,
    then: Then,
}

#[derive(Clone, Copy)]
enum Then {
    Keep,
    Close,
    Reset,
    Hang,
}

impl Reply {
    /// `head` without its final empty line, then the body. The connection stays open.
    pub(crate) fn new(head: &str, body: &[u8]) -> Self {
        let mut bytes = format!("HTTP/1.1 {}\r\n\r\n", head.replace('\n', "\r\n")).into_bytes();
        bytes.extend_from_slice(body);
        Self { bytes, then: Then::Keep }
    }

    /// A status with a body of known length and more headers.
    pub(crate) fn status(status: &str, headers: &str, body: &[u8]) -> Self {
        let headers = if headers.is_empty() { String::new() } else { format!("\n{headers}") };
        Self::new(&format!("{status}\nContent-Length: {}{headers}", body.len()), body)
    }

    /// Never answers.
    pub(crate) fn silence() -> Self {
        Self { bytes: Vec::new(), then: Then::Hang }
    }

    pub(crate) fn then_close(self) -> Self {
        Self { then: Then::Close, ..self }
    }

    pub(crate) fn then_reset(self) -> Self {
        Self { then: Then::Reset, ..self }
    }

    pub(crate) fn then_hang(self) -> Self {
        Self { then: Then::Hang, ..self }
    }
}

/// The server. It ends with the test's runtime.
pub(crate) struct Server {
    pub(crate) url: String,
    /// The heads of all requests so far.
    asked: Arc<Mutex<Vec<String>>>,
    /// Connections accepted so far.
    accepted: Arc<Mutex<usize>>,
    /// Told whenever a client closes a connection.
    pub(crate) closed: Arc<Notify>,
}

impl Server {
    /// Answers each request with `answer(number of the request from 0, its head)`. Bodies of requests are read first.
    pub(crate) async fn start(answer: impl Fn(usize, &str) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = Self { url, asked: Arc::default(), accepted: Arc::default(), closed: Arc::default() };
        let (asked, accepted, closed) = (server.asked.clone(), server.accepted.clone(), server.closed.clone());
        let answer = Arc::new(answer);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                *accepted.lock().unwrap() += 1;
                let (asked, closed, answer) = (asked.clone(), closed.clone(), answer.clone());
                tokio::spawn(async move {
                    serve(stream, &asked, &*answer).await;
                    closed.notify_one();
                });
            }
        });
        server
    }

    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    pub(crate) fn accepted(&self) -> usize {
        *self.accepted.lock().unwrap()
    }
}

async fn serve(
    mut stream: TcpStream,
    asked: &Mutex<Vec<String>>,
    answer: &(dyn Fn(usize, &str) -> Reply + Send + Sync),
) {
    while let Some(head) = read_request(&mut stream).await {
        let number = {
            let mut asked = asked.lock().unwrap();
            asked.push(head.clone());
            asked.len() - 1
        };
        let reply = answer(number, &head);
        if stream.write_all(&reply.bytes).await.is_err() {
            return;
        }
        match reply.then {
            Then::Keep => {}
            Then::Close => return,
            Then::Reset => {
                // What we wrote must arrive before the reset discards it.
                let _ = stream.read(&mut [0; 1]).now_or_never_ok();
                stream.set_zero_linger().unwrap();
                return;
            }
            Then::Hang => {
                let _ = stream.read(&mut [0; 1]).await;
                return;
            }
        }
    }
}

/// Polls a future once.
trait NowOrNever: Future + Sized {
    fn now_or_never_ok(self) -> Option<Self::Output> {
        futures_util::FutureExt::now_or_never(self)
    }
}

impl<F: Future> NowOrNever for F {}

/// The head of the next request, its body read and dropped; `None` when the client is gone.
async fn read_request(stream: &mut TcpStream) -> Option<String> {
    let (mut head, mut byte) = (Vec::new(), [0; 1]);
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).await.ok()? == 0 {
            return None;
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some(head)
}

//! A connection that holds one of a listener's places as long as it is open, and is open only as long as its peer lives: one that says
//! nothing at first, or takes nothing of what it is sent, is let go.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use tonic::transport::server::Connected;

/// Bytes by which a peer has said which HTTP it speaks: the preface of HTTP/2. No request of HTTP/1.1 is shorter.
const OPENING_BYTES: usize = 24;
/// How long it may take to say that: a stranger must not hold a place by saying nothing.
const OPENING_MAX: Duration = Duration::from_secs(10);
/// How long it may take nothing at all of what it is sent. What is behind a slow link still takes something.
const UNREAD_MAX: Duration = Duration::from_secs(40);
/// How long a TCP connection is silent before the kernel asks whether its peer is there, how often it asks, and how many answers
/// may be missing.
const PROBE: (Duration, Duration, u32) = (Duration::from_secs(20), Duration::from_secs(10), 3);

/// The places of a listener. One address has at most a part of them.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    all: Arc<Semaphore>,
    address_max: u32,
    /// Of every address that has a place: never more than there are places.
    taken: Arc<Mutex<HashMap<IpAddr, u32>>>,
}

/// A place, given back on drop.
#[derive(Debug)]
pub(crate) struct Place {
    places: Places,
    address: Option<IpAddr>,
    _permit: OwnedSemaphorePermit,
}

impl Places {
    pub(crate) fn new(all: usize, address_max: u32) -> Self {
        Self { all: Arc::new(Semaphore::new(all)), address_max, taken: Arc::default() }
    }

    /// Waits for a place.
    pub(crate) async fn take(&self) -> Place {
        let permit = Arc::clone(&self.all).acquire_owned().await.expect("this semaphore is never closed");
        Place { places: self.clone(), address: None, _permit: permit }
    }
}

impl Place {
    /// The place as one of this address; none if that one has its part already.
    pub(crate) fn of(mut self, address: IpAddr) -> Option<Self> {
        let mut taken = self.places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(address).or_default();
        if *count >= self.places.address_max {
            return None;
        }
        *count += 1;
        drop(taken);
        self.address = Some(address);
        Some(self)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(address) = self.address else { return };
        let mut taken = self.places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&address);
            }
        }
    }
}

/// Lets the kernel notice a peer that is gone without a word, beneath whatever is spoken: a machine that lost its power sends no end. The
/// pings of HTTP/2 do the same above; HTTP/1.1 has none.
pub(crate) fn notice_a_lost_peer(stream: &TcpStream) {
    let (idle, interval, misses) = PROBE;
    let probes = TcpKeepalive::new().with_time(idle).with_interval(interval).with_retries(misses);
    let socket = SockRef::from(stream);
    let set = socket.set_tcp_keepalive(&probes).and_then(|()| socket.set_tcp_user_timeout(Some(UNREAD_MAX)));
    if let Err(error) = set {
        tracing::debug!(%error, "the kernel does not watch this connection: a lost peer is noticed later");
    }
}

/// A stream with its place.
#[derive(Debug)]
pub(crate) struct Connection<S> {
    stream: S,
    /// Until the peer has said what it speaks.
    opening: Option<Opening>,
    /// When it is given up, while it takes nothing of what it is sent.
    unread: Option<Pin<Box<Sleep>>>,
    _place: Place,
}

/// What a peer still has to say before it counts as one.
#[derive(Debug)]
struct Opening {
    bytes_left: usize,
    end: Pin<Box<Sleep>>,
}

impl<S> Connection<S> {
    pub(crate) fn new(stream: S, place: Place) -> Self {
        let opening = Opening { bytes_left: OPENING_BYTES, end: Box::pin(tokio::time::sleep(OPENING_MAX)) };
        Self { stream, opening: Some(opening), unread: None, _place: place }
    }

    /// Counts what was read while the peer opens; waits no longer than it may take.
    fn heard(&mut self, cx: &mut Context<'_>, read: Poll<usize>) -> Poll<io::Result<()>> {
        let Some(opening) = &mut self.opening else { return read.map(|_| Ok(())) };
        match read {
            Poll::Ready(bytes) => {
                opening.bytes_left = opening.bytes_left.saturating_sub(bytes);
                if opening.bytes_left == 0 {
                    self.opening = None;
                }
                Poll::Ready(Ok(()))
            }
            Poll::Pending => {
                ready!(opening.end.as_mut().poll(cx));
                Poll::Ready(Err(late("it did not say what it speaks", OPENING_MAX)))
            }
        }
    }

    /// Waits no longer than the peer may take nothing.
    fn taken<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.unread = None;
            return written;
        }
        let end = self.unread.get_or_insert_with(|| Box::pin(tokio::time::sleep(UNREAD_MAX)));
        ready!(end.as_mut().poll(cx));
        Poll::Ready(Err(late("it takes nothing of what it is sent", UNREAD_MAX)))
    }
}

fn late(what: &str, wait: Duration) -> io::Error {
    tracing::debug!(seconds = wait.as_secs(), "a connection is let go: {what}");
    io::Error::new(io::ErrorKind::TimedOut, format!("{what} for {} s", wait.as_secs()))
}

impl<S: Connected> Connected for Connection<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> S::ConnectInfo {
        self.stream.connect_info()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf)?;
        self.heard(cx, read.map(|()| buf.filled().len() - before))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.taken(cx, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.taken(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.taken(cx, shut)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.taken(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::time::Instant;

    use super::*;

    /// A connection, and its peer, between which so many bytes find room.
    async fn connection(room: usize) -> (Connection<DuplexStream>, DuplexStream) {
        let (ours, theirs) = duplex(room);
        (Connection::new(ours, Places::new(1, 1).take().await), theirs)
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_says_nothing_or_half_a_word_is_let_go_and_one_that_spoke_may_be_silent() {
        for word in ["", "PRI * HTTP/2.0\r\n"] {
            let (mut ours, mut theirs) = connection(64).await;
            theirs.write_all(word.as_bytes()).await.expect("there is room");
            let begun = Instant::now();
            let error = ours.read_to_end(&mut Vec::new()).await.expect_err("it is let go");
            assert_eq!((error.kind(), begun.elapsed()), (io::ErrorKind::TimedOut, OPENING_MAX), "{word:?}");
        }
        let (mut ours, mut theirs) = connection(64).await;
        theirs.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").await.expect("there is room");
        let mut heard = [0; 27];
        ours.read_exact(&mut heard).await.expect("it spoke");
        let later = tokio::time::timeout(10 * OPENING_MAX, ours.read_u8()).await;
        assert!(later.is_err(), "its silence between two requests is HTTP's to judge");
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_takes_nothing_is_let_go_and_one_that_takes_a_little_now_and_then_is_not() {
        let (mut ours, mut theirs) = connection(8).await;
        let reading = tokio::spawn(async move {
            for _ in 0..4 {
                tokio::time::sleep(UNREAD_MAX / 2).await;
                theirs.read_u8().await.expect("there is something");
            }
            theirs
        });
        ours.write_all(&[0; 12]).await.expect("a slow one takes it all");
        let _theirs = reading.await.expect("it does not panic");
        let begun = Instant::now();
        let error = ours.write_all(&[0; 9]).await.expect_err("nobody reads");
        assert_eq!((error.kind(), begun.elapsed()), (io::ErrorKind::TimedOut, UNREAD_MAX));
    }

    #[tokio::test]
    async fn one_address_has_its_part_of_the_places_and_gives_them_back() {
        let places = Places::new(3, 1);
        let (one, other) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let first = places.take().await.of(one).expect("the first");
        assert!(places.take().await.of(one).is_none());
        let _theirs = places.take().await.of(other).expect("another address");
        drop(first);
        assert!(places.take().await.of(one).is_some());
        assert_eq!(places.taken.lock().expect("not poisoned").len(), 1, "an address without a place is forgotten");
    }
}

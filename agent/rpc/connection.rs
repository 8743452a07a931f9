//! A connection that holds one of a listener's places as long as it is open.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::transport::server::Connected;

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

/// A stream with its place.
#[derive(Debug)]
pub(crate) struct Connection<S> {
    stream: S,
    _place: Place,
}

impl<S> Connection<S> {
    pub(crate) fn new(stream: S, place: Place) -> Self {
        Self { stream, _place: place }
    }
}

impl<S: Connected> Connected for Connection<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> S::ConnectInfo {
        self.stream.connect_info()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

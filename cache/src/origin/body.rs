//! The bytes of one read as they arrive: counted, never silent for longer than the limit, never longer or shorter than
//! promised. Does not verify content and does not try again.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::error::{OriginError, find, innermost};
use super::folder::FileRead;
use super::pulse::Pulse;

/// A read in progress. Dropping it stops the read.
#[derive(Debug)]
pub struct Body {
    from: From,
    path: String,
    got: u64,
    want: u64,
    stall: Duration,
    pulse: Arc<Pulse>,
}

#[derive(Debug)]
enum From {
    /// Nothing more will come: it ended, or failed.
    Done,
    Wire(Incoming),
    File(FileRead),
}

impl Body {
    pub(crate) fn empty(path: &str, pulse: &Arc<Pulse>) -> Self {
        Self {
            from: From::Done,
            path: path.to_owned(),
            got: 0,
            want: 0,
            stall: Duration::ZERO,
            pulse: Arc::clone(pulse),
        }
    }

    pub(crate) fn wire(incoming: Incoming, path: &str, want: u64, stall: Duration, pulse: &Arc<Pulse>) -> Self {
        Self { from: From::Wire(incoming), want, stall, ..Self::empty(path, pulse) }
    }

    pub(crate) fn file(file: FileRead, path: &str, want: u64, stall: Duration, pulse: &Arc<Pulse>) -> Self {
        Self { from: From::File(file), want, stall, ..Self::empty(path, pulse) }
    }

    /// The next bytes, in order; `None` after the last. A chunk has at most 1 MiB, and is best dropped (or copied)
    /// before the next is asked for: its memory is then used again.
    ///
    /// # Errors
    ///
    /// `Stalled`, `Reset`, `Truncated`, `TooLong`, `Changed` (a folder's file that was rewritten) or `Local`. After an
    /// error comes `None`.
    pub async fn next(&mut self) -> Option<Result<Bytes, OriginError>> {
        if matches!(self.from, From::Done) {
            return None;
        }
        let next = match tokio::time::timeout(self.stall, Self::more(&mut self.from, &self.path)).await {
            Ok(next) => next,
            Err(_) => Some(Err(OriginError::Stalled {
                path: self.path.clone(),
                after: self.stall,
                got: self.got,
                want: self.want,
            })),
        };
        let result = match next {
            None if self.got == self.want => {
                self.from = From::Done;
                return None;
            }
            None => Err(self.truncated()),
            // Bytes that were promised and did not come: hyper knows it from Content-Length or the chunks.
            Some(Err(OriginError::Truncated { .. })) => Err(self.truncated()),
            Some(Err(error)) => Err(error),
            Some(Ok(bytes)) => {
                self.got += bytes.len() as u64;
                if self.got <= self.want {
                    return Some(Ok(bytes));
                }
                Err(OriginError::TooLong { path: self.path.clone(), want: self.want })
            }
        };
        self.from = From::Done;
        if let Err(error) = &result {
            self.pulse.bad(error);
        }
        Some(result)
    }

    fn truncated(&self) -> OriginError {
        OriginError::Truncated { path: self.path.clone(), got: self.got, want: self.want }
    }

    async fn more(from: &mut From, path: &str) -> Option<Result<Bytes, OriginError>> {
        match from {
            From::Done => None,
            From::File(file) => file.next(path).await,
            From::Wire(incoming) => loop {
                match incoming.frame().await? {
                    Err(error) => return Some(Err(broken(path, &error))),
                    Ok(frame) => {
                        // Trailers carry no byte of the object.
                        if let Ok(bytes) = frame.into_data()
                            && !bytes.is_empty()
                        {
                            return Some(Ok(bytes));
                        }
                    }
                }
            },
        }
    }

    /// Collects a body whose length is not known before, of at most `max` bytes.
    pub(crate) async fn collect(
        incoming: Incoming,
        path: &str,
        max: usize,
        stall: Duration,
    ) -> Result<Vec<u8>, OriginError> {
        let mut from = From::Wire(incoming);
        let mut all = Vec::new();
        loop {
            let next = tokio::time::timeout(stall, Self::more(&mut from, path)).await.map_err(|_| {
                let got = all.len() as u64;
                OriginError::Stalled { path: path.to_owned(), after: stall, got, want: got + 1 }
            })?;
            let Some(bytes) = next.transpose()? else { return Ok(all) };
            if all.len() + bytes.len() > max {
                return Err(OriginError::TooLong { path: path.to_owned(), want: max as u64 });
            }
            all.extend_from_slice(&bytes);
        }
    }
}

/// What a broken body means.
fn broken(path: &str, error: &hyper::Error) -> OriginError {
    let ended = find::<std::io::Error>(error).is_some_and(|io| io.kind() == std::io::ErrorKind::UnexpectedEof);
    if ended || error.is_incomplete_message() {
        return OriginError::Truncated { path: path.to_owned(), got: 0, want: 0 };
    }
    OriginError::Reset { path: path.to_owned(), detail: innermost(error) }
}

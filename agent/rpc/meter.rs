//! The two metrics of a call: counted when it ends, however it ends.

use std::pin::Pin;
use std::task::{Context, Poll};

use http::HeaderMap;
use http_body::{Frame, SizeHint};
use tierd_cache::metrics;
use tokio::time::Instant;
use tonic::body::Body;
use tonic::codegen::Bytes;
use tonic::{Code, Status};

use crate::rpc::gate::Admitted;

/// Counts a call when it is dropped, however it ended.
pub(crate) struct Meter {
    pub(crate) method: &'static str,
    pub(crate) begun: Instant,
    /// How it ended, as soon as that is known.
    pub(crate) code: Option<Code>,
}

impl Meter {
    /// Reads how the call ended, if it says so here.
    pub(crate) fn read(&mut self, headers: &HeaderMap) {
        if let Some(code) = headers.get("grpc-status") {
            self.code = Some(Code::from_bytes(code.as_bytes()));
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        // No status: the caller hung up, or its deadline passed, before there was one.
        let code = word(self.code.unwrap_or(Code::Cancelled));
        metrics::rpc_ended(self.method, code);
    }
}

/// A status code as metrics spell it.
fn word(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// An answer's body that keeps what its call holds and reads the status as it passes.
pub(crate) struct Metered {
    inner: Body,
    /// None for the node pack's endpoints, which count their messages themselves.
    meter: Option<Meter>,
    _held: Option<Admitted>,
}

impl Metered {
    pub(crate) fn new(inner: Body, meter: Option<Meter>, held: Option<Admitted>) -> Self {
        Self { inner, meter, _held: held }
    }
}

impl http_body::Body for Metered {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(trailers) = frame.trailers_ref()
            && let Some(meter) = &mut self.meter
        {
            meter.read(trailers);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

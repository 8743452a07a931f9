//! What runs beside the loop: what the loop keeps of it, and what it reports when it is done.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::catalog::OriginSnapshot;
use crate::engine::event::Event;
use crate::engine::sources::Located;
use crate::engine::view::EvictReport;
use crate::fault::Fault;
use crate::ids::{BlobId, FlightId, ModelKey, OriginName};
use crate::manifest::Manifest;
use crate::piece::Cv;
use crate::store::Partial;

/// What work reports to the loop.
#[derive(Debug)]
pub(crate) enum Done {
    Event(Event),
    Opened(FlightId, Result<Opened, Fault>),
    Listed(OriginName, Result<OriginSnapshot, Fault>, Option<oneshot::Sender<Result<(), Fault>>>),
    Located(ModelKey, Result<Located, Fault>),
    Relocated(FlightId, OriginName, Result<Option<Found>, Fault>),
    /// A lock ended; before it, so many bytes were in the page cache already.
    Held(BlobId, u64, Result<Arc<crate::resident::Held>, Fault>),
    Pressed(crate::resident::pressure::Pressure),
    Noted(u64),
    Hinted(crate::engine::hints::Looked),
    ReserveImport(u64, oneshot::Sender<Result<(), Fault>>),
    UnreserveImport(u64),
}

/// An open unfinished blob, and its pieces that have been verified again.
pub(crate) type Opened = (Arc<Partial>, Vec<(u32, Cv)>);

/// What looking a source up again found.
pub(crate) type Found = (crate::catalog::Listed, Option<Manifest>, crate::engine::event::Relocated);

/// A request that is under way.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) stop: CancellationToken,
    pub(crate) received: Arc<AtomicU64>,
}

/// An eviction whose answer waits until the bytes are gone.
#[derive(Debug)]
pub(crate) struct Evicting {
    pub(crate) waiting: Vec<BlobId>,
    pub(crate) report: EvictReport,
    pub(crate) reply: oneshot::Sender<Result<EvictReport, Fault>>,
}

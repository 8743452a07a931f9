//! How an origin has been answering lately: counters and the last word. Decides nothing; the engine reads it.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::error::OriginError;
use crate::engine::view::OriginState;

/// What is known of an origin's state. A copy: it does not change by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Whether its last answer was a good one.
    pub state: OriginState,
    /// What went wrong last; empty while it is up.
    pub detail: String,
    /// Connections open now, idle ones included. Always 0 for a folder.
    pub connections_open: u32,
    /// Requests sent since the start, redirects included. For a folder: reads and listings.
    pub requests: u64,
    /// Requests and bodies among them that failed. An absent object is no failure.
    pub errors: u64,
}

/// The counters behind [`Health`], shared by all who speak to one origin.
#[derive(Debug)]
pub(crate) struct Pulse {
    /// Connections open now; the dialler keeps it.
    pub(crate) open: Arc<AtomicU32>,
    requests: AtomicU64,
    errors: AtomicU64,
    last: Mutex<(OriginState, String)>,
}

impl Default for Pulse {
    fn default() -> Self {
        Self {
            open: Arc::default(),
            requests: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            last: Mutex::new((OriginState::Unknown, String::new())),
        }
    }
}

impl Pulse {
    /// A request is about to be sent.
    pub(crate) fn request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// A good answer came.
    pub(crate) fn good(&self) {
        self.set(OriginState::Up, String::new());
    }

    /// A request or a body failed. An answer that says no about one object is still a good answer.
    pub(crate) fn bad(&self, error: &OriginError) {
        match error {
            OriginError::NotFound { .. } => self.good(),
            OriginError::Changed { .. } | OriginError::RangeIgnored { .. } | OriginError::Refused { .. } => {
                self.errors.fetch_add(1, Ordering::Relaxed);
                self.good();
            }
            OriginError::Throttled { .. } => {
                self.errors.fetch_add(1, Ordering::Relaxed);
                self.set(OriginState::Throttled, error.to_string());
            }
            OriginError::Denied { .. }
            | OriginError::Server { .. }
            | OriginError::BadAnswer { .. }
            | OriginError::Timeout { .. }
            | OriginError::Stalled { .. }
            | OriginError::Connect { .. }
            | OriginError::Reset { .. }
            | OriginError::Truncated { .. }
            | OriginError::TooLong { .. }
            | OriginError::TooMany { .. }
            | OriginError::Manifest { .. }
            | OriginError::Unsupported(_)
            | OriginError::Config(_)
            | OriginError::Local { .. } => {
                self.errors.fetch_add(1, Ordering::Relaxed);
                self.set(OriginState::Down, error.to_string());
            }
        }
    }

    /// The present state.
    pub(crate) fn health(&self) -> Health {
        let (state, detail) = self.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Health {
            state,
            detail,
            connections_open: self.open.load(Ordering::Relaxed),
            requests: self.requests.load(Ordering::Relaxed),
            errors: self.errors.load(Ordering::Relaxed),
        }
    }

    fn set(&self, state: OriginState, detail: String) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        // The common case, once a piece, does not drop and store an empty text.
        if last.0 != state || last.1 != detail {
            *last = (state, detail);
        }
    }
}

//! The ways in which an origin can fail us, and what each means to the rest. Every message carries the path, the
//! status and a short reason; none carries a credential, a signed query or the user part of an address.

use std::time::Duration;

use crate::fault::Fault;
use crate::ids::{ModelKey, OriginName};
use crate::manifest::ManifestError;

/// Longest reason that is repeated from an origin or the system, in characters.
const REASON_CHARS_MAX: usize = 200;

/// Why an origin did not give what it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OriginError {
    /// There is no such object.
    #[error("{path} is not there")]
    NotFound {
        /// What was asked for, as the origin spells it.
        path: String,
    },
    /// It refuses our credentials, or has no such bucket.
    #[error("{path}: refused with status {status} ({reason})")]
    Denied {
        /// What was asked for.
        path: String,
        /// The HTTP status.
        status: u16,
        /// What it said: an S3 error code, or the status in words.
        reason: String,
    },
    /// The object is not the one that was listed: replaced, or replaced while it was read.
    #[error("{path} has changed: {detail}")]
    Changed {
        /// The object.
        path: String,
        /// What differs.
        detail: String,
    },
    /// It answers a range with the whole object. Read it whole.
    #[error("{path}: the server ignores ranges")]
    RangeIgnored {
        /// The object.
        path: String,
    },
    /// It asks us to slow down (status 429 or 503).
    #[error("{path}: asked to slow down with status {status} ({reason})")]
    Throttled {
        /// What was asked for.
        path: String,
        /// The HTTP status.
        status: u16,
        /// How long it asks us to wait, if it says.
        retry_after: Option<Duration>,
        /// What it said.
        reason: String,
    },
    /// It failed (another status of 500 or above).
    #[error("{path}: the server failed with status {status} ({reason})")]
    Server {
        /// What was asked for.
        path: String,
        /// The HTTP status.
        status: u16,
        /// What it said.
        reason: String,
    },
    /// It answers with a status that makes no sense here.
    #[error("{path}: unexpected status {status} ({reason})")]
    Refused {
        /// What was asked for.
        path: String,
        /// The HTTP status.
        status: u16,
        /// What it said.
        reason: String,
    },
    /// Its answer cannot be used.
    #[error("{path}: unusable answer: {detail}")]
    BadAnswer {
        /// What was asked for.
        path: String,
        /// What is wrong with it.
        detail: String,
    },
    /// Something took longer than its limit.
    #[error("{path}: {what} took longer than {after:?}")]
    Timeout {
        /// What was asked for.
        path: String,
        /// `connecting` or `the first byte of the answer`.
        what: &'static str,
        /// The limit.
        after: Duration,
    },
    /// A body fell silent.
    #[error("{path}: no byte for {after:?} after {got} of {want} bytes")]
    Stalled {
        /// The object.
        path: String,
        /// The limit.
        after: Duration,
        /// Bytes that came.
        got: u64,
        /// Bytes that were due.
        want: u64,
    },
    /// It could not be reached.
    #[error("{path}: cannot connect: {detail}")]
    Connect {
        /// What was asked for.
        path: String,
        /// The system's answer.
        detail: String,
    },
    /// The connection broke.
    #[error("{path}: the connection broke: {detail}")]
    Reset {
        /// What was asked for.
        path: String,
        /// The system's answer.
        detail: String,
    },
    /// A body ended early.
    #[error("{path}: the body ended after {got} of {want} bytes")]
    Truncated {
        /// The object.
        path: String,
        /// Bytes that came.
        got: u64,
        /// Bytes that were due.
        want: u64,
    },
    /// A body is longer than it may be.
    #[error("{path}: the body is longer than the {want} bytes due")]
    TooLong {
        /// The object.
        path: String,
        /// Bytes that were due.
        want: u64,
    },
    /// The origin lists more than we hold.
    #[error("more than {max} objects: set a prefix for this origin")]
    TooMany {
        /// The limit.
        max: usize,
    },
    /// Its manifest cannot be used.
    #[error("{path}: {source}")]
    Manifest {
        /// The manifest's path.
        path: String,
        /// What is wrong with it.
        source: ManifestError,
    },
    /// This kind of origin cannot do this.
    #[error("{0}")]
    Unsupported(String),
    /// The configuration, or what the user asked for, cannot be used.
    #[error("{0}")]
    Config(String),
    /// A file on this machine could not be read or written.
    #[error("{path}: {detail}")]
    Local {
        /// The file or folder.
        path: String,
        /// The system's answer.
        detail: String,
    },
}

impl OriginError {
    /// The HTTP status that was answered, if one was.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Denied { status, .. }
            | Self::Throttled { status, .. }
            | Self::Server { status, .. }
            | Self::Refused { status, .. } => Some(*status),
            Self::NotFound { .. }
            | Self::Changed { .. }
            | Self::RangeIgnored { .. }
            | Self::BadAnswer { .. }
            | Self::Timeout { .. }
            | Self::Stalled { .. }
            | Self::Connect { .. }
            | Self::Reset { .. }
            | Self::Truncated { .. }
            | Self::TooLong { .. }
            | Self::TooMany { .. }
            | Self::Manifest { .. }
            | Self::Unsupported(_)
            | Self::Config(_)
            | Self::Local { .. } => None,
        }
    }

    /// How long the origin asks us to wait, if it said.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        if let Self::Throttled { retry_after, .. } = self { *retry_after } else { None }
    }

    /// Whether the same request may succeed a little later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Throttled { .. }
            | Self::Server { .. }
            | Self::Timeout { .. }
            | Self::Stalled { .. }
            | Self::Connect { .. }
            | Self::Reset { .. }
            | Self::Truncated { .. }
            | Self::TooLong { .. }
            | Self::BadAnswer { .. } => true,
            Self::NotFound { .. }
            | Self::Denied { .. }
            | Self::Changed { .. }
            | Self::RangeIgnored { .. }
            | Self::Refused { .. }
            | Self::TooMany { .. }
            | Self::Manifest { .. }
            | Self::Unsupported(_)
            | Self::Config(_)
            | Self::Local { .. } => false,
        }
    }

    /// What this means to a caller who asked for `what` (a model's key, where there is one).
    #[must_use]
    pub fn fault(&self, origin: &OriginName, what: &str) -> Fault {
        let unavailable = || Fault::OriginUnavailable {
            origin: origin.clone(),
            status: self.status(),
            retry_after: self.retry_after(),
            detail: self.to_string(),
        };
        match self {
            Self::NotFound { .. } => {
                Fault::NotFound { what: what.to_owned(), hint: format!("origin {origin} does not have it any more") }
            }
            Self::Denied { status, .. } => {
                Fault::OriginDenied { origin: origin.clone(), status: Some(*status), detail: self.to_string() }
            }
            Self::Changed { .. } => match ModelKey::parse(what) {
                Ok(model) => Fault::Changed { model, origin: origin.clone() },
                Err(_) => unavailable(),
            },
            Self::Config(reason) => Fault::Invalid { field: "origin", reason: reason.clone() },
            Self::RangeIgnored { .. }
            | Self::Throttled { .. }
            | Self::Server { .. }
            | Self::Refused { .. }
            | Self::BadAnswer { .. }
            | Self::Timeout { .. }
            | Self::Stalled { .. }
            | Self::Connect { .. }
            | Self::Reset { .. }
            | Self::Truncated { .. }
            | Self::TooLong { .. }
            | Self::TooMany { .. }
            | Self::Manifest { .. }
            | Self::Unsupported(_)
            | Self::Local { .. } => unavailable(),
        }
    }

    /// A file error on this machine.
    pub(crate) fn local(path: impl std::fmt::Display, error: &std::io::Error) -> Self {
        Self::Local { path: path.to_string(), detail: short(&error.to_string()) }
    }
}

/// One line of at most 200 characters, safe to repeat in a log: control characters become spaces.
pub(crate) fn short(text: &str) -> String {
    text.chars().take(REASON_CHARS_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// The innermost error of a chain: what the system said, without the layers that repeat it.
pub(crate) fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut inner = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    short(&inner.to_string())
}

/// The first error of type `E` in a chain.
pub(crate) fn find<'a, E: std::error::Error + 'static>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found);
        }
        // An io::Error hands on its content's source, not the content.
        let content = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        if let Some(found) = content.and_then(|content| content.downcast_ref::<E>()) {
            return Some(found);
        }
        next = error.source();
    }
    None
}

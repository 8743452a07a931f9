//! How requests and ensures end, as labels: closed sets of words. Counts nothing.

/// How a ranged request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RequestOutcome {
    /// All its bytes came.
    Ok,
    /// The object is another one now.
    Changed,
    /// The origin asked us to wait: 429 or 503.
    Throttled,
    /// Another 5xx.
    ServerError,
    /// No answer in time.
    Timeout,
    /// Silence inside the answer.
    Stalled,
    /// The connection broke.
    Reset,
    /// The answer ended early.
    Truncated,
    /// Credentials refused: 401 or 403.
    Denied,
    /// No such object: 404 or 410.
    NotFound,
    /// Anything else.
    Other,
}

impl RequestOutcome {
    /// Its label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Changed => "changed",
            Self::Throttled => "throttled",
            Self::ServerError => "server_error",
            Self::Timeout => "timeout",
            Self::Stalled => "stalled",
            Self::Reset => "reset",
            Self::Truncated => "truncated",
            Self::Denied => "denied",
            Self::NotFound => "not_found",
            Self::Other => "other",
        }
    }
}

/// How an ensure ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EnsureOutcome {
    /// Everything was there.
    Hit,
    /// Something was fetched for it.
    Fetched,
    /// It waited for flights of others only.
    Joined,
    /// At least one model could not be made ready.
    Failed,
}

impl EnsureOutcome {
    /// Its label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Fetched => "fetched",
            Self::Joined => "joined",
            Self::Failed => "failed",
        }
    }
}

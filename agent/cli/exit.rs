//! Exit codes and failures: the one table of what a script may rely on, and how a status becomes a code and a text.

use std::fmt;
use std::io;

use tierd_cache::fault::Fault;
use tonic::{Code, Status};

use crate::rpc::fault;
use crate::rpc::pb::{self, FaultKind};

/// How the process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done as asked.
    Ok = 0,
    /// Failed for a reason that has no code of its own.
    Failed = 1,
    /// The command line or the configuration is wrong.
    Usage = 2,
    /// A model, flight, lease or origin is not known.
    NotFound = 3,
    /// The budget of the disk or of RAM has no room, or the disk itself.
    NoRoom = 4,
    /// An origin does not answer, refuses, or its object keeps changing.
    Origin = 5,
    /// Bytes are not what their digest says.
    Corrupt = 6,
    /// The thing is pinned, leased, in flight or loaded.
    Held = 7,
    /// No daemon answers, or it is shutting down.
    Unreachable = 8,
    /// The deadline passed, or someone cancelled or interrupted it.
    Interrupted = 9,
    /// A limit of the daemon is reached: try again.
    Busy = 10,
    /// The daemon refuses this caller.
    Denied = 11,
}

impl Exit {
    /// Every code, in order.
    pub const ALL: [Self; 12] = [
        Self::Ok,
        Self::Failed,
        Self::Usage,
        Self::NotFound,
        Self::NoRoom,
        Self::Origin,
        Self::Corrupt,
        Self::Held,
        Self::Unreachable,
        Self::Interrupted,
        Self::Busy,
        Self::Denied,
    ];

    /// What the code means, as the help says it.
    #[must_use]
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Ok => "done as asked",
            Self::Failed => "failed for a reason that has no code of its own",
            Self::Usage => "the command line or the configuration is wrong",
            Self::NotFound => "a model, flight, lease or origin is not known",
            Self::NoRoom => "the budget of the disk or of RAM has no room, or the disk itself",
            Self::Origin => "an origin does not answer, refuses, or its object keeps changing",
            Self::Corrupt => "bytes are not what their digest says",
            Self::Held => "pinned, leased, in flight or loaded",
            Self::Unreachable => "no daemon answers, or it is shutting down",
            Self::Interrupted => "the deadline passed, or someone cancelled or interrupted it",
            Self::Busy => "a limit of the daemon is reached: try again",
            Self::Denied => "the daemon refuses this caller: token, certificate, role, or not over TCP",
        }
    }

    /// The table of all codes for `--help`.
    #[must_use]
    pub fn table() -> String {
        let row = |exit: Self| format!("  {:>2}  {}", exit as u8, exit.meaning());
        format!("Exit codes:\n{}", Self::ALL.map(row).join("\n"))
    }

    /// The code of a kind of fault.
    #[must_use]
    pub fn of_kind(kind: FaultKind) -> Self {
        match kind {
            FaultKind::Unspecified | FaultKind::Store => Self::Failed,
            FaultKind::Invalid => Self::Usage,
            FaultKind::NotFound => Self::NotFound,
            FaultKind::NoRoom | FaultKind::NoMemory | FaultKind::DiskFull => Self::NoRoom,
            FaultKind::Corrupt => Self::Corrupt,
            FaultKind::Changed | FaultKind::OriginUnavailable | FaultKind::OriginDenied => Self::Origin,
            FaultKind::Held => Self::Held,
            FaultKind::Busy => Self::Busy,
            FaultKind::Cancelled | FaultKind::DeadlineExceeded => Self::Interrupted,
            FaultKind::ShuttingDown => Self::Unreachable,
        }
    }
}

/// Why a command failed: its exit code and its text, and the daemon's fault if there is one.
#[derive(Debug)]
pub struct Failure {
    /// How the process ends.
    pub exit: Exit,
    /// For people. Empty if everything was said already.
    pub text: String,
    /// For `--json`.
    pub fault: Option<Box<pb::Fault>>,
}

/// What every command returns.
pub type Outcome = Result<(), Failure>;

impl Failure {
    /// A failure with a text.
    #[must_use]
    pub fn new(exit: Exit, text: impl fmt::Display) -> Self {
        Self { exit, text: text.to_string(), fault: None }
    }

    /// A failure that has been told already.
    #[must_use]
    pub fn told(exit: Exit) -> Self {
        Self::new(exit, "")
    }

    /// The object that `--json` prints.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        match &self.fault {
            Some(fault) => serde_json::json!({ "error": fault, "exit": self.exit as u8 }),
            None => serde_json::json!({ "error": { "text": self.text }, "exit": self.exit as u8 }),
        }
    }
}

impl From<pb::Fault> for Failure {
    fn from(fault: pb::Fault) -> Self {
        Self { exit: Exit::of_kind(fault.kind()), text: fault.text.clone(), fault: Some(Box::new(fault)) }
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        pb::Fault::from(&fault).into()
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        // A status with a cause was made on this side: the connection failed, the daemon said nothing.
        if let Some(cause) = std::error::Error::source(&status) {
            let why = crate::rpc::chain(cause);
            return Self::new(Exit::Unreachable, format_args!("the connection to the daemon failed: {why}"));
        }
        let fault = fault::of_status(&status);
        if fault.kind() != FaultKind::Unspecified {
            return fault.into();
        }
        // A status that is not the daemon's own: the transport's, or the gate's.
        let exit = match status.code() {
            Code::Unauthenticated | Code::PermissionDenied => Exit::Denied,
            Code::Unavailable => Exit::Unreachable,
            Code::DeadlineExceeded | Code::Cancelled => Exit::Interrupted,
            Code::Ok
            | Code::Unknown
            | Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::ResourceExhausted
            | Code::FailedPrecondition
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::Internal
            | Code::DataLoss => Exit::Failed,
        };
        Self { exit, text: fault.text.clone(), fault: Some(Box::new(fault)) }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::new(Exit::Failed, format_args!("{error:#}"))
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        // `tierd models | head`: the reader has seen enough.
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::told(Exit::Ok);
        }
        Self::new(Exit::Failed, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::fault::tests::every_fault;

    #[test]
    fn a_fault_ends_the_process_alike_over_grpc_and_in_process() {
        for fault in every_fault() {
            let over_grpc = Failure::from(fault::status(&fault));
            let in_process = Failure::from(fault.clone());
            assert_eq!(over_grpc.exit, in_process.exit, "{fault:?}");
            assert_eq!(over_grpc.text, fault.to_string());
            assert_ne!(over_grpc.exit, Exit::Ok);
        }
    }

    #[test]
    fn codes_are_numbered_in_the_order_of_the_table() {
        for (number, exit) in (0..).zip(Exit::ALL) {
            assert_eq!(exit as u8, number);
            assert!(Exit::table().contains(exit.meaning()));
        }
    }

    #[test]
    fn a_connection_that_breaks_is_told_with_its_cause() {
        let mut status = Status::unknown("transport error");
        status.set_source(std::sync::Arc::new(io::Error::other("certificate required")));
        let failure = Failure::from(status);
        assert_eq!(failure.exit, Exit::Unreachable);
        assert!(failure.text.ends_with("certificate required"), "{}", failure.text);
    }

    #[test]
    fn a_transport_that_fails_is_unreachable_and_a_wrong_token_is_denied() {
        assert_eq!(Failure::from(Status::unavailable("connect")).exit, Exit::Unreachable);
        assert_eq!(Failure::from(Status::unauthenticated("token")).exit, Exit::Denied);
        assert_eq!(Failure::from(io::Error::from(io::ErrorKind::BrokenPipe)).exit, Exit::Ok);
    }
}

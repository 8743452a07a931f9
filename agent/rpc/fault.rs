//! The border of faults: the engine's `Fault` to a message and to a gRPC status with typed details, and back on the
//! client's side. The only file that knows which fault is which status.

use std::collections::HashMap;
use std::time::Duration;

use tierd_cache::fault::Fault;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::rpc::pb::{self, FaultKind};

/// Domain of every `google.rpc.ErrorInfo` that the daemon sends.
pub const DOMAIN: &str = "tierd";

/// What a client is told to wait while the daemon restarts. A restart takes a second; twice that is polite.
const RESTART_WAIT: Duration = Duration::from_secs(2);
/// What a client is told to wait when a limit is reached: about the time in which a small model ends.
pub(crate) const BUSY_WAIT: Duration = Duration::from_secs(1);

impl From<&Fault> for pb::Fault {
    fn from(fault: &Fault) -> Self {
        let text = fault.to_string();
        let of = |kind: FaultKind| Self { kind: kind.into(), text, ..Self::default() };
        match fault {
            Fault::Invalid { field, .. } => Self { field: (*field).to_owned(), ..of(FaultKind::Invalid) },
            Fault::NotFound { what, .. } => Self { what: what.clone(), ..of(FaultKind::NotFound) },
            Fault::NoRoom { needed, free, evictable } => Self {
                needed_bytes: Some(*needed),
                free_bytes: Some(*free),
                evictable_bytes: Some(*evictable),
                ..of(FaultKind::NoRoom)
            },
            Fault::NoMemory { needed, free, evictable } => Self {
                needed_bytes: Some(*needed),
                free_bytes: Some(*free),
                evictable_bytes: Some(*evictable),
                ..of(FaultKind::NoMemory)
            },
            Fault::DiskFull { .. } => of(FaultKind::DiskFull),
            Fault::Corrupt { model, origin, .. } => {
                Self { model: model.to_string(), origin: origin.to_string(), ..of(FaultKind::Corrupt) }
            }
            Fault::Changed { model, origin } => {
                Self { model: model.to_string(), origin: origin.to_string(), ..of(FaultKind::Changed) }
            }
            Fault::OriginUnavailable { origin, status, retry_after, .. } => Self {
                origin: origin.to_string(),
                http_status: status.map(u32::from),
                retry_after: retry_after.map(Into::into),
                ..of(FaultKind::OriginUnavailable)
            },
            Fault::OriginDenied { origin, status, .. } => {
                Self { origin: origin.to_string(), http_status: status.map(u32::from), ..of(FaultKind::OriginDenied) }
            }
            Fault::Held { what, .. } => Self { what: what.clone(), ..of(FaultKind::Held) },
            Fault::Busy { limit, max } => Self {
                limit: (*limit).to_owned(),
                limit_max: Some(*max),
                retry_after: Some(BUSY_WAIT.into()),
                ..of(FaultKind::Busy)
            },
            Fault::Store { .. } => of(FaultKind::Store),
            Fault::Cancelled { .. } => of(FaultKind::Cancelled),
            Fault::DeadlineExceeded => of(FaultKind::DeadlineExceeded),
            Fault::ShuttingDown => Self { retry_after: Some(RESTART_WAIT.into()), ..of(FaultKind::ShuttingDown) },
        }
    }
}

/// The status code of a kind of fault.
#[must_use]
pub fn code(kind: FaultKind) -> Code {
    match kind {
        FaultKind::Unspecified => Code::Unknown,
        FaultKind::Invalid => Code::InvalidArgument,
        FaultKind::NotFound => Code::NotFound,
        FaultKind::NoRoom | FaultKind::NoMemory | FaultKind::DiskFull | FaultKind::Busy => Code::ResourceExhausted,
        FaultKind::Corrupt => Code::DataLoss,
        FaultKind::Changed => Code::Aborted,
        FaultKind::OriginUnavailable | FaultKind::ShuttingDown => Code::Unavailable,
        FaultKind::OriginDenied | FaultKind::Held => Code::FailedPrecondition,
        FaultKind::Store => Code::Internal,
        FaultKind::Cancelled => Code::Cancelled,
        FaultKind::DeadlineExceeded => Code::DeadlineExceeded,
    }
}

/// The refusal of a request's field, index included: `models[2]`.
#[must_use]
pub(crate) fn invalid(field: impl Into<String>, reason: impl std::fmt::Display) -> Status {
    let (kind, field) = (FaultKind::Invalid.into(), field.into());
    status_of(&pb::Fault { kind, text: format!("{field}: {reason}"), field, ..pb::Fault::default() })
}

/// The status of an engine's fault, with typed details.
#[must_use]
pub fn status(fault: &Fault) -> Status {
    status_of(&fault.into())
}

/// The status of a fault message, with typed details. What is in the details is enough to make the message again:
/// see [`of_status`].
#[must_use]
pub fn status_of(fault: &pb::Fault) -> Status {
    let kind = fault.kind();
    let reason = kind.word().to_ascii_uppercase();
    let mut details = ErrorDetails::with_error_info(reason.clone(), DOMAIN, metadata(fault));
    let wait = fault.retry_after.and_then(|wait| wait.to_std());
    match kind {
        FaultKind::Invalid => {
            details.add_bad_request_violation(&fault.field, &fault.text);
        }
        FaultKind::NotFound => {
            details.set_resource_info("model, flight, lease or origin", &fault.what, "", &fault.text);
        }
        FaultKind::NoRoom | FaultKind::DiskFull => {
            details.add_quota_failure_violation("disk", &fault.text);
        }
        FaultKind::NoMemory => {
            details.add_quota_failure_violation("ram", &fault.text);
        }
        FaultKind::Busy => {
            details.add_quota_failure_violation(&fault.limit, &fault.text);
            details.set_retry_info(wait);
        }
        FaultKind::OriginDenied => {
            details.add_precondition_failure_violation(reason, &fault.origin, &fault.text);
        }
        FaultKind::Held => {
            details.add_precondition_failure_violation(reason, &fault.what, &fault.text);
        }
        FaultKind::OriginUnavailable | FaultKind::ShuttingDown => {
            details.set_retry_info(wait);
        }
        FaultKind::Unspecified
        | FaultKind::Corrupt
        | FaultKind::Changed
        | FaultKind::Store
        | FaultKind::Cancelled
        | FaultKind::DeadlineExceeded => {}
    }
    Status::with_error_details(code(kind), fault.text.clone(), details)
}

/// The fault's fields that are set, by name, for `ErrorInfo.metadata`, and the tier without room. The text is the status
/// message.
fn metadata(fault: &pb::Fault) -> HashMap<String, String> {
    let words = [
        ("field", &fault.field),
        ("what", &fault.what),
        ("model", &fault.model),
        ("origin", &fault.origin),
        ("limit", &fault.limit),
    ];
    let numbers = [
        ("http_status", fault.http_status.map(u64::from)),
        ("needed_bytes", fault.needed_bytes),
        ("free_bytes", fault.free_bytes),
        ("evictable_bytes", fault.evictable_bytes),
        ("limit_max", fault.limit_max),
    ];
    let mut all = HashMap::new();
    for (kind, tier) in [(FaultKind::NoRoom, pb::Tier::Nvme), (FaultKind::NoMemory, pb::Tier::Ram)] {
        if fault.kind() == kind {
            all.insert("tier".to_owned(), tier.word());
        }
    }
    for (name, value) in words.into_iter().filter(|(_, value)| !value.is_empty()) {
        all.insert(name.to_owned(), value.clone());
    }
    for (name, value) in numbers {
        if let Some(value) = value {
            all.insert(name.to_owned(), value.to_string());
        }
    }
    all
}

/// The fault that a status carries; for a status that is not ours, a fault of no kind with its text.
#[must_use]
pub fn of_status(status: &Status) -> pb::Fault {
    let text = if status.message().is_empty() { status.code().to_string() } else { status.message().to_owned() };
    let details = status.get_error_details();
    let Some(info) = details.error_info().filter(|info| info.domain == DOMAIN) else {
        return pb::Fault { text, ..pb::Fault::default() };
    };
    let kind = FaultKind::from_str_name(&format!("FAULT_KIND_{}", info.reason)).unwrap_or(FaultKind::Unspecified);
    let word = |name: &str| info.metadata.get(name).cloned().unwrap_or_default();
    let number = |name: &str| info.metadata.get(name).and_then(|value| value.parse::<u64>().ok());
    let wait = details.retry_info().and_then(|retry| retry.retry_delay);
    pb::Fault {
        kind: kind.into(),
        text,
        field: word("field"),
        what: word("what"),
        model: word("model"),
        origin: word("origin"),
        http_status: number("http_status").and_then(|status| u32::try_from(status).ok()),
        retry_after: wait.map(Into::into),
        needed_bytes: number("needed_bytes"),
        free_bytes: number("free_bytes"),
        evictable_bytes: number("evictable_bytes"),
        limit: word("limit"),
        limit_max: number("limit_max"),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use tierd_cache::ids::{ModelKey, OriginName};

    /// One fault of every variant; the match makes a new variant fail to compile here.
    pub(crate) fn every_fault() -> Vec<Fault> {
        let model = ModelKey::parse("vae/ae.safetensors").expect("valid");
        let origin = OriginName::new("r2");
        let all = vec![
            Fault::Invalid { field: "ttl", reason: "it is zero".into() },
            Fault::NotFound { what: "flight 7".into(), hint: "it may have ended long ago".into() },
            Fault::NoRoom { needed: 3 << 30, free: 0, evictable: 1 },
            Fault::NoMemory { needed: 3 << 30, free: 0, evictable: 1 },
            Fault::DiskFull { detail: "piece 3".into() },
            Fault::Corrupt { model: model.clone(), origin: origin.clone(), expected: "aa".into(), actual: "bb".into() },
            Fault::Changed { model, origin: origin.clone() },
            Fault::OriginUnavailable {
                origin: origin.clone(),
                status: Some(503),
                retry_after: Some(Duration::from_millis(2500)),
                detail: "slow down".into(),
            },
            Fault::OriginUnavailable {
                origin: origin.clone(),
                status: None,
                retry_after: None,
                detail: "reset".into(),
            },
            Fault::OriginDenied { origin, status: Some(403), detail: "InvalidAccessKeyId".into() },
            Fault::Held { what: "vae/ae.safetensors".into(), held_by: "lease 3 of comfy".into() },
            Fault::Busy { limit: "limits.ensures_max", max: 1024 },
            Fault::Store { detail: "fsync: input/output error".into() },
            Fault::Cancelled { by: "uid:0".into() },
            Fault::DeadlineExceeded,
            Fault::ShuttingDown,
        ];
        for fault in &all {
            match fault {
                Fault::Invalid { .. }
                | Fault::NotFound { .. }
                | Fault::NoRoom { .. }
                | Fault::NoMemory { .. }
                | Fault::DiskFull { .. }
                | Fault::Corrupt { .. }
                | Fault::Changed { .. }
                | Fault::OriginUnavailable { .. }
                | Fault::OriginDenied { .. }
                | Fault::Held { .. }
                | Fault::Busy { .. }
                | Fault::Store { .. }
                | Fault::Cancelled { .. }
                | Fault::DeadlineExceeded
                | Fault::ShuttingDown => {}
            }
        }
        all
    }

    #[test]
    fn every_fault_survives_the_way_through_a_status() {
        for fault in every_fault() {
            let message = pb::Fault::from(&fault);
            let status = status(&fault);
            assert_eq!(of_status(&status), message, "{fault:?}");
            assert_eq!(status.message(), fault.to_string());
            assert_eq!(message.kind().word(), fault.kind());
            assert_ne!(status.code(), Code::Unknown, "{fault:?}");
        }
    }

    #[test]
    fn statuses_carry_the_details_that_google_defines() {
        for fault in every_fault() {
            let status = status(&fault);
            let details = status.get_error_details();
            let info = details.error_info().expect("always there");
            match status.code() {
                Code::InvalidArgument => {
                    let violations = &details.bad_request().expect("names the field").field_violations;
                    assert_eq!(violations[0].field, "ttl");
                }
                Code::NotFound => assert_eq!(details.resource_info().expect("names it").resource_name, "flight 7"),
                Code::ResourceExhausted => assert!(details.quota_failure().is_some(), "{fault:?}"),
                Code::FailedPrecondition => assert!(details.precondition_failure().is_some(), "{fault:?}"),
                Code::Unavailable => assert!(details.retry_info().is_some(), "{fault:?}"),
                _ => {}
            }
            let tier = match fault {
                Fault::NoRoom { .. } => "nvme",
                Fault::NoMemory { .. } => "ram",
                _ => continue,
            };
            let names = ["tier", "needed_bytes", "free_bytes", "evictable_bytes"];
            assert_eq!(names.map(|name| info.metadata[name].as_str()), [tier, "3221225472", "0", "1"]);
        }
    }

    #[test]
    fn a_status_of_someone_else_keeps_its_text_and_has_no_kind() {
        let fault = of_status(&Status::unavailable("tcp connect error"));
        assert_eq!((fault.kind(), fault.text.as_str()), (FaultKind::Unspecified, "tcp connect error"));
    }
}

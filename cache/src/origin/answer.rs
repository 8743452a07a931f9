//! What an answer means: its status, its headers against what was asked for. Pure: sees no body and asks for no time.

use std::ops::Range;
use std::time::Duration;

use http::header::{
    CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, DATE, ETAG, HeaderMap, LAST_MODIFIED, RETRY_AFTER,
};
use http::{HeaderName, StatusCode};

use super::date;
use super::error::OriginError;
use crate::catalog::Validator;

/// S3's hint where a bucket really is.
const BUCKET_REGION: &str = "x-amz-bucket-region";

/// A header as text, if it is there and is plain ASCII.
pub(crate) fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

/// The length that the answer promises for its body.
pub(crate) fn length(headers: &HeaderMap) -> Option<u64> {
    text(headers, CONTENT_LENGTH)?.trim().parse().ok()
}

/// The identity that the answer gives its object.
pub(crate) fn validator(headers: &HeaderMap) -> Validator {
    Validator {
        etag: text(headers, ETAG).map(|etag| etag.trim().to_owned()).filter(|etag| !etag.is_empty()),
        modified_ms: text(headers, LAST_MODIFIED).and_then(date::from_http),
    }
}

/// `Content-Range`: the range, empty for `bytes */N`, and the whole size, if it says one.
pub(crate) fn content_range(headers: &HeaderMap) -> Option<(Range<u64>, Option<u64>)> {
    let rest = text(headers, CONTENT_RANGE)?.trim().strip_prefix("bytes ")?;
    let (range, whole) = rest.split_once('/')?;
    let whole = if whole.trim() == "*" { None } else { Some(whole.trim().parse().ok()?) };
    if range.trim() == "*" {
        return Some((0..0, whole));
    }
    let (first, last) = range.trim().split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    Some((first..last.checked_add(1)?, whole))
}

/// How long the origin asks us to wait: seconds, or a date that is compared with the origin's own clock where it
/// shows it, with `now_ms` (wall clock) where it does not.
pub(crate) fn retry_after(headers: &HeaderMap, now_ms: i64) -> Option<Duration> {
    let value = text(headers, RETRY_AFTER)?.trim();
    if let Ok(seconds) = value.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let until = date::from_http(value)?;
    let now = text(headers, DATE).and_then(date::from_http).unwrap_or(now_ms);
    Some(Duration::from_millis(u64::try_from(until - now).unwrap_or(0)))
}

/// The code in an S3 error body, letters and digits only.
pub(crate) fn s3_code(body: &[u8]) -> Option<String> {
    let body = String::from_utf8_lossy(body);
    let code = body.split_once("<Code>")?.1.split_once("</Code>")?.0.trim();
    let plain = !code.is_empty() && code.len() <= 64 && code.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.');
    plain.then(|| code.to_owned())
}

/// What a status that is no success means. `code` is the S3 error code of its body.
pub(crate) fn failure(
    path: &str,
    status: StatusCode,
    headers: &HeaderMap,
    code: Option<&str>,
    now_ms: i64,
) -> OriginError {
    let path = path.to_owned();
    let mut reason = code.or(status.canonical_reason()).unwrap_or("no reason given").to_owned();
    if let (Some(region), true) = (headers.get(BUCKET_REGION).and_then(|v| v.to_str().ok()), status != 404) {
        reason = super::error::short(&format!("{reason}; the bucket is in region {region}"));
    }
    let number = status.as_u16();
    match (number, code.unwrap_or_default()) {
        (404, "NoSuchBucket") | (401 | 403 | 407, _) => OriginError::Denied { path, status: number, reason },
        (404 | 410, _) => OriginError::NotFound { path },
        (400, "ExpiredToken" | "InvalidToken" | "AuthorizationHeaderMalformed" | "InvalidAccessKeyId")
        | (301, "PermanentRedirect") => OriginError::Denied { path, status: number, reason },
        (412, _) | (409, "ConditionalRequestConflict" | "OperationAborted") => {
            OriginError::Changed { path, detail: format!("status {number} ({reason})") }
        }
        (429 | 503, _) => {
            OriginError::Throttled { path, status: number, retry_after: retry_after(headers, now_ms), reason }
        }
        // RequestTimeout is S3's word for a socket that was idle too long.
        (400, "RequestTimeout") | (307 | 408 | 425, _) => OriginError::Server { path, status: number, reason },
        (501, _) => OriginError::Refused { path, status: number, reason },
        (500.., _) => OriginError::Server { path, status: number, reason },
        _ => OriginError::Refused { path, status: number, reason },
    }
}

/// The opaque part of an ETag: listings give it with or without quotes, and a proxy that compresses weakens it.
fn opaque(etag: &str) -> &str {
    etag.trim().trim_start_matches("W/").trim_matches('"')
}

/// The ETag for `If-Match`, if it is a strong one.
pub(crate) fn if_match(validator: &Validator) -> Option<String> {
    let etag = validator.etag.as_deref().filter(|etag| !etag.starts_with("W/"))?;
    Some(if etag.starts_with('"') { etag.to_owned() } else { format!("\"{etag}\"") })
}

/// Whether an answer's identity is the expected one; says what differs if not. ETags decide where both sides have
/// one. Dates are compared in whole seconds, rounded either way: listings have fractions, headers do not.
pub(crate) fn same(expected: &Validator, got: &Validator) -> Result<(), String> {
    if let (Some(want), Some(have)) = (&expected.etag, &got.etag) {
        if opaque(want) == opaque(have) {
            return Ok(());
        }
        return Err(format!("its ETag was {}, now {}", super::error::short(want), super::error::short(have)));
    }
    if let (Some(want), Some(have)) = (expected.modified_ms, got.modified_ms)
        && (want - have).abs() >= 1000
    {
        return Err(format!("it was modified {}", date::to_http(have)));
    }
    Ok(())
}

/// Refuses bodies that are not the object's own bytes.
fn plain(path: &str, headers: &HeaderMap) -> Result<(), OriginError> {
    match text(headers, CONTENT_ENCODING) {
        None | Some("" | "identity" | "aws-chunked") => Ok(()),
        Some(other) => Err(OriginError::BadAnswer {
            path: path.to_owned(),
            detail: format!("it is sent with encoding {}", super::error::short(other)),
        }),
    }
}

/// Refuses an object whose size or identity is not the expected one.
fn unchanged(
    path: &str,
    headers: &HeaderMap,
    size: Option<u64>,
    whole: u64,
    expected: &Validator,
) -> Result<(), OriginError> {
    let changed = |detail| Err(OriginError::Changed { path: path.to_owned(), detail });
    match size {
        Some(size) if size != whole => return changed(format!("it had {whole} bytes, now {size}")),
        _ => {}
    }
    same(expected, &validator(headers)).or_else(changed)
}

/// Checks the head of an answer to a ranged read of `whole` bytes.
///
/// # Errors
///
/// `Changed` if it is another object, `RangeIgnored` if the whole object follows, `BadAnswer` for the rest.
pub(crate) fn ranged(
    path: &str,
    status: StatusCode,
    headers: &HeaderMap,
    range: &Range<u64>,
    whole: u64,
    expected: &Validator,
) -> Result<(), OriginError> {
    let bad = |detail| Err(OriginError::BadAnswer { path: path.to_owned(), detail });
    let given = content_range(headers);
    if status == StatusCode::RANGE_NOT_SATISFIABLE {
        unchanged(path, headers, given.and_then(|(_, size)| size), whole, expected)?;
        return bad(format!("it has no bytes {}..{} of {whole}", range.start, range.end));
    }
    plain(path, headers)?;
    let Some((got, size)) = given else {
        if status == StatusCode::PARTIAL_CONTENT {
            return bad("a part without a readable Content-Range".to_owned());
        }
        unchanged(path, headers, length(headers), whole, expected)?;
        let all = *range == (0..whole);
        return if all { Ok(()) } else { Err(OriginError::RangeIgnored { path: path.to_owned() }) };
    };
    // rclone's server sends the right part and the right Content-Range with status 200.
    unchanged(path, headers, size, whole, expected)?;
    if got != *range {
        return bad(format!("asked for bytes {}..{}, got {}..{}", range.start, range.end, got.start, got.end));
    }
    exact(path, headers, range.end - range.start)
}

/// Checks the head of an answer to a read of the whole object.
pub(crate) fn entire(path: &str, headers: &HeaderMap, whole: u64, expected: &Validator) -> Result<(), OriginError> {
    plain(path, headers)?;
    unchanged(path, headers, length(headers), whole, expected)
}

/// Refuses a promised length that is not the one due, before a byte of it is read.
fn exact(path: &str, headers: &HeaderMap, want: u64) -> Result<(), OriginError> {
    let path = path.to_owned();
    match length(headers) {
        Some(length) if length > want => Err(OriginError::TooLong { path, want }),
        Some(got) if got < want => Err(OriginError::Truncated { path, got, want }),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[path = "answer_tests.rs"]
mod tests;

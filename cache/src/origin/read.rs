//! Reads: a range or the whole of an object, from the wire or a file, on the condition that it is the object that was
//! listed. Checks the head of every answer before a byte of its body is given; never the content.

use std::ops::Range;

use http::Method;
use http::header::{ACCEPT_ENCODING, AUTHORIZATION, HeaderName, HeaderValue, IF_MATCH, IF_UNMODIFIED_SINCE, RANGE};
use object_store::client::HttpRequest;

use super::folder::{self, FileRead, Folder};
use super::wire::{self, Wire};
use super::{Body, Kind, Origin, OriginError, answer, date};
use crate::catalog::Validator;

impl Origin {
    /// Reads `range` of an object of `whole` bytes. The first byte of the body is the range's first byte.
    ///
    /// # Errors
    ///
    /// `Changed` if the object's size or identity is not the given one, `RangeIgnored` if the server sends all of it:
    /// [`read_whole`](Self::read_whole) then. `Config` for a range outside of the object.
    pub async fn read(
        &self,
        path: &str,
        range: Range<u64>,
        whole: u64,
        validator: &Validator,
    ) -> Result<Body, OriginError> {
        if range.start > range.end || range.end > whole {
            let what = format!("{path}: no bytes {}..{} in {whole}", range.start, range.end);
            return Err(OriginError::Config(what));
        }
        let inner = &*self.0;
        if range.is_empty() {
            return Ok(Body::empty(path, &inner.pulse));
        }
        let want = range.end - range.start;
        let wire = match &inner.kind {
            Kind::Folder(folder) => return self.read_file(folder, path, range, whole, validator).await,
            Kind::S3 { wire, .. } | Kind::Http { wire, .. } => wire,
        };
        let mut headers = vec![(RANGE, format!("bytes={}-{}", range.start, range.end - 1))];
        headers.extend(condition(validator));
        let answer = self.ask(wire, Method::GET, path, &headers).await?;
        answer::ranged(path, answer.status(), answer.headers(), &range, whole, validator)
            .inspect_err(|error| inner.pulse.bad(error))?;
        Ok(Body::wire(answer.into_body(), path, want, inner.stall_timeout, &inner.pulse))
    }

    /// Reads all of an object of `whole` bytes without asking for a range, for servers that ignore ranges.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read), but never `RangeIgnored`.
    pub async fn read_whole(&self, path: &str, whole: u64, validator: &Validator) -> Result<Body, OriginError> {
        let inner = &*self.0;
        let wire = match &inner.kind {
            Kind::Folder(folder) => return self.read_file(folder, path, 0..whole, whole, validator).await,
            Kind::S3 { wire, .. } | Kind::Http { wire, .. } => wire,
        };
        let headers: Vec<_> = condition(validator).into_iter().collect();
        let answer = self.ask(wire, Method::GET, path, &headers).await?;
        answer::entire(path, answer.headers(), whole, validator).inspect_err(|error| inner.pulse.bad(error))?;
        Ok(Body::wire(answer.into_body(), path, whole, inner.stall_timeout, &inner.pulse))
    }

    async fn read_file(
        &self,
        folder: &Folder,
        path: &str,
        range: Range<u64>,
        whole: u64,
        expected: &Validator,
    ) -> Result<Body, OriginError> {
        let inner = &*self.0;
        let (file, meta) = inner.pulse_of(folder.open(path, inner.request_timeout).await)?;
        let changed = |detail| Err(OriginError::Changed { path: path.to_owned(), detail });
        let same = match meta.len() {
            now if now != whole => changed(format!("it had {whole} bytes, now {now}")),
            _ => answer::same(expected, &folder::validator(&meta)).or_else(changed),
        };
        same.inspect_err(|error| inner.pulse.bad(error))?;
        let want = range.end - range.start;
        let read = FileRead::new(file, &meta, range.start, range.end);
        Ok(Body::file(read, path, want, inner.stall_timeout, &inner.pulse))
    }

    /// A whole small object with its identity; `None` if it is not there.
    pub(super) async fn small(&self, path: &str, max: usize) -> Result<Option<(Vec<u8>, Validator)>, OriginError> {
        let inner = &*self.0;
        let too_long = || OriginError::TooLong { path: path.to_owned(), want: max as u64 };
        match &inner.kind {
            Kind::Folder(folder) => {
                let Some(found) = inner.pulse_of(folder.stat(path, inner.request_timeout).await)? else {
                    return Ok(None);
                };
                if found.bytes > max as u64 {
                    return Err(too_long());
                }
                let mut body = self.read(path, 0..found.bytes, found.bytes, &found.validator).await?;
                let mut all = Vec::new();
                while let Some(bytes) = body.next().await {
                    all.extend_from_slice(&bytes?);
                }
                Ok(Some((all, found.validator)))
            }
            Kind::S3 { wire, .. } | Kind::Http { wire, .. } => {
                let answer = match self.ask(wire, Method::GET, path, &[]).await {
                    Ok(answer) => answer,
                    Err(OriginError::NotFound { .. }) => return Ok(None),
                    Err(error) => return Err(error),
                };
                let validator = answer::validator(answer.headers());
                let all = Body::collect(answer.into_body(), path, max, inner.stall_timeout).await;
                Ok(Some((all.inspect_err(|error| inner.pulse.bad(error))?, validator)))
            }
        }
    }

    /// Sends one authorized request for one object.
    pub(super) async fn ask(
        &self,
        wire: &Wire,
        method: Method,
        path: &str,
        headers: &[(HeaderName, String)],
    ) -> Result<http::Response<hyper::body::Incoming>, OriginError> {
        let with = |mut request: HttpRequest| {
            for (name, value) in headers {
                let value = HeaderValue::from_str(value).expect("ranges, dates and ETags are plain ASCII");
                request.headers_mut().insert(name, value);
            }
            request
        };
        match &self.0.kind {
            Kind::S3 { bucket, .. } => {
                let mut request = with(wire::request(method, bucket.address.object(path)?));
                bucket.sign(&mut request).await.inspect_err(|error| self.0.pulse.bad(error))?;
                wire.call(request, path, false).await
            }
            Kind::Http { address, authorization, .. } => {
                let mut request = with(wire::request(method, address.object(path)?));
                // Not for S3: it never compresses, and proxies that rewrite the header break the signature.
                request.headers_mut().insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
                if let Some(authorization) = authorization {
                    request.headers_mut().insert(AUTHORIZATION, authorization.clone());
                }
                wire.call(request, path, true).await
            }
            Kind::Folder(_) => Err(OriginError::Unsupported("a folder is not asked over the wire".to_owned())),
        }
    }
}

/// The header that makes a read fail if the object was replaced: by a strong ETag, or by its date.
fn condition(validator: &Validator) -> Option<(HeaderName, String)> {
    // Identities may have been read from disk or from a manifest's origin: only what a header may hold is sent.
    let plain = |text: &String| text.bytes().all(|b| (b' '..=b'~').contains(&b));
    if let Some(etag) = answer::if_match(validator).filter(plain) {
        return Some((IF_MATCH, etag));
    }
    validator.modified_ms.map(|ms| (IF_UNMODIFIED_SINCE, date::to_http(ms)))
}

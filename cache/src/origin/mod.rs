//! Origins (L4): where models come from. The one door to `object_store` and to HTTP as a client.
//!
//! Lists, locates and reads; checks on every read that the object is still the one that was listed. Never tries
//! again, never chooses between origins, never verifies content and holds no limit on bandwidth: the engine does.
//! Reads of S3 and HTTP share one path over one wire; `object_store` finds S3 credentials, signs, and uploads.

use std::sync::Arc;
use std::time::Duration;

use http::header::{HeaderValue, RANGE};
use http::{Method, StatusCode};

use self::address::Address;
use self::folder::Folder;
use self::listing::Object;
use self::pulse::Pulse;
use self::s3::{Bucket, BucketConfig};
use self::wire::Wire;
use crate::catalog::{Listed, OriginSnapshot, Validator};
use crate::clock::Wall;
use crate::config::{OriginConfig, OriginKind};
use crate::ids::{ModelKey, OriginName};
use crate::manifest::{MANIFEST_BYTES_MAX, Manifest};

mod address;
mod answer;
mod body;
pub(crate) mod date;
mod dial;
mod error;
mod folder;
mod inner;
mod listing;
mod pulse;
pub mod push;
mod read;
mod s3;
mod wire;

#[cfg(test)]
mod tests;

pub use body::Body;
pub use error::OriginError;
pub use listing::{LISTED_MAX, MODEL_EXTENSIONS, hostile as hostile_listing, is_model_name};
pub use pulse::Health;

/// An origin, ready to be asked. Cheap to clone; clones share connections and counters.
#[derive(Debug, Clone)]
pub struct Origin(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: OriginName,
    /// Without slashes at its ends.
    prefix: String,
    /// Path of the manifest, prefix included.
    manifest: String,
    kind: Kind,
    pulse: Arc<Pulse>,
    request_timeout: Duration,
    stall_timeout: Duration,
}

#[derive(Debug)]
enum Kind {
    S3 { bucket: Bucket, wire: Wire },
    Http { address: Address, authorization: Option<HeaderValue>, wire: Wire },
    Folder(Folder),
}

impl Origin {
    /// Reads the configuration of one origin. Sends nothing and opens nothing; reads `AWS_*` variables where the
    /// credentials are `Environment`.
    ///
    /// # Errors
    ///
    /// `Config`, which repeats no secret.
    pub fn open(config: &OriginConfig) -> Result<Self, OriginError> {
        let prefix = path_below("", config.prefix.trim_matches('/'), "prefix")?;
        let manifest = path_below(&prefix, &config.manifest, "manifest")?;
        let pulse = Arc::new(Pulse::default());
        let wire = || Wire::new(config, Arc::clone(&pulse));
        let kind = match &config.kind {
            OriginKind::S3 { bucket, endpoint, region, virtual_hosted, credentials } => {
                let wire = wire();
                let config = BucketConfig {
                    bucket,
                    endpoint: endpoint.as_deref(),
                    region,
                    virtual_hosted: *virtual_hosted,
                    credentials,
                };
                Kind::S3 { bucket: Bucket::open(&config, &wire)?, wire }
            }
            OriginKind::Http { url, bearer } => {
                let address = Address::parse(url)?;
                let bearer = bearer.as_ref().map(|bearer| bearer_header(bearer.expose())).transpose()?;
                if bearer.is_some() && address.basic().is_some() {
                    return Err(OriginError::Config("a bearer token and a user in the address: choose one".to_owned()));
                }
                let authorization = bearer.or_else(|| address.basic().cloned());
                Kind::Http { address, authorization, wire: wire() }
            }
            OriginKind::Folder { path } => Kind::Folder(Folder { root: path.clone() }),
        };
        Ok(Self(Arc::new(Inner {
            name: config.name.clone(),
            prefix,
            manifest,
            kind,
            pulse,
            request_timeout: config.request_timeout,
            stall_timeout: config.stall_timeout,
        })))
    }

    /// What the operator calls it.
    #[must_use]
    pub fn name(&self) -> &OriginName {
        &self.0.name
    }

    /// `s3`, `http` or `folder`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self.0.kind {
            Kind::S3 { .. } => "s3",
            Kind::Http { .. } => "http",
            Kind::Folder(_) => "folder",
        }
    }

    /// Where it is, prefix included; without user part and query.
    #[must_use]
    pub fn address(&self) -> String {
        let base = match &self.0.kind {
            Kind::S3 { bucket, .. } => bucket.address.shown().to_owned(),
            Kind::Http { address, .. } => address.shown().to_owned(),
            Kind::Folder(folder) => folder.root.display().to_string(),
        };
        if self.0.prefix.is_empty() { base } else { format!("{base}/{}", self.0.prefix) }
    }

    /// The path under which ComfyUI's layout starts, without slashes at its ends.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.0.prefix
    }

    /// Whether [`list`](Self::list) can be asked: false for HTTP.
    #[must_use]
    pub fn lists(&self) -> bool {
        !matches!(self.0.kind, Kind::Http { .. })
    }

    /// How it has been answering lately.
    #[must_use]
    pub fn health(&self) -> Health {
        self.0.pulse.health()
    }

    /// All its models, in the order of their keys: objects below the prefix whose path is a model key and ends as a
    /// model's name does. Legacy folders are resolved; where both spellings hold a model the canonical one is taken.
    ///
    /// # Errors
    ///
    /// `Unsupported` for HTTP, `TooMany` above [`LISTED_MAX`] objects; a listing is whole or an error.
    pub async fn list(&self) -> Result<Vec<Listed>, OriginError> {
        let objects = match &self.0.kind {
            Kind::S3 { bucket, wire } => bucket.list(wire, &self.0.prefix).await?,
            Kind::Folder(folder) => self.0.pulse_of(folder.list(&self.0.prefix).await)?,
            Kind::Http { .. } => {
                let what = format!("{} is an HTTP origin: it cannot be listed", self.0.name);
                return Err(OriginError::Unsupported(what));
            }
        };
        Ok(listing::models(&self.0.prefix, objects))
    }

    /// Its manifest, or `None` if it has none.
    ///
    /// # Errors
    ///
    /// `Manifest` if it is there and cannot be used, `TooLong` above 64 MiB; otherwise as for a read.
    pub async fn manifest(&self) -> Result<Option<Manifest>, OriginError> {
        Ok(self.manifest_and_validator().await?.map(|(manifest, _)| manifest))
    }

    async fn manifest_and_validator(&self) -> Result<Option<(Manifest, Validator)>, OriginError> {
        let path = &self.0.manifest;
        let Some((bytes, validator)) = self.small(path, MANIFEST_BYTES_MAX).await? else { return Ok(None) };
        let manifest = Manifest::parse(&bytes).map_err(|source| {
            let error = OriginError::Manifest { path: path.clone(), source };
            self.0.pulse.bad(&error);
            error
        })?;
        Ok(Some((manifest, validator)))
    }

    /// Lists (where it can) and reads the manifest: all that the catalog wants to know. `at` is the present time.
    ///
    /// # Errors
    ///
    /// Those of [`list`](Self::list) and [`manifest`](Self::manifest).
    pub async fn snapshot(&self, at: Wall) -> Result<OriginSnapshot, OriginError> {
        let listed = if self.lists() { self.list().await? } else { Vec::new() };
        let manifest = self.manifest().await?;
        Ok(OriginSnapshot { origin: self.0.name.clone(), at, prefix: self.0.prefix.clone(), listed, manifest })
    }

    /// Looks for one model by name, the canonical spelling first; `None` if it is under none.
    ///
    /// # Errors
    ///
    /// `BadAnswer` if the origin does not say how long the object is; otherwise as for a read.
    pub async fn locate(&self, model: &ModelKey) -> Result<Option<Listed>, OriginError> {
        for spelling in model.spellings() {
            let path = join(&self.0.prefix, &spelling);
            let found = match &self.0.kind {
                Kind::Folder(folder) => self.0.pulse_of(folder.stat(&path, self.0.request_timeout).await)?,
                Kind::S3 { wire, .. } | Kind::Http { wire, .. } => self.head(wire, &path).await?,
            };
            if let Some(Object { path, bytes, validator }) = found {
                return Ok(Some(Listed { model: model.clone(), path, bytes, validator }));
            }
        }
        Ok(None)
    }

    /// Size and identity by HEAD, or by a read of one byte where HEAD is not allowed or does not say the size.
    async fn head(&self, wire: &Wire, path: &str) -> Result<Option<Object>, OriginError> {
        let found =
            |bytes, headers| Ok(Some(Object { path: path.to_owned(), bytes, validator: answer::validator(headers) }));
        match self.ask(wire, Method::HEAD, path, &[]).await {
            Ok(answer) => {
                if let (true, Some(bytes)) = (answer.status() == StatusCode::OK, answer::length(answer.headers())) {
                    return found(bytes, answer.headers());
                }
            }
            // Answers to HEAD have no body, and S3 says only there whether it is the key, the signature or the bucket.
            Err(OriginError::NotFound { .. } | OriginError::Denied { .. })
                if matches!(self.0.kind, Kind::S3 { .. }) => {}
            Err(OriginError::NotFound { .. }) => return Ok(None),
            Err(OriginError::Refused { status: 405 | 501, .. }) => {}
            Err(error) => return Err(error),
        }
        let answer = match self.ask(wire, Method::GET, path, &[(RANGE, "bytes=0-0".to_owned())]).await {
            Ok(answer) => answer,
            Err(OriginError::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let bytes = match answer::content_range(answer.headers()) {
            Some((_, whole)) => whole,
            None if answer.status() == StatusCode::OK => answer::length(answer.headers()),
            None => None,
        };
        match bytes {
            Some(bytes) => found(bytes, answer.headers()),
            None => {
                Err(OriginError::BadAnswer { path: path.to_owned(), detail: "it does not say its size".to_owned() })
            }
        }
    }
}

impl Inner {
    /// Counts one file operation and remembers how it went.
    fn pulse_of<T>(&self, result: Result<T, OriginError>) -> Result<T, OriginError> {
        self.pulse.request();
        match &result {
            Ok(_) => self.pulse.good(),
            Err(error) => self.pulse.bad(error),
        }
        result
    }
}

/// `prefix/name`, or `name` where there is no prefix.
fn join(prefix: &str, name: &str) -> String {
    if prefix.is_empty() { name.to_owned() } else { format!("{prefix}/{name}") }
}

/// A configured path below a prefix: no empty part, no `.` and no `..`.
fn path_below(prefix: &str, name: &str, what: &str) -> Result<String, OriginError> {
    let bad_part = |part: &str| matches!(part, "." | "..") || part.chars().any(char::is_control);
    let is_empty = name.is_empty() && what == "manifest";
    if is_empty || (!name.is_empty() && name.split('/').any(|part| part.is_empty() || bad_part(part))) {
        return Err(OriginError::Config(format!("{what} {name:?} is not a path such as models/flux")));
    }
    Ok(if name.is_empty() { prefix.to_owned() } else { join(prefix, name) })
}

/// `Bearer …`.
fn bearer_header(token: &str) -> Result<HeaderValue, OriginError> {
    let bad = || OriginError::Config("the bearer token holds spaces or other characters that no token has".to_owned());
    if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(bad());
    }
    let mut value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| bad())?;
    value.set_sensitive(true);
    Ok(value)
}

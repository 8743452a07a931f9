//! S3 and what speaks like it: addresses, signatures and listings. Reads go over the wire, signed here; `object_store`
//! finds credentials, makes signatures and uploads.

use std::sync::Arc;

use http::Method;
use object_store::RetryConfig;
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, AwsAuthorizer};
use object_store::client::HttpRequest;

use super::address::Address;
use super::body::Body;
use super::error::{OriginError, find, innermost};
use super::listing::{LISTED_MAX, Object, page};
use super::wire::{Wire, request};
use crate::config::Credentials;

/// Largest page of a listing: 1000 keys of 1 KiB, escaped and with their tags, stay below it.
const PAGE_BYTES_MAX: usize = 16 << 20;

/// A bucket.
#[derive(Debug, Clone)]
pub(crate) struct Bucket {
    /// Where its objects are, the bucket's name included.
    pub(crate) address: Address,
    /// Uploads, and the credentials for everything.
    pub(crate) store: Arc<AmazonS3>,
    region: String,
    signed: bool,
}

/// What the configuration says of a bucket.
pub(crate) struct BucketConfig<'a> {
    pub(crate) bucket: &'a str,
    pub(crate) endpoint: Option<&'a str>,
    pub(crate) region: &'a str,
    pub(crate) virtual_hosted: bool,
    pub(crate) credentials: &'a Credentials,
}

impl Bucket {
    /// A bucket reached over `wire`. Sends nothing.
    pub(crate) fn open(config: &BucketConfig<'_>, wire: &Wire) -> Result<Self, OriginError> {
        let fail = |what: &str| Err(OriginError::Config(what.to_owned()));
        let harmless = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
        if config.bucket.is_empty() || !config.bucket.bytes().all(harmless) {
            return fail("not a bucket name: letters, digits, '.', '-' and '_' only");
        }
        if config.region.is_empty() || !config.region.bytes().all(harmless) {
            return fail("not a region: write it as us-east-1, or auto for R2");
        }
        let environment = AmazonS3Builder::from_env();
        let mut endpoint = config.endpoint.map(str::to_owned);
        let mut signed = !matches!(config.credentials, Credentials::Anonymous);
        if matches!(config.credentials, Credentials::Environment) {
            let value = |key: AmazonS3ConfigKey| environment.get_config_value(&key);
            endpoint = endpoint
                .or_else(|| value(AmazonS3ConfigKey::S3Endpoint))
                .or_else(|| value(AmazonS3ConfigKey::Endpoint));
            signed = value(AmazonS3ConfigKey::SkipSignature).as_deref() != Some("true");
        }
        if endpoint.is_none() && config.region == "auto" {
            return fail("region \"auto\" needs an endpoint: AWS has no such region");
        }
        let endpoint = endpoint.unwrap_or_else(|| format!("https://s3.{}.amazonaws.com", config.region));
        let server = Address::parse(&endpoint)?;
        if server.has_secrets() {
            return fail("an S3 endpoint has no user part and no query: credentials have keys of their own");
        }
        let address =
            if config.virtual_hosted { server.with_host_label(config.bucket) } else { server.below(config.bucket) };

        let plain = || {
            AmazonS3Builder::new()
                .with_http_connector(wire.clone())
                .with_retry(RetryConfig { max_retries: 0, ..RetryConfig::default() })
                .with_region(config.region)
                .with_bucket_name(config.bucket)
                .with_allow_http(true)
                .with_skip_signature(!signed)
                // With the bucket in it: object_store then adds nothing but the key.
                .with_virtual_hosted_style_request(true)
                .with_endpoint(address.shown())
        };
        let builder = match config.credentials {
            Credentials::Anonymous => plain(),
            Credentials::Keys { id, secret, token } => {
                let token_text = token.as_ref().map_or("", |token| token.expose());
                if ![id.as_str(), secret.expose(), token_text].iter().all(|s| s.bytes().all(|b| b.is_ascii_graphic())) {
                    return fail("the keys hold spaces or other characters that no key has");
                }
                let builder = plain().with_access_key_id(id).with_secret_access_key(secret.expose());
                if let Some(token) = token { builder.with_token(token.expose()) } else { builder }
            }
            Credentials::Environment => {
                let finder = environment
                    .with_http_connector(wire.clone())
                    .with_retry(RetryConfig { max_retries: 0, ..RetryConfig::default() })
                    .with_region(config.region)
                    .with_bucket_name(config.bucket)
                    .build()
                    .map_err(|error| OriginError::Config(innermost(&error)))?;
                plain().with_credentials(Arc::clone(finder.credentials()))
            }
        };
        let store = builder.build().map_err(|error| OriginError::Config(innermost(&error)))?;
        Ok(Self { address, store: Arc::new(store), region: config.region.to_owned(), signed })
    }

    /// Signs a request without a body.
    pub(crate) async fn sign(&self, request: &mut HttpRequest) -> Result<(), OriginError> {
        if !self.signed {
            return Ok(());
        }
        let credential = self.store.credentials().get_credential().await.map_err(|error| credentials(&error))?;
        AwsAuthorizer::new(&credential, "s3", &self.region)
            .try_authorize(request, None)
            .map_err(|error| OriginError::Config(format!("the request cannot be signed: {}", innermost(&error))))
    }

    /// All objects below `prefix`, in pages of 1000.
    pub(crate) async fn list(&self, wire: &Wire, prefix: &str) -> Result<Vec<Object>, OriginError> {
        let folder = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        let shown = format!("{}/{folder}", self.address.shown());
        let bad = |detail: &str| OriginError::BadAnswer { path: shown.clone(), detail: detail.to_owned() };
        let mut objects = Vec::new();
        let mut token: Option<String> = None;
        loop {
            let mut query = vec![("list-type", "2"), ("max-keys", "1000")];
            if !folder.is_empty() {
                query.push(("prefix", &folder));
            }
            if let Some(token) = &token {
                query.push(("continuation-token", token));
            }
            let mut request = request(Method::GET, self.address.with_query(&query)?);
            self.sign(&mut request).await?;
            let answer = wire.call(request, &shown, false).await?;
            let body = Body::collect(answer.into_body(), &shown, PAGE_BYTES_MAX, wire.stall).await?;
            let page = page(&body).map_err(bad)?;
            objects.extend(page.objects);
            if objects.len() > LISTED_MAX {
                return Err(OriginError::TooMany { max: LISTED_MAX });
            }
            match page.next {
                None => return Ok(objects),
                Some(next) if token.as_deref() == Some(&next) => return Err(bad("the same page again and again")),
                Some(next) => token = Some(next),
            }
        }
    }
}

/// What a failed search for credentials means: the metadata server's trouble may pass, a missing file will not.
fn credentials(error: &object_store::Error) -> OriginError {
    let path = "credentials".to_owned();
    match find::<OriginError>(error) {
        Some(inner) if inner.is_transient() => OriginError::Connect { path, detail: inner.to_string() },
        Some(inner) => OriginError::Config(format!("no credentials: {inner}")),
        None => OriginError::Config(format!("no credentials: {}", innermost(error))),
    }
}

/// What an error of `object_store` means: ours, if one of ours is inside.
pub(crate) fn uploading(path: &str, error: &object_store::Error) -> OriginError {
    match find::<OriginError>(error) {
        Some(inner) => inner.clone(),
        None => OriginError::BadAnswer { path: path.to_owned(), detail: innermost(error) },
    }
}

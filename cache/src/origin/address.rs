//! Addresses: from what the operator wrote and an object's path to a request's URI, and where a redirect leads.
//! What may be shown of an address is kept apart from what is sent: user parts and queries are secrets.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::header::HeaderValue;
use http::uri::{Scheme, Uri};

use super::error::OriginError;

/// The address under which an origin's objects lie.
#[derive(Clone)]
pub(crate) struct Address {
    /// `https://host:port/path`, with no slash at the end.
    base: String,
    /// Sent with every request, never shown.
    query: Option<String>,
    /// `Basic …`, from the address's user part.
    basic: Option<HeaderValue>,
}

impl Address {
    /// Reads `http(s)://[user:password@]host[:port][/path][?query]`.
    ///
    /// # Errors
    ///
    /// `Config`, which repeats no part that may be secret.
    pub(crate) fn parse(text: &str) -> Result<Self, OriginError> {
        let bad = |why: &str| OriginError::Config(format!("not an address: {why}; write https://host/path"));
        let text = text.trim();
        if text.contains('#') {
            return Err(bad("it has a fragment"));
        }
        let uri: Uri = text.parse().map_err(|_| bad("it holds characters that must be percent-encoded"))?;
        let (Some(scheme), Some(authority)) = (uri.scheme(), uri.authority()) else {
            return Err(bad("it has no scheme or no host"));
        };
        if *scheme != Scheme::HTTP && *scheme != Scheme::HTTPS {
            return Err(bad("it is neither http nor https"));
        }
        let (user, host) =
            authority.as_str().rsplit_once('@').map_or((None, authority.as_str()), |(u, h)| (Some(u), h));
        if authority.host().is_empty() {
            return Err(bad("it has no host"));
        }
        let basic = user.map(|user| basic(user).ok_or_else(|| bad("its user part is not UTF-8"))).transpose()?;
        Ok(Self {
            base: format!("{scheme}://{host}{}", uri.path().trim_end_matches('/')),
            query: uri.query().filter(|query| !query.is_empty()).map(str::to_owned),
            basic,
        })
    }

    /// The address with `part` appended as one more folder.
    pub(crate) fn below(mut self, part: &str) -> Self {
        if !part.is_empty() {
            self.base = format!("{}/{}", self.base, encode(part, true));
        }
        self
    }

    /// The address with `label` in front of its host: `https://bucket.host`.
    pub(crate) fn with_host_label(mut self, label: &str) -> Self {
        self.base = self.base.replacen("://", &format!("://{label}."), 1);
        self
    }

    /// The URI of an object. `path` is raw: everything in it but `/` is encoded that is not plainly harmless.
    pub(crate) fn object(&self, path: &str) -> Result<Uri, OriginError> {
        self.uri(&format!("{}/{}", self.base, encode(path, true)))
    }

    /// The address itself with a query of its own: names and values are raw.
    pub(crate) fn with_query(&self, pairs: &[(&str, &str)]) -> Result<Uri, OriginError> {
        let query: Vec<String> = pairs.iter().map(|(name, value)| format!("{name}={}", encode(value, false))).collect();
        let slash = if self.base.matches('/').count() < 3 { "/" } else { "" };
        self.uri(&format!("{}{slash}?{}", self.base, query.join("&")))
    }

    fn uri(&self, text: &str) -> Result<Uri, OriginError> {
        let text = match (&self.query, text.contains('?')) {
            (None, _) => text.to_owned(),
            (Some(query), false) => format!("{text}?{query}"),
            (Some(query), true) => format!("{text}&{query}"),
        };
        text.parse().map_err(|_| OriginError::Config(format!("{}: too long for an address", self.shown())))
    }

    /// Whether the address has a user part or a query, which some kinds of origin have no use for.
    pub(crate) fn has_secrets(&self) -> bool {
        self.basic.is_some() || self.query.is_some()
    }

    /// `Basic …`, if the address has a user part.
    pub(crate) fn basic(&self) -> Option<&HeaderValue> {
        self.basic.as_ref()
    }

    /// What may be shown: neither the user part nor the query.
    pub(crate) fn shown(&self) -> &str {
        &self.base
    }
}

impl std::fmt::Debug for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.base)
    }
}

/// `user:password`, percent-decoded, as a `Basic` authorization.
fn basic(user: &str) -> Option<HeaderValue> {
    let plain = decode(user)?;
    let plain = if plain.contains(':') { plain } else { format!("{plain}:") };
    let mut value = HeaderValue::from_str(&format!("Basic {}", BASE64_STANDARD.encode(plain))).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Percent-encodes everything but letters, digits, `-._~`, and `/` where `slashes` says so: what S3 signs.
pub(crate) fn encode(text: &str, slashes: bool) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || (slashes && byte == b'/') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// Undoes percent-encoding; `None` if the result is not UTF-8. A `%` without two digits stays as it is.
fn decode(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let digits = bytes.get(at + 1..at + 3).and_then(|pair| std::str::from_utf8(pair).ok());
        match digits.and_then(|pair| u8::from_str_radix(pair, 16).ok()) {
            Some(byte) if bytes[at] == b'%' => {
                out.push(byte);
                at += 3;
            }
            _ => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8(out).ok()
}

/// Where `location` leads from `from`, or why it may not be followed.
pub(crate) fn redirect(from: &Uri, location: &[u8]) -> Result<Uri, &'static str> {
    // Servers send raw UTF-8 here; a URI wants it encoded.
    let location: String = location
        .iter()
        .map(|byte| if byte.is_ascii_graphic() { char::from(*byte).to_string() } else { format!("%{byte:02X}") })
        .collect();
    let location = location.split('#').next().unwrap_or_default();
    let (scheme, authority) = (from.scheme_str().unwrap_or("http"), from.authority().map_or("", |a| a.as_str()));
    let text = if location.starts_with("http://") || location.starts_with("https://") {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else if location.starts_with('?') {
        format!("{scheme}://{authority}{}{location}", from.path())
    } else {
        let folder = from.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{scheme}://{authority}{folder}/{location}")
    };
    let to: Uri = text.parse().map_err(|_| "it redirects to what is no address")?;
    if from.scheme() == Some(&Scheme::HTTPS) && to.scheme() != Some(&Scheme::HTTPS) {
        return Err("it redirects from https to http");
    }
    Ok(to)
}

/// Whether two URIs name one server: the only case in which credentials go along.
pub(crate) fn same_server(a: &Uri, b: &Uri) -> bool {
    let port = |uri: &Uri| uri.port_u16().unwrap_or(if uri.scheme() == Some(&Scheme::HTTPS) { 443 } else { 80 });
    let host = |uri: &Uri| uri.host().unwrap_or_default().to_ascii_lowercase();
    a.scheme() == b.scheme() && host(a) == host(b) && port(a) == port(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_names_are_encoded_and_nothing_else_is() {
        let address = Address::parse("http://h:1/models/").unwrap();
        let uri = address.object("loras/a b+c%20#?&ü~.sft").unwrap();
        assert_eq!(uri.to_string(), "http://h:1/models/loras/a%20b%2Bc%2520%23%3F%26%C3%BC~.sft");
    }

    #[test]
    fn the_user_part_and_the_query_are_sent_but_never_shown() {
        let address = Address::parse("https://me:p%40ss@h/m?sig=hunter2").unwrap();
        assert_eq!(address.shown(), "https://h/m");
        assert_eq!(format!("{address:?} {:?}", address.basic()), "https://h/m Some(Sensitive)");
        assert_eq!(address.object("x/y").unwrap().to_string(), "https://h/m/x/y?sig=hunter2");
        assert_eq!(address.basic().unwrap().to_str().unwrap(), format!("Basic {}", BASE64_STANDARD.encode("me:p@ss")));
    }

    #[test]
    fn a_refused_address_is_not_repeated() {
        for text in ["ftp://u:hunter2@h/", "hunter2", "https://u:hunter2@h/a b", "https://h/#hunter2", "/hunter2"] {
            let error = Address::parse(text).unwrap_err().to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn redirects_resolve_and_never_lose_encryption() {
        let from: Uri = "https://h/a/b?q".parse().unwrap();
        let to = |location: &str| redirect(&from, location.as_bytes()).map(|uri| uri.to_string());
        assert_eq!(to("https://cdn/x?sig=1#f").unwrap(), "https://cdn/x?sig=1");
        assert_eq!(to("//cdn/x").unwrap(), "https://cdn/x");
        assert_eq!(to("/x y").unwrap(), "https://h/x%20y");
        assert_eq!(to("c").unwrap(), "https://h/a/c");
        assert_eq!(to("http://h/a/b"), Err("it redirects from https to http"));
    }

    #[test]
    fn another_port_or_scheme_is_another_server() {
        let same = |a: &str, b: &str| same_server(&a.parse().unwrap(), &b.parse().unwrap());
        assert!(same("https://H/a", "https://h:443/b"));
        assert!(!same("http://h/a", "https://h/a"));
        assert!(!same("http://h:1/a", "http://h:2/a"));
    }
}

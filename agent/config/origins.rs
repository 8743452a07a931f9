//! Origins out of their tables: which keys belong to which kind, and which exclude one another.

use std::path::Path;

use tierd_cache::config::{Credentials, OriginConfig, OriginKind, Secret};

use super::options::{self, Section};
use super::raw::Table;
use super::reader::{Reader, count32, flag, rate, text, time};
use super::variables::spelled;

/// Longest name of an origin.
const NAME_BYTES_MAX: usize = 63;

/// All origins, in their order. What is wrong goes to the reader's problems, and the origin stays away.
pub(super) fn build(tables: &[Table], reader: &mut Reader<'_>) -> Vec<OriginConfig> {
    let mut origins = Vec::new();
    for (at, table) in tables.iter().enumerate() {
        check_name(table, &tables[..at], reader);
        let Some(kind) = text(table, "kind") else {
            reader.missing(table, "kind");
            continue;
        };
        for (key, place) in table.keys() {
            let only = options::find(Section::Origin, key).map_or(&[][..], |spec| spec.only);
            if !only.is_empty() && !only.contains(&kind.as_str()) {
                let what = format!("does not apply to kind = {kind:?}");
                let right = format!("it is for {}", only.join(" and "));
                reader.problems.add_with(place, table.path(key), what, right);
            }
        }
        let kind = match kind.as_str() {
            "s3" => s3(table, reader),
            "http" => http(table, reader),
            _ => folder(table, reader),
        };
        if let Some(kind) = kind {
            origins.push(limits(table, kind, reader));
        }
    }
    origins
}

fn check_name(table: &Table, earlier: &[Table], reader: &mut Reader<'_>) {
    let name = table.name();
    if name.is_empty() {
        if table.get("name").is_some() {
            reader.problems.add(table.place_of("name"), table.path("name"), "is empty");
        }
        return reader.missing(table, "name");
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let edges =
        name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.ends_with(|c: char| c.is_ascii_alphanumeric());
    if name.len() > NAME_BYTES_MAX || !name.chars().all(plain) || !edges || spelled(name).contains("__") {
        let right = "use letters and digits with single -, _ or . between them, at most 63";
        reader.problems.add_with(table.place_of("name"), table.path("name"), "is no name for an origin", right);
    } else if let Some(twin) = earlier.iter().find(|other| spelled(other.name()) == spelled(name)) {
        let what = if twin.name() == name {
            "is the name of another origin too".to_owned()
        } else {
            format!("differs from {:?} only in what environment variables cannot tell apart", twin.name())
        };
        reader.problems.add_with(
            table.place_of("name"),
            table.path("name"),
            what,
            "give each origin a name of its own",
        );
    }
}

fn s3(table: &Table, reader: &mut Reader<'_>) -> Option<OriginKind> {
    let credentials = credentials(table, reader);
    let bucket = text(table, "bucket").filter(|bucket| !bucket.is_empty());
    let Some(bucket) = bucket else {
        if table.get("bucket").is_some() {
            reader.problems.add(table.place_of("bucket"), table.path("bucket"), "is empty");
        }
        reader.missing(table, "bucket");
        return None;
    };
    if bucket.contains('/') {
        let right = "put what follows the bucket into prefix";
        reader.problems.add_with(table.place_of("bucket"), table.path("bucket"), "holds a slash", right);
    }
    Some(OriginKind::S3 {
        bucket,
        endpoint: text(table, "endpoint"),
        region: text(table, "region").unwrap_or_else(|| "us-east-1".to_owned()),
        virtual_hosted: flag(Some(table), "virtual_hosted").unwrap_or(false),
        credentials: credentials.unwrap_or(Credentials::Environment),
    })
}

fn credentials(table: &Table, reader: &mut Reader<'_>) -> Option<Credentials> {
    let by_reference = reader.secret(table, "access_key_id").map(|id| id.expose().to_owned());
    let inline = text(table, "access_key_id");
    for twin in ["access_key_id_file", "access_key_id_env"] {
        if inline.is_some() && table.get(twin).is_some() {
            let what = "conflicts with access_key_id: both give the id";
            reader.problems.add_with(table.place_of(twin), table.path(twin), what, "keep one of them");
        }
    }
    let id = inline.or(by_reference);
    let secret = reader.secret(table, "secret_access_key");
    let token = reader.secret(table, "session_token");
    let mentions = |key: &str| [key, &format!("{key}_file"), &format!("{key}_env")].iter().any(|key| table.has(key));
    let (has_id, has_secret, has_token) =
        (mentions("access_key_id"), mentions("secret_access_key"), mentions("session_token"));
    if flag(Some(table), "anonymous") == Some(true) {
        if has_id || has_secret || has_token {
            let what = "conflicts with keys: unsigned requests use none";
            reader.problems.add_with(
                table.place_of("anonymous"),
                table.path("anonymous"),
                what,
                "remove one or the other",
            );
        }
        return Some(Credentials::Anonymous);
    }
    match (has_id, has_secret) {
        (true, false) => {
            let right = "set secret_access_key_file or secret_access_key_env";
            reader.problems.add_with(&table.place, table.path("access_key_id"), "is set without its secret key", right);
        }
        (false, true) => {
            let right = "set access_key_id, access_key_id_file or access_key_id_env";
            reader.problems.add_with(&table.place, table.path("secret_access_key"), "is set without its id", right);
        }
        (false, false) if has_token => {
            let right = "set the keys that it belongs to";
            reader.problems.add_with(&table.place, table.path("session_token"), "is set without keys", right);
        }
        _ => {}
    }
    Some(Credentials::Keys { id: id?, secret: secret?, token })
}

fn http(table: &Table, reader: &mut Reader<'_>) -> Option<OriginKind> {
    let bearer: Option<Secret> = reader.secret(table, "bearer");
    let Some(url) = text(table, "url") else {
        reader.missing(table, "url");
        return None;
    };
    Some(OriginKind::Http { url, bearer })
}

fn folder(table: &Table, reader: &mut Reader<'_>) -> Option<OriginKind> {
    let Some(path) = reader.path(table, "path") else {
        reader.missing(table, "path");
        return None;
    };
    Some(OriginKind::Folder { path })
}

fn limits(table: &Table, kind: OriginKind, reader: &mut Reader<'_>) -> OriginConfig {
    let mut origin = OriginConfig::new(table.name(), kind);
    let some = Some(table);
    if let Some(prefix) = text(table, "prefix") {
        origin.prefix = prefix.trim_matches('/').to_owned();
        check_below(table, "prefix", &origin.prefix, reader);
    }
    if let Some(manifest) = text(table, "manifest") {
        if manifest.is_empty() || manifest.starts_with('/') || manifest.ends_with('/') {
            let right = "name an object below prefix, such as \"tierd-manifest.json\"";
            reader.problems.add_with(table.place_of("manifest"), table.path("manifest"), "is no object's name", right);
        }
        check_below(table, "manifest", &manifest, reader);
        origin.manifest = manifest;
    }
    origin.connections_max = count32(some, "connections_max").unwrap_or(origin.connections_max);
    origin.bandwidth_max = rate(some, "bandwidth_max").unwrap_or(origin.bandwidth_max);
    origin.connect_timeout = time(some, "connect_timeout").unwrap_or(origin.connect_timeout);
    origin.request_timeout = time(some, "request_timeout").unwrap_or(origin.request_timeout);
    origin.stall_timeout = time(some, "stall_timeout").unwrap_or(origin.stall_timeout);
    origin
}

/// Refuses a path inside an origin that leaves it or that no origin can spell.
fn check_below(table: &Table, key: &str, path: &str, reader: &mut Reader<'_>) {
    let odd = |part: &str| part == "." || part == "..";
    if path.split('/').any(odd) || path.contains("//") {
        let what = "has a part that is empty, . or ..";
        reader.problems.add(table.place_of(key), table.path(key), what);
    }
}

/// Refuses a folder that would list the daemon's own models as an origin's.
pub(super) fn check_folders(tables: &[Table], origins: &[OriginConfig], models: &Path, reader: &mut Reader<'_>) {
    for origin in origins {
        let OriginKind::Folder { path } = &origin.kind else { continue };
        let Some(table) = tables.iter().find(|table| table.name() == &*origin.name.0) else { continue };
        if path.starts_with(models) || models.starts_with(path) {
            let what = format!("overlaps store.models, which is {}", models.display());
            let right = "an origin is another folder than the one that it is copied to";
            reader.problems.add_with(table.place_of("path"), table.path("path"), what, right);
        }
    }
}

//! The options of an origin. A table and nothing else.

use super::Preset::{Is, Required, Unset};
use super::Section::Origin;
use super::{Kind, Preset, SECOND, Section, Spec, option};

const fn for_s3(key: &'static str, kind: Kind, preset: Preset, example: &'static str, about: &'static str) -> Spec {
    Spec { section: Section::Origin, key, kind, preset, example, about, only: &["s3"] }
}

const fn for_http(key: &'static str, kind: Kind, preset: Preset, example: &'static str, about: &'static str) -> Spec {
    Spec { section: Section::Origin, key, kind, preset, example, about, only: &["http"] }
}

/// The options.
pub(super) const OPTIONS: [Spec; 25] = [
    option(
        Origin,
        "name",
        Kind::Text,
        Required,
        "\"r2\"",
        "What it is called in messages, metrics and environment variables: letters, digits, `-`, `_` and `.`, at most 63, no `__`.",
    ),
    option(
        Origin,
        "kind",
        Kind::Choice(&["s3", "http", "folder"]),
        Required,
        "\"s3\"",
        "`s3` for S3, R2 and servers that speak like them; `http` for a web server; `folder` for a folder on this machine or on a mounted file system.",
    ),
    for_s3("bucket", Kind::Text, Required, "\"models\"", "The bucket."),
    for_s3(
        "endpoint",
        Kind::Url,
        Unset,
        "\"https://ACCOUNT.r2.cloudflarestorage.com\"",
        "The server. Not set: AWS itself.",
    ),
    for_s3(
        "region",
        Kind::Text,
        Is("\"us-east-1\""),
        "\"auto\"",
        "AWS region, or `auto` as R2 has it. AWS's own default; other servers ignore it.",
    ),
    for_s3(
        "virtual_hosted",
        Kind::Flag,
        Is("false"),
        "true",
        "Whether the bucket is part of the host name. Path style works everywhere.",
    ),
    for_s3(
        "anonymous",
        Kind::Flag,
        Is("false"),
        "true",
        "Sends unsigned requests, for public buckets. Without this and without keys, requests are signed with what the environment gives: AWS_* variables, web identity, container or instance role.",
    ),
    for_s3(
        "access_key_id",
        Kind::Text,
        Unset,
        "\"AKIAEXAMPLE\"",
        "Access key id. Not a secret; can also be given by reference.",
    ),
    for_s3("access_key_id_file", Kind::SecretFile, Unset, "\"r2-id\"", "File with the access key id."),
    for_s3(
        "access_key_id_env",
        Kind::SecretEnv,
        Unset,
        "\"R2_ACCESS_KEY_ID\"",
        "Environment variable with the access key id.",
    ),
    for_s3("secret_access_key_file", Kind::SecretFile, Unset, "\"r2-secret\"", "File with the secret key."),
    for_s3(
        "secret_access_key_env",
        Kind::SecretEnv,
        Unset,
        "\"R2_SECRET_ACCESS_KEY\"",
        "Environment variable with the secret key.",
    ),
    for_s3(
        "session_token_file",
        Kind::SecretFile,
        Unset,
        "\"r2-token\"",
        "File with the session token of temporary keys.",
    ),
    for_s3(
        "session_token_env",
        Kind::SecretEnv,
        Unset,
        "\"R2_SESSION_TOKEN\"",
        "Environment variable with the session token of temporary keys.",
    ),
    for_http(
        "url",
        Kind::Url,
        Required,
        "\"https://models.example.com/comfyui\"",
        "The address under which ComfyUI's layout starts.",
    ),
    for_http(
        "bearer_file",
        Kind::SecretFile,
        Unset,
        "\"hub-token\"",
        "File with a token that is sent as `Authorization: Bearer`.",
    ),
    for_http(
        "bearer_env",
        Kind::SecretEnv,
        Unset,
        "\"HUB_TOKEN\"",
        "Environment variable with a token that is sent as `Authorization: Bearer`.",
    ),
    Spec {
        section: Origin,
        key: "path",
        kind: Kind::Path,
        preset: Required,
        example: "\"/mnt/nas/models\"",
        about: "The folder in which ComfyUI's layout starts. May not lie inside store.models, nor around it.",
        only: &["folder"],
    },
    option(
        Origin,
        "prefix",
        Kind::Text,
        Is("\"\""),
        "\"comfyui/models\"",
        "Path inside the bucket, server or folder under which ComfyUI's layout starts. At its root.",
    ),
    option(
        Origin,
        "manifest",
        Kind::Text,
        Is("\"tierd-manifest.json\""),
        "\"manifest.json\"",
        "Name of the manifest object below `prefix`: names, sizes and digests of models. The name that `tierd push` writes.",
    ),
    option(
        Origin,
        "connections_max",
        Kind::Count(1, 1024),
        Is("64"),
        "16",
        "Most connections to this origin at once. Enough to fill 20 Gbit/s at 40 MB/s a connection, and below what S3, R2 and a default nginx allow one client.",
    ),
    option(Origin, "bandwidth_max", Kind::Rate, Is("\"none\""), "\"200 MiB\"", "Most bytes a second from this origin."),
    option(
        Origin,
        "connect_timeout",
        Kind::Time(50, 300 * SECOND),
        Is("\"5s\""),
        "\"10s\"",
        "Longest wait for a TCP and TLS handshake. Two lost packets are survived.",
    ),
    option(
        Origin,
        "request_timeout",
        Kind::Time(50, 3600 * SECOND),
        Is("\"30s\""),
        "\"2m\"",
        "Longest wait from a request to its answer's first byte. Some servers hash an object before they answer.",
    ),
    option(
        Origin,
        "stall_timeout",
        Kind::Time(50, 3600 * SECOND),
        Is("\"10s\""),
        "\"30s\"",
        "Longest silence inside an answer before the piece is asked for again. Longer than any pause that a healthy link makes.",
    ),
];

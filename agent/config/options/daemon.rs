//! The options of the daemon around the engine: listeners, log, process. A table and nothing else.

use super::Preset::{Computed, Is, Required, Unset};
use super::Section::{Daemon, Listen, Log, Tcp, Tls};
use super::{Kind, MIB, SECOND, Spec, option};

/// The options.
pub(super) const OPTIONS: [Spec; 14] = [
    option(
        Listen,
        "unix",
        Kind::Path,
        Computed(
            "$RUNTIME_DIRECTORY/tierd.sock (systemd), else /run/tierd/tierd.sock for root, else $XDG_RUNTIME_DIR/tierd/tierd.sock, else tierd.sock in the state folder",
        ),
        "\"/run/tierd/tierd.sock\"",
        "The Unix socket, mode 0660: the full API. At most 107 bytes, the kernel's limit.",
    ),
    option(
        Listen,
        "http",
        Kind::AddressOrOff,
        Is("\"127.0.0.1:9469\""),
        "\"0.0.0.0:9469\"",
        "The status page at `/`, `/metrics`, `/livez` and `/readyz`: plain HTTP, read-only, for everybody who reaches it. Local until somebody decides otherwise.",
    ),
    option(
        Listen,
        "requests_max",
        Kind::Count(1, 65_536),
        Is("1024"),
        "256",
        "Most gRPC requests at once, over all connections. A launcher and a scheduler need a handful; the rest is for progress streams.",
    ),
    option(
        Listen,
        "message_bytes_max",
        Kind::Size(64 << 10, 256 * MIB),
        Is("\"4 MiB\""),
        "\"16 MiB\"",
        "Largest gRPC message that is read. gRPC's own default: room for 1024 names of 1 KiB four times over.",
    ),
    option(
        Listen,
        "workflow_bytes_max",
        Kind::Size(64 << 10, 64 * MIB),
        Is("\"16 MiB\""),
        "\"32 MiB\"",
        "Largest workflow that is read; all of one call together. The largest known have 2 MB; reading one takes up to twelve times its size for a moment.",
    ),
    option(Tcp, "address", Kind::Address, Required, "\"127.0.0.1:9470\"", "The address."),
    option(
        Tcp,
        "token_file",
        Kind::SecretFile,
        Unset,
        "\"token\"",
        "File with the bearer token that every call must carry.",
    ),
    option(
        Tcp,
        "token_env",
        Kind::SecretEnv,
        Unset,
        "\"TIERD_LISTEN_TOKEN\"",
        "Environment variable with the bearer token that every call must carry.",
    ),
    option(Tls, "certificate", Kind::Path, Required, "\"server.pem\"", "PEM file with the certificate chain."),
    option(Tls, "key", Kind::Path, Required, "\"server.key\"", "PEM file with the private key."),
    option(
        Tls,
        "client_ca",
        Kind::Path,
        Unset,
        "\"clients.pem\"",
        "PEM file with the authorities whose client certificates are accepted. With it, a client certificate is required.",
    ),
    option(
        Log,
        "format",
        Kind::Choice(&["text", "json"]),
        Is("\"text\""),
        "\"json\"",
        "`text` for people and the journal, `json` for machines.",
    ),
    option(
        Log,
        "filter",
        Kind::Filter,
        Is("\"info\""),
        "\"info,tierd_cache::origin=debug\"",
        "What is logged: error, warn, info, debug, trace, for all or for one module. `info` is a few lines for each model.",
    ),
    option(
        Daemon,
        "drain_deadline",
        Kind::Time(100, 3600 * SECOND),
        Is("\"20s\""),
        "\"1m\"",
        "Longest time for a graceful stop. Below systemd's 90 s and Kubernetes' 30 s, after which both kill.",
    ),
];

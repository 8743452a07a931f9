//! The options of the fleet: NATS, and what this node is called there. A table and nothing else.

use super::Preset::{Computed, Is, Required, Unset};
use super::Section::Fleet;
use super::{Kind, SECOND, Spec, option};

/// The options.
pub(super) const OPTIONS: [Spec; 10] = [
    option(
        Fleet,
        "nats",
        Kind::Text,
        Required,
        "\"nats://127.0.0.1:4222\"",
        "NATS servers, `nats://` or `tls://`, several with commas between. No secret may stand in it.",
    ),
    option(
        Fleet,
        "credentials",
        Kind::Path,
        Unset,
        "\"node.creds\"",
        "File with NATS credentials, as `nsc` writes it.",
    ),
    option(Fleet, "token_file", Kind::SecretFile, Unset, "\"nats-token\"", "File with a NATS token."),
    option(
        Fleet,
        "token_env",
        Kind::SecretEnv,
        Unset,
        "\"TIERD_NATS_TOKEN\"",
        "Environment variable with a NATS token.",
    ),
    option(
        Fleet,
        "ca",
        Kind::Path,
        Unset,
        "\"nats-ca.pem\"",
        "PEM file with authorities to trust for `tls://`, beside the system's.",
    ),
    option(
        Fleet,
        "node",
        Kind::Text,
        Computed("the host's name"),
        "\"gpu-17\"",
        "What this node is called, unique in the fleet: letters, digits, `-` and `_`.",
    ),
    option(
        Fleet,
        "address",
        Kind::Text,
        Unset,
        "\"https://gpu-17.example:9470\"",
        "Where schedulers reach this node's gRPC; told with every answer.",
    ),
    option(
        Fleet,
        "labels",
        Kind::Text,
        Unset,
        "\"region=eu,gpu=h100,pool=batch\"",
        "What schedulers filter by: `key=value`, several with commas between.",
    ),
    option(
        Fleet,
        "prefix",
        Kind::Text,
        Is("\"tierd\""),
        "\"staging\"",
        "First part of every subject and of the bucket's name: fleets that share a NATS server do not hear each other.",
    ),
    option(
        Fleet,
        "inventory_interval",
        Kind::Time(SECOND, 3600 * SECOND),
        Is("\"10s\""),
        "\"1m\"",
        "How often this node tells what it holds. Who misses three is forgotten.",
    ),
];

//! The options of a caller: what it may do, and what it is known by. A table and nothing else.

use super::Preset::{Required, Unset};
use super::Section::Caller;
use super::{Kind, Spec, option};

/// The roles, from the least to the most.
pub(in crate::config) const ROLES: &[&str] = &["read", "ensure", "admin"];
/// The same for those who are not named: `none` shuts the door.
pub(in crate::config) const ROLES_OR_NONE: &[&str] = &["none", "read", "ensure", "admin"];

/// The options.
pub(super) const OPTIONS: [Spec; 7] = [
    option(
        Caller,
        "name",
        Kind::Text,
        Required,
        "\"scheduler\"",
        "What it is called in messages and in its limits: letters, digits, `-`, `_` and `.`.",
    ),
    option(Caller, "role", Kind::Choice(ROLES), Required, "\"ensure\"", "What it may do."),
    option(
        Caller,
        "token_file",
        Kind::SecretFile,
        Unset,
        "\"scheduler-token\"",
        "File with its bearer token, for TCP. Where there is any token, every call over TCP must carry one.",
    ),
    option(
        Caller,
        "token_env",
        Kind::SecretEnv,
        Unset,
        "\"TIERD_SCHEDULER_TOKEN\"",
        "Environment variable with its bearer token, for TCP.",
    ),
    option(
        Caller,
        "certificate",
        Kind::Text,
        Unset,
        "\"scheduler.example\"",
        "A name in its client certificate, exactly: the common name, a DNS name or a URI. Needs `listen.tcp.tls.client_ca`.",
    ),
    option(Caller, "uid", Kind::Count(0, u32::MAX as u64), Unset, "1000", "Its user, on the Unix socket."),
    option(
        Caller,
        "gid",
        Kind::Count(0, u32::MAX as u64),
        Unset,
        "1000",
        "Its primary group, on the Unix socket: the kernel tells no others.",
    ),
];

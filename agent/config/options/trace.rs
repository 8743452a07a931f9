//! The options of recorded traces. A table and nothing else.

use super::Preset::{Is, Unset};
use super::Section::Trace;
use super::{Kind, MIB, Spec, option};

/// The options.
pub(super) const OPTIONS: [Spec; 3] = [
    option(
        Trace,
        "record",
        Kind::Path,
        Unset,
        "\"/var/lib/tierd/traces\"",
        "The folder for one pair of CSV files a day (UTC): which models each demand asked for, and when. Nothing is recorded without it: it says who asked for what.",
    ),
    option(
        Trace,
        "hash_names",
        Kind::Flag,
        Is("false"),
        "true",
        "Whether names of models and callers are written as hashes, by a secret that stays in the folder: the same name is the same hash, and sizes stay readable.",
    ),
    option(
        Trace,
        "bytes_max",
        Kind::Size(MIB, 1 << 50),
        Is("\"1 GiB\""),
        "\"100 MiB\"",
        "Most bytes of all days; the oldest go when a day begins. A line is about 80 bytes: a year of ten thousand requests a day.",
    ),
];

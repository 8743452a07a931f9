//! The options of the engine: store, fetch, catalog, limits. A table and nothing else.

use super::Preset::{Computed, Is};
use super::Section::{Catalog, Fetch, Limits, Store};
use super::{DAY, Kind, MIB, SECOND, Spec, option};

/// Most entries that any list or queue may be configured for.
const LIST_MAX: u64 = 1_000_000;

/// The options.
pub(super) const OPTIONS: [Spec; 20] = [
    option(
        Store,
        "path",
        Kind::Path,
        Computed(
            "$STATE_DIRECTORY (systemd), else /var/lib/tierd for root, else $XDG_STATE_HOME/tierd, else ~/.local/state/tierd",
        ),
        "\"/mnt/nvme/tierd\"",
        "The folder that holds everything: blobs, unfinished blobs, the journal. Put it on the fastest disk.",
    ),
    option(
        Store,
        "models",
        Kind::Path,
        Computed("the folder `models` below store.path"),
        "\"/mnt/nvme/models\"",
        "Where models appear under ComfyUI's names. Must be on the same file system as store.path: names are hard links.",
    ),
    option(
        Store,
        "budget",
        Kind::Share,
        Is("\"90%\""),
        "\"500 GiB\"",
        "Most bytes that models may take, downloads included; at least 64 MiB. Nearly all of the file system: a cache disk is there to be used.",
    ),
    option(
        Store,
        "keep_free",
        Kind::Share,
        Is("\"5%\""),
        "\"20 GiB\"",
        "Bytes of the file system that always stay free, whoever uses the rest. ext4 and xfs slow down when they are nearly full.",
    ),
    option(
        Store,
        "direct_io",
        Kind::Choice(&["auto", "off"]),
        Is("\"auto\""),
        "\"off\"",
        "Whether fetched bytes bypass the page cache. `auto` tries it per file system and writes through the cache where it is refused; `off` never bypasses it.",
    ),
    option(
        Store,
        "file_mode",
        Kind::Mode,
        Is("\"0640\""),
        "\"0644\"",
        "Permissions of blobs and models. Readable by ComfyUI's user through the group, by no one else.",
    ),
    option(Store, "dir_mode", Kind::Mode, Is("\"0750\""), "\"0755\"", "Permissions of folders, for the same reason."),
    option(
        Fetch,
        "connections_max",
        Kind::Count(1, 1024),
        Is("64"),
        "32",
        "Most connections over all origins, for the same reason as an origin's own.",
    ),
    option(
        Fetch,
        "bytes_in_flight_max",
        Kind::Size(8 * MIB, 65_536 * MIB),
        Is("\"96 MiB\""),
        "\"256 MiB\"",
        "Most bytes held in memory between the network and the disk. 64 connections with 1 MiB each, and half as much again for what the disk is busy with.",
    ),
    option(Fetch, "bandwidth_max", Kind::Rate, Is("\"none\""), "\"1 GiB\"", "Most bytes a second over all origins."),
    option(
        Fetch,
        "attempts_max",
        Kind::Count(1, 100),
        Is("8"),
        "12",
        "Attempts for one piece before its flight fails. With the back-off below it rides out a minute of server errors.",
    ),
    option(
        Fetch,
        "backoff_min",
        Kind::Time(1, 60 * SECOND),
        Is("\"200ms\""),
        "\"500ms\"",
        "First wait after a failed attempt; doubles up to backoff_max, with jitter. Longer than a load balancer's hiccup.",
    ),
    option(
        Fetch,
        "backoff_max",
        Kind::Time(1, 3600 * SECOND),
        Is("\"20s\""),
        "\"1m\"",
        "Longest wait after a failed attempt. A `Retry-After` is obeyed up to this too: somebody waits for the model.",
    ),
    option(
        Catalog,
        "refresh_interval",
        Kind::Time(SECOND, 7 * DAY),
        Is("\"5m\""),
        "\"1h\"",
        "How often origins are listed again. A bucket changes by deployments, and a page of 1000 names is one request.",
    ),
    option(
        Limits,
        "ensures_max",
        Kind::Count(1, LIST_MAX),
        Is("1024"),
        "64",
        "Callers waiting at once. A node has one launcher and a few people.",
    ),
    option(
        Limits,
        "models_per_request_max",
        Kind::Count(1, 65_536),
        Is("1024"),
        "100",
        "Models in one request. A workflow has 3 to 40.",
    ),
    option(
        Limits,
        "flights_max",
        Kind::Count(1, LIST_MAX),
        Is("4096"),
        "128",
        "Flights at once, waiting ones included. More than a large bucket has models.",
    ),
    option(Limits, "leases_max", Kind::Count(1, LIST_MAX), Is("4096"), "128", "Leases at once. Each is kept on disk."),
    option(
        Limits,
        "events_max",
        Kind::Count(1, LIST_MAX),
        Is("4096"),
        "256",
        "Events kept for `tierd events` and for watchers that resume. A busy day, in about a megabyte.",
    ),
    option(
        Limits,
        "lease_max",
        Kind::Time(SECOND, 366 * DAY),
        Is("\"7d\""),
        "\"1d\"",
        "Longest lease. A forgotten pin must end some day.",
    ),
];

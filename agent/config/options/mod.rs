//! The table of options: each is declared once, in one of the files here, with its kind, its default and the reason for it. Unknown keys,
//! ranges, the reference file and docs/configuration.md all come from this table. A test holds the defaults equal to
//! those that the code has.

mod caller;
mod comfy;
mod daemon;
mod engine;
mod fleet;
mod origin;
mod trace;

use super::kind::Kind;

/// A section of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::config) enum Section {
    Store,
    Ram,
    Predict,
    Origin,
    Fetch,
    Catalog,
    Listen,
    Tcp,
    Tls,
    Caller,
    Log,
    Limits,
    Daemon,
    Fleet,
    Comfy,
    Trace,
    Telemetry,
}

impl Section {
    /// All sections, in the order of the reference file.
    pub(in crate::config) const ALL: [Self; 17] = [
        Self::Store,
        Self::Ram,
        Self::Predict,
        Self::Origin,
        Self::Fetch,
        Self::Catalog,
        Self::Listen,
        Self::Tcp,
        Self::Tls,
        Self::Caller,
        Self::Log,
        Self::Limits,
        Self::Daemon,
        Self::Fleet,
        Self::Comfy,
        Self::Trace,
        Self::Telemetry,
    ];

    /// Its name in the file.
    pub(in crate::config) fn path(self) -> &'static str {
        match self {
            Self::Store => "store",
            Self::Ram => "ram",
            Self::Predict => "predict",
            Self::Origin => "origin",
            Self::Fetch => "fetch",
            Self::Catalog => "catalog",
            Self::Listen => "listen",
            Self::Tcp => "listen.tcp",
            Self::Tls => "listen.tcp.tls",
            Self::Caller => "caller",
            Self::Log => "log",
            Self::Limits => "limits",
            Self::Daemon => "daemon",
            Self::Fleet => "fleet",
            Self::Comfy => "comfy",
            Self::Trace => "trace",
            Self::Telemetry => "telemetry",
        }
    }

    /// The section with this name.
    pub(in crate::config) fn named(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|section| section.path() == path)
    }

    /// Its header in the file.
    pub(in crate::config) fn header(self) -> String {
        if self.is_list() { format!("[[{}]]", self.path()) } else { format!("[{}]", self.path()) }
    }

    /// Whether it may stand there many times, each with a name.
    pub(in crate::config) fn is_list(self) -> bool {
        matches!(self, Self::Origin | Self::Caller)
    }

    /// Whether its header alone changes what the daemon does, so that the reference file must comment it out.
    pub(in crate::config) fn is_optional(self) -> bool {
        self.is_list() || matches!(self, Self::Tcp | Self::Tls | Self::Fleet)
    }

    /// What it is about.
    pub(in crate::config) fn about(self) -> &'static str {
        match self {
            Self::Store => "The disk (L3): where models are kept and how many bytes they may take.",
            Self::Ram => {
                "RAM (L2): models that are held in the page cache, where every process on the node reads them. Less is held where \
                 a cgroup, RLIMIT_MEMLOCK or the reserve says so; `tierd status` says which."
            }
            Self::Predict => {
                "What is likely to be asked for next, learned from what was. Acted on only once it has proved right on this node, and only \
                 while nobody waits; docs/policy.md has the whole story."
            }
            Self::Origin => {
                "Where models come from (L4). One such block for each origin, the preferred one first. Without any, \
                 the folder `origin` beside the store's other folders is the only origin, named `local`."
            }
            Self::Fetch => "How bytes are fetched, over all origins.",
            Self::Catalog => "What origins have.",
            Self::Listen => "Where the daemon listens.",
            Self::Tcp => {
                "gRPC over TCP. Off unless this section is there. On an address that is not loopback it needs TLS, \
                 and a token or client certificates."
            }
            Self::Tls => "TLS of the TCP listener. Off unless this section is there.",
            Self::Caller => {
                "Who may do what: one such block for each caller, the first that fits counts. The roles: `read` asks, `ensure` also \
                 fetches, holds and reports, `admin` also evicts, stops, imports and verifies. A caller is known by any of \
                 `token`, `certificate`, `uid` and `gid`; at least one must be set. Who fits none has the role of the door: \
                 `listen.socket_role`, `listen.tcp.open_role`, `listen.tcp.tls.client_role`."
            }
            Self::Log => "The log, on standard error.",
            Self::Limits => "Limits of queues and lists: none of them may grow without bound.",
            Self::Daemon => "The process.",
            Self::Fleet => {
                "Many nodes over NATS: this one answers how soon a set could be ready, and tells what it holds and what happens. \
                 Off unless this section is there. docs/fleet.md has the messages."
            }
            Self::Trace => {
                "What people asked for, written down day by day, so that `tierd replay` can say what a bigger disk, more RAM or \
                 another policy would bring. Off unless `record` is set."
            }
            Self::Comfy => "ComfyUI on this node: what its node pack may ask for, and what its reports are used for.",
            Self::Telemetry => {
                "Traces, for those who keep them. Metrics are served at `listen.http` whether this is set or not."
            }
        }
    }
}

/// What an option is when nobody sets it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::config) enum Preset {
    /// This TOML value.
    Is(&'static str),
    /// Found out at the start, in these words.
    Computed(&'static str),
    /// Nothing.
    Unset,
    /// It must be set.
    Required,
}

/// One option.
#[derive(Debug, Clone, Copy)]
pub(in crate::config) struct Spec {
    pub(in crate::config) section: Section,
    pub(in crate::config) key: &'static str,
    pub(in crate::config) kind: Kind,
    pub(in crate::config) preset: Preset,
    /// A TOML value other than the default.
    pub(in crate::config) example: &'static str,
    /// What it does and the reason for its default.
    pub(in crate::config) about: &'static str,
    /// The kinds of origin that it is for; empty for all.
    pub(in crate::config) only: &'static [&'static str],
}

impl Spec {
    /// Its full name, as messages and the documents have it.
    pub(in crate::config) fn path(&self) -> String {
        format!("{}.{}", self.section.path(), self.key)
    }

    /// The environment variable that overrides it.
    pub(in crate::config) fn variable(&self) -> String {
        let section = if self.section.is_list() {
            format!("{}_<NAME>", self.section.path().to_ascii_uppercase())
        } else {
            self.section.path().replace('.', "__").to_ascii_uppercase()
        };
        format!("TIERD_{section}__{}", self.key.to_ascii_uppercase())
    }
}

/// Every option.
pub(in crate::config) fn all() -> impl Iterator<Item = &'static Spec> {
    let rest = daemon::OPTIONS.iter().chain(&caller::OPTIONS).chain(&fleet::OPTIONS).chain(&comfy::OPTIONS);
    let rest = rest.chain(&trace::OPTIONS);
    engine::OPTIONS.iter().chain(&origin::OPTIONS).chain(rest)
}

/// The option `key` of `section`.
pub(in crate::config) fn find(section: Section, key: &str) -> Option<&'static Spec> {
    all().find(|spec| spec.section == section && spec.key == key)
}

/// All options of a section, in their order.
pub(in crate::config) fn of(section: Section) -> impl Iterator<Item = &'static Spec> {
    all().filter(move |spec| spec.section == section)
}

const fn option(
    section: Section,
    key: &'static str,
    kind: Kind,
    preset: Preset,
    example: &'static str,
    about: &'static str,
) -> Spec {
    Spec { section, key, kind, preset, example, about, only: &[] }
}

const MIB: u64 = 1 << 20;
const SECOND: u64 = 1000;
const DAY: u64 = 86_400 * SECOND;

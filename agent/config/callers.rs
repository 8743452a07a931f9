//! Callers out of their tables: who may do what, and what each is known by.

use tierd_cache::config::Secret;

use super::options::Section;
use super::raw::{Raw, Table};
use super::reader::{Reader, count32, text, words};
use super::variables::spelled;

/// Longest name of a caller.
const NAME_BYTES_MAX: usize = 63;

/// What a caller may do. Each may do what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Ask.
    Read,
    /// Fetch, hold and report.
    Ensure,
    /// Evict, stop, import, verify.
    Admin,
}

impl Role {
    /// As the configuration spells it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Ensure => "ensure",
            Self::Admin => "admin",
        }
    }

    fn named(word: &str) -> Option<Self> {
        [Self::Read, Self::Ensure, Self::Admin].into_iter().find(|role| role.word() == word)
    }
}

/// A caller, known by any of its proofs.
#[derive(Debug, Clone)]
pub struct CallerConfig {
    /// Its name.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// Its bearer token, over TCP.
    pub token: Option<Secret>,
    /// A name in its client certificate.
    pub certificate: Option<String>,
    /// Its user, on the Unix socket.
    pub uid: Option<u32>,
    /// Its primary group, on the Unix socket.
    pub gid: Option<u32>,
}

/// All callers, in their order. What is wrong goes to the reader's problems, and the caller stays away.
pub(super) fn build(raw: &Raw, reader: &mut Reader<'_>) -> Vec<CallerConfig> {
    let mut callers = Vec::new();
    for (at, table) in raw.callers.iter().enumerate() {
        check_name(table, &raw.callers[..at], reader);
        check_doors(table, raw, reader);
        let token = reader.secret(table, "token");
        let Some(role) = words(Some(table), "role").and_then(|word| Role::named(&word)) else {
            reader.missing(table, "role");
            continue;
        };
        let certificate = text(table, "certificate").filter(|name| !name.is_empty());
        let (uid, gid) = (count32(Some(table), "uid"), count32(Some(table), "gid"));
        callers.push(CallerConfig { name: table.name().to_owned(), role, token, certificate, uid, gid });
    }
    check_twins(raw, &callers, reader);
    callers
}

/// The role of those who are not named: none for `none`, and `preset` if nothing was set.
pub(super) fn role_or_none(table: Option<&Table>, key: &str, preset: Role) -> Option<Role> {
    words(table, key).map_or(Some(preset), |word| Role::named(&word))
}

fn check_name(table: &Table, earlier: &[Table], reader: &mut Reader<'_>) {
    let name = table.name();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let (place, path) = (table.place_of("name"), table.path("name"));
    if name.is_empty() && table.get("name").is_none() {
        reader.missing(table, "name");
    } else if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.chars().all(plain) || spelled(name).contains("__")
    {
        let right = "use letters and digits with single -, _ or . between them, at most 63";
        reader.problems.add_with(place, path, "is no name for a caller", right);
    } else if earlier.iter().any(|other| spelled(other.name()) == spelled(name)) {
        let what = "is the name of another caller too";
        reader.problems.add_with(place, path, what, "give each caller a name of its own");
    }
}

/// What a caller is known by must be asked for somewhere.
fn check_doors(table: &Table, raw: &Raw, reader: &mut Reader<'_>) {
    let proofs = ["token_file", "token_env", "certificate", "uid", "gid"];
    if !proofs.iter().any(|key| table.has(key)) {
        let right = "set token_file, token_env, certificate, uid or gid";
        reader.problems.add_with(&table.place, &table.label, "is known by nothing", right);
    }
    for key in ["token_file", "token_env"] {
        if table.has(key) && !raw.tables.contains_key(&Section::Tcp) {
            let what = "is for TCP, and there is no [listen.tcp]";
            reader.problems.add_with(table.place_of(key), table.path(key), what, "add it, or use uid or gid");
        }
    }
    let asks = raw.tables.get(&Section::Tls).is_some_and(|tls| tls.has("client_ca"));
    if table.has("certificate") && !asks {
        let what = "is never asked for";
        let right = "set client_ca in [listen.tcp.tls]";
        reader.problems.add_with(table.place_of("certificate"), table.path("certificate"), what, right);
    }
}

/// One token for two callers would give the first one's role to the second.
fn check_twins(raw: &Raw, callers: &[CallerConfig], reader: &mut Reader<'_>) {
    for (at, caller) in callers.iter().enumerate() {
        let twin = callers[..at].iter().find(|other| caller.token.is_some() && other.token == caller.token);
        let table = raw.callers.iter().find(|table| table.name() == caller.name);
        if let (Some(twin), Some(table)) = (twin, table) {
            let key = if table.has("token_file") { "token_file" } else { "token_env" };
            let what = format!("holds the token of {} too", twin.name);
            reader.problems.add_with(table.place_of(key), table.path(key), what, "give each caller a token of its own");
        }
    }
}

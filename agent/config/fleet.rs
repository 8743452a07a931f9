//! The fleet's section: what depends on more than one option, or on how a text is made.

use std::collections::BTreeMap;

use crate::fleet::FleetConfig;

use super::options::Section;
use super::raw::{Raw, Table};
use super::reader::{Reader, text, time, words};

/// Most servers, and most labels.
const ENTRIES_MAX: usize = 32;
/// Longest name of a node, prefix, label or value, in characters.
const NAME_CHARS_MAX: usize = 63;

/// Reads the section. `None` if it is not there, or wrong.
pub(super) fn fleet(raw: &Raw, reader: &mut Reader<'_>) -> Option<FleetConfig> {
    let table = raw.tables.get(&Section::Fleet)?;
    let some = Some(table);
    let token = reader.secret(table, "token");
    let credentials = reader.file(table, "credentials");
    let ca = reader.file(table, "ca");
    let prefix = words(some, "prefix").unwrap_or_else(|| "tierd".to_owned());
    let node = text(table, "node").or_else(|| sysinfo::System::host_name().ok()).unwrap_or_default();
    for (key, name) in [("prefix", &prefix), ("node", &node)] {
        if !is_name(name) {
            let right = format!("letters, digits, - and _, 1 to {NAME_CHARS_MAX} of them");
            reader.problems.add_with(table.place_of(key), table.path(key), format!("is {name:?}"), right);
        }
    }
    let labels = labels(table, reader);
    let servers = servers(table, reader)?;
    Some(FleetConfig {
        servers,
        credentials,
        token,
        ca,
        node,
        address: text(table, "address").unwrap_or_default(),
        labels,
        prefix,
        inventory_interval: time(some, "inventory_interval").unwrap_or(std::time::Duration::from_secs(10)),
    })
}

/// Whether a text can be one part of a subject.
fn is_name(text: &str) -> bool {
    let good = |letter: char| letter.is_ascii_alphanumeric() || letter == '-' || letter == '_';
    !text.is_empty() && text.len() <= NAME_CHARS_MAX && text.chars().all(good)
}

fn servers(table: &Table, reader: &mut Reader<'_>) -> Option<Vec<String>> {
    let Some(given) = text(table, "nats") else {
        reader.missing(table, "nats");
        return None;
    };
    let (place, path) = (table.place_of("nats"), table.path("nats"));
    if given.contains('@') {
        // Not shown: it may be a password.
        let right = "use credentials, token_file or token_env";
        reader.problems.add_with(place, path, "holds a user or a password", right);
        return None;
    }
    let servers: Vec<String> = given.split(',').map(|server| server.trim().to_owned()).collect();
    let good = |server: &String| {
        let rest = server.strip_prefix("nats://").or(server.strip_prefix("tls://"));
        rest.is_some_and(|rest| !rest.is_empty() && !rest.contains('/'))
    };
    if servers.len() > ENTRIES_MAX || !servers.iter().all(good) {
        let right = "write nats://host:4222 or tls://host:4222, several with commas between";
        reader.problems.add_with(place, path, format!("{given:?} is not a list of NATS servers"), right);
        return None;
    }
    Some(servers)
}

fn labels(table: &Table, reader: &mut Reader<'_>) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    let Some(given) = text(table, "labels") else { return labels };
    for entry in given.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
        let pair = entry.split_once('=').map(|(key, value)| (key.trim(), value.trim()));
        let right = |(key, value): &(&str, &str)| is_name(key) && value.chars().count() <= NAME_CHARS_MAX;
        match pair.filter(right) {
            Some((key, value)) => drop(labels.insert(key.to_owned(), value.to_owned())),
            None => {
                let right = "write key=value, several with commas between";
                let (place, path) = (table.place_of("labels"), table.path("labels"));
                reader.problems.add_with(place, path, format!("{entry:?} is not a label"), right);
            }
        }
    }
    if labels.len() > ENTRIES_MAX {
        let what = format!("{} labels, at most {ENTRIES_MAX} are allowed", labels.len());
        reader.problems.add(table.place_of("labels"), table.path("labels"), what);
    }
    labels
}

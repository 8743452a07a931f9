//! Environment overrides: `TIERD_<SECTION>__<KEY>`, and `TIERD_ORIGIN_<NAME>__<KEY>` for origins, the same for callers. Two underscores mark a
//! setting; variables with one are left alone, because container platforms make such variables themselves
//! (`TIERD_SERVICE_HOST` for a service called tierd).

use std::collections::BTreeMap;

use super::kind::Value;
use super::options::{self, Section, Spec};
use super::problems::{Gathered, Place, nearest};
use super::raw::{ENTRIES_MAX, Raw, Table, known};

/// The environment, as the daemon found it at its start.
pub(super) type Env = BTreeMap<String, String>;

/// Applies all overrides. What is wrong goes to `problems`.
pub(super) fn apply(env: &Env, raw: &mut Raw, problems: &mut Gathered) {
    let in_file = LISTS.map(|list| raw.list(list).map_or(0, |entries| entries.len()));
    for (variable, text) in env.iter().filter(|(name, _)| name.starts_with("TIERD_")) {
        let place = Place::Variable(variable.clone());
        let Some((head, key)) = variable["TIERD_".len()..].rsplit_once("__") else {
            single_underscore(variable, &place, problems);
            continue;
        };
        let key = key.to_ascii_lowercase();
        let value = Value::Given(text.clone());
        if let Some((list, name)) = entry_of(head) {
            let Some(table) = entry(raw, list, name, &place, problems) else { continue };
            if let Some(spec) = known(list, &key, &table.label.clone(), &place, problems) {
                table.put(spec, &value, place, problems);
            }
            continue;
        }
        let path = head.replace("__", ".").to_ascii_lowercase();
        let Some(section) = Section::named(&path).filter(|section| !section.is_list()) else {
            unknown(variable, &path, &place, problems);
            continue;
        };
        if let Some(spec) = known(section, &key, section.path(), &place, problems) {
            raw.table(section, &place).put(spec, &value, place, problems);
        }
    }
    for (list, in_file) in LISTS.into_iter().zip(in_file) {
        if let Some(entries) = raw.list(list) {
            refuse_slips(list, entries, in_file, problems);
        }
    }
}

/// The sections that are lists.
const LISTS: [Section; 2] = [Section::Origin, Section::Caller];

/// The list and the name in `ORIGIN_R2`.
fn entry_of(head: &str) -> Option<(Section, &str)> {
    LISTS.into_iter().find_map(|list| {
        let name = head.strip_prefix(&list.path().to_ascii_uppercase())?.strip_prefix('_')?;
        (!name.is_empty()).then_some((list, name))
    })
}

/// Entries that exist in the environment alone are complete or a slip in a name: says which names the file has.
fn refuse_slips(list: Section, entries: &mut [Table], in_file: usize, problems: &mut Gathered) {
    let (word, first) = (list.path(), if list == Section::Origin { "kind" } else { "role" });
    let names: Vec<String> = entries[..in_file].iter().map(|entry| entry.label.clone()).collect();
    for entry in entries[in_file..].iter_mut().filter(|entry| !entry.has(first)) {
        let right = if names.is_empty() {
            format!("set its {first} too")
        } else {
            format!("set its {first} too, or use the name of one in the file: {}", names.join(", "))
        };
        let what = format!("the file has no such {word}, and its {first} is not set");
        problems.add_with(&entry.place, entry.path(first), what, right);
        entry.refuse(first);
    }
}

/// The table of the entry that goes by `name` in variables; made, with that name, if the file has none.
fn entry<'a>(
    raw: &'a mut Raw,
    list: Section,
    name: &str,
    place: &Place,
    problems: &mut Gathered,
) -> Option<&'a mut Table> {
    let entries = raw.list(list)?;
    let found = entries.iter().position(|table| spelled(table.name()) == name);
    let at = match found {
        Some(at) => at,
        None if entries.len() >= ENTRIES_MAX => {
            problems.add(place, list.path(), format!("there are more than {ENTRIES_MAX} {}s", list.path()));
            return None;
        }
        None => {
            let mut table = Table::new(list, list.path(), place.clone());
            let spec = options::find(list, "name").expect("every entry of a list has a name");
            table.put(spec, &Value::Given(name.to_ascii_lowercase()), place.clone(), problems);
            table.rename();
            entries.push(table);
            entries.len() - 1
        }
    };
    entries.get_mut(at)
}

/// An entry's name as variables spell it: `my-r2` is `MY_R2`.
pub(super) fn spelled(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect()
}

fn unknown(variable: &str, path: &str, place: &Place, problems: &mut Gathered) {
    let names: Vec<String> = options::all().map(Spec::variable).collect();
    let what = "sets nothing: there is no such section";
    if let Some(list) = LISTS.into_iter().find(|list| list.path() == path) {
        let article = if list == Section::Origin { "an" } else { "a" };
        let right =
            format!("{article} {path}'s variables are called TIERD_{}_<NAME>__<KEY>", path.to_ascii_uppercase());
        problems.add_with(place, "", what, right);
        return;
    }
    match nearest(variable, names.iter().map(String::as_str)) {
        Some(near) => problems.add_with(place, "", what, format!("did you mean {near}?")),
        None => problems.add(place, "", what),
    }
}

/// `TIERD_STORE_PATH` instead of `TIERD_STORE__PATH`: would silently do nothing.
fn single_underscore(variable: &str, place: &Place, problems: &mut Gathered) {
    let meant = options::all().find(|spec| spec.variable().replace("__", "_") == variable);
    if let Some(spec) = meant {
        let right = format!("two underscores part section and key: {}", spec.variable());
        problems.add_with(place, "", "sets nothing", right);
    }
}

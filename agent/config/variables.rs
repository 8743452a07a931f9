//! Environment overrides: `TIERD_<SECTION>__<KEY>`, and `TIERD_ORIGIN_<NAME>__<KEY>` for origins. Two underscores mark a
//! setting; variables with one are left alone, because container platforms make such variables themselves
//! (`TIERD_SERVICE_HOST` for a service called tierd).

use std::collections::BTreeMap;

use super::kind::Value;
use super::options::{self, Section, Spec};
use super::problems::{Gathered, Place, nearest};
use super::raw::{ORIGINS_MAX, Raw, Table, known};

/// The environment, as the daemon found it at its start.
pub(super) type Env = BTreeMap<String, String>;

/// Applies all overrides. What is wrong goes to `problems`.
pub(super) fn apply(env: &Env, raw: &mut Raw, problems: &mut Gathered) {
    let in_file = raw.origins.len();
    for (variable, text) in env.iter().filter(|(name, _)| name.starts_with("TIERD_")) {
        let place = Place::Variable(variable.clone());
        let Some((head, key)) = variable["TIERD_".len()..].rsplit_once("__") else {
            single_underscore(variable, &place, problems);
            continue;
        };
        let key = key.to_ascii_lowercase();
        let value = Value::Given(text.clone());
        if let Some(name) = head.strip_prefix("ORIGIN_").filter(|name| !name.is_empty()) {
            let Some(table) = origin(raw, name, &place, problems) else { continue };
            if let Some(spec) = known(Section::Origin, &key, &table.label.clone(), &place, problems) {
                table.put(spec, &value, place, problems);
            }
            continue;
        }
        let path = head.replace("__", ".").to_ascii_lowercase();
        let Some(section) = Section::named(&path).filter(|section| *section != Section::Origin) else {
            unknown(variable, &path, &place, problems);
            continue;
        };
        if let Some(spec) = known(section, &key, section.path(), &place, problems) {
            raw.table(section, &place).put(spec, &value, place, problems);
        }
    }
    // Origins that exist in the environment alone are complete or a slip in a name: say which names the file has.
    for at in in_file..raw.origins.len() {
        if raw.origins[at].has("kind") {
            continue;
        }
        let origin = &raw.origins[at];
        let names: Vec<String> = raw.origins[..in_file].iter().map(|origin| origin.label.clone()).collect();
        let right = if names.is_empty() {
            "set its kind too".to_owned()
        } else {
            format!("set its kind too, or use the name of one in the file: {}", names.join(", "))
        };
        problems.add_with(
            &origin.place,
            origin.path("kind"),
            "the file has no such origin, and its kind is not set",
            right,
        );
        raw.origins[at].refuse("kind");
    }
}

/// The table of the origin that goes by `name` in variables; made, with that name, if the file has none.
fn origin<'a>(raw: &'a mut Raw, name: &str, place: &Place, problems: &mut Gathered) -> Option<&'a mut Table> {
    let is_it = |table: &Table| spelled(table.name()) == name;
    let found = raw.origins.iter().position(is_it);
    let at = match found {
        Some(at) => at,
        None if raw.origins.len() >= ORIGINS_MAX => {
            problems.add(place, "origin", format!("there are more than {ORIGINS_MAX} origins"));
            return None;
        }
        None => {
            let mut table = Table::new(Section::Origin, "origin", place.clone());
            let spec = options::find(Section::Origin, "name").expect("an origin has a name");
            table.put(spec, &Value::Given(name.to_ascii_lowercase()), place.clone(), problems);
            table.rename();
            raw.origins.push(table);
            raw.origins.len() - 1
        }
    };
    raw.origins.get_mut(at)
}

/// An origin's name as variables spell it: `my-r2` is `MY_R2`.
pub(super) fn spelled(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect()
}

fn unknown(variable: &str, path: &str, place: &Place, problems: &mut Gathered) {
    let names: Vec<String> = options::all().map(Spec::variable).collect();
    let what = "sets nothing: there is no such section";
    if path == "origin" {
        problems.add_with(place, "", what, "an origin's variables are called TIERD_ORIGIN_<NAME>__<KEY>");
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

//! What a person wrote: the file's tables with every value checked against its kind, and the place of each. Finds unknown
//! keys and misfits; knows nothing of how options depend on one another.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::kind::{Kind, Typed, Value};
use super::options::{self, Section, Spec};
use super::problems::{Gathered, Place, nearest, shown};

/// Most entries of each list: origins, callers.
pub(super) const ENTRIES_MAX: usize = 64;

/// Everything that was written.
#[derive(Debug, Default)]
pub(super) struct Raw {
    pub(super) tables: BTreeMap<Section, Table>,
    pub(super) origins: Vec<Table>,
    pub(super) callers: Vec<Table>,
}

/// One section, or one entry of a list.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) section: Section,
    /// Its name in messages: `store`, `origin[r2]`.
    pub(super) label: String,
    /// Where its header stands.
    pub(super) place: Place,
    settings: BTreeMap<&'static str, Setting>,
    /// Keys that were written, but wrongly: they are not missing.
    refused: BTreeSet<&'static str>,
}

/// One value.
#[derive(Debug)]
pub(super) struct Setting {
    pub(super) value: Typed,
    pub(super) place: Place,
}

impl Table {
    pub(super) fn new(section: Section, label: impl Into<String>, place: Place) -> Self {
        let (settings, refused) = (BTreeMap::new(), BTreeSet::new());
        Self { section, label: label.into(), place, settings, refused }
    }

    /// Checks a value against its option's kind and keeps it. A later value replaces an earlier one.
    pub(super) fn put(&mut self, spec: &'static Spec, value: &Value, place: Place, problems: &mut Gathered) {
        match spec.kind.read(value) {
            Ok(value) => {
                self.settings.insert(spec.key, Setting { value, place });
            }
            Err(misfit) => {
                self.refused.insert(spec.key);
                problems.add_with(&place, self.path(spec.key), misfit.what, misfit.right);
            }
        }
    }

    /// Notes that a key has its problem already.
    pub(super) fn refuse(&mut self, key: &'static str) {
        self.refused.insert(key);
    }

    /// The full name of one of its keys.
    pub(super) fn path(&self, key: &str) -> String {
        format!("{}.{key}", self.label)
    }

    /// What was set for `key`, if it was and is right.
    pub(super) fn get(&self, key: &str) -> Option<&Setting> {
        debug_assert!(options::find(self.section, key).is_some(), "{key} is not in the table of options");
        self.settings.get(key)
    }

    /// Whether `key` was written, rightly or wrongly.
    pub(super) fn has(&self, key: &str) -> bool {
        self.settings.contains_key(key) || self.refused.contains(key)
    }

    /// Where `key` was written, or else where the table was.
    pub(super) fn place_of(&self, key: &str) -> &Place {
        self.settings.get(key).map_or(&self.place, |setting| &setting.place)
    }

    /// The keys that were set rightly, with their places.
    pub(super) fn keys(&self) -> impl Iterator<Item = (&'static str, &Place)> {
        self.settings.iter().map(|(key, setting)| (*key, &setting.place))
    }

    /// The name of the entry; empty if it has none.
    pub(super) fn name(&self) -> &str {
        match self.settings.get("name") {
            Some(Setting { value: Typed::Text(name), .. }) => name,
            _ => "",
        }
    }

    /// Gives the table the name of its entry, for messages.
    pub(super) fn rename(&mut self) {
        if !self.name().is_empty() {
            self.label = format!("{}[{}]", self.section.path(), self.name().chars().take(63).collect::<String>());
        }
    }
}

impl Raw {
    /// The entries of a list; none for a section that is no list.
    pub(super) fn list(&mut self, section: Section) -> Option<&mut Vec<Table>> {
        match section {
            Section::Origin => Some(&mut self.origins),
            Section::Caller => Some(&mut self.callers),
            _ => None,
        }
    }

    /// The table of a section, made if it is not there yet.
    pub(super) fn table(&mut self, section: Section, place: &Place) -> &mut Table {
        self.tables.entry(section).or_insert_with(|| Table::new(section, section.path(), place.clone()))
    }
}

/// Reads a file's text. What is wrong goes to `problems`; what is right is kept all the same.
pub(super) fn read(text: &str, problems: &mut Gathered) -> Raw {
    let (root, errors) = DeTable::parse_recoverable(text);
    let walk = &mut Walk { lines: Lines::of(text), problems, raw: Raw::default() };
    for error in errors {
        let place = error.span().map_or(Place::Whole, |span| walk.lines.place(&span));
        walk.problems.add(&place, "", format!("this is no TOML: {}", error.message()));
    }
    walk.table(root.get_ref(), None);
    std::mem::take(&mut walk.raw)
}

struct Walk<'a> {
    lines: Lines,
    problems: &'a mut Gathered,
    raw: Raw,
}

impl Walk<'_> {
    /// Reads the root (`section` is none) or one section with the sections inside.
    fn table(&mut self, table: &DeTable<'_>, section: Option<Section>) {
        for (key, value) in table {
            let place = self.lines.place(&key.span());
            let name = key.get_ref();
            let path = section.map_or(name.to_string(), |section| format!("{}.{name}", section.path()));
            match (Section::named(&path), value.get_ref()) {
                (Some(list), value) if list.is_list() => match value {
                    DeValue::Array(entries) => self.list(list, entries, &place),
                    _ => self.problems.add_with(&place, list.path(), "is not a list", above_each(list)),
                },
                (Some(inner), DeValue::Table(content)) => {
                    self.raw.table(inner, &place);
                    self.table(content, Some(inner));
                }
                (Some(inner), _) => {
                    let right = format!("write {} on a line of its own and its keys below", inner.header());
                    self.problems.add_with(&place, path, "is a section, not a value", right);
                }
                (None, value) => match section {
                    Some(section) => {
                        let label = section.path();
                        if let Some(spec) = known(section, name, label, &place, self.problems) {
                            self.raw.table(section, &place).put(spec, &plain(value), place, self.problems);
                        }
                    }
                    None => unknown_section(name, &place, self.problems),
                },
            }
        }
    }

    fn list(&mut self, section: Section, entries: &[Spanned<DeValue<'_>>], place: &Place) {
        let word = section.path();
        if entries.len() > ENTRIES_MAX {
            let what = format!("there are {} {word}s, more than {ENTRIES_MAX}", entries.len());
            self.problems.add(place, word, what);
        }
        for (number, entry) in entries.iter().take(ENTRIES_MAX).enumerate() {
            let place = self.lines.place(&entry.span());
            let label = format!("{word}[#{}]", number + 1);
            let DeValue::Table(content) = entry.get_ref() else {
                self.problems.add_with(&place, label, "is not a table", above_each(section));
                continue;
            };
            let mut table = Table::new(section, label, place);
            // The name first: it is what the other messages call the entry.
            for first in [true, false] {
                for (key, value) in content.iter().filter(|(key, _)| (key.get_ref() == "name") == first) {
                    let place = self.lines.place(&key.span());
                    if let Some(spec) = known(section, key.get_ref(), &table.label, &place, self.problems) {
                        table.put(spec, &plain(value.get_ref()), place, self.problems);
                    }
                }
                table.rename();
            }
            self.raw.list(section).expect("a list").push(table);
        }
    }
}

fn above_each(section: Section) -> String {
    format!("write {} above each {}", section.header(), section.path())
}

/// The option of this name, or a problem that says what was probably meant.
pub(super) fn known(
    section: Section,
    key: &str,
    label: &str,
    place: &Place,
    problems: &mut Gathered,
) -> Option<&'static Spec> {
    if let Some(spec) = options::find(section, key) {
        return Some(spec);
    }
    let path = format!("{label}.{}", key_shown(key));
    if options::find(section, &format!("{key}_file")).is_some_and(|spec| spec.kind == Kind::SecretFile) {
        let what = "secrets are not written into the configuration, where backups and logs would keep them";
        problems.add_with(place, path, what, format!("name a file in {key}_file or a variable in {key}_env"));
        return None;
    }
    let keys = options::of(section).map(|spec| spec.key);
    let inner =
        Section::ALL.into_iter().filter_map(|inner| inner.path().strip_prefix(section.path())?.strip_prefix('.'));
    let elsewhere = || options::all().find(|spec| spec.key == key).map(Spec::path);
    match nearest(key, keys.chain(inner)) {
        Some(near) => problems.add_with(place, path, "unknown key", format!("did you mean {near:?}?")),
        None => match elsewhere() {
            Some(other) => problems.add_with(place, path, "unknown key here", format!("did you mean {other}?")),
            None => problems.add(place, path, "unknown key"),
        },
    }
    None
}

/// A key that nobody knows, short enough and harmless to print.
fn key_shown(key: &str) -> String {
    let plain = key.len() <= 64 && key.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c));
    if plain { key.to_owned() } else { shown(key) }
}

fn unknown_section(name: &str, place: &Place, problems: &mut Gathered) {
    let what = "unknown section";
    if let Some(near) = nearest(name, Section::ALL.into_iter().map(Section::path)) {
        let header = Section::named(near).map_or_else(String::new, Section::header);
        problems.add_with(place, key_shown(name), what, format!("did you mean {header}?"));
    } else if let Some(spec) = options::all().find(|spec| spec.key == name) {
        problems.add_with(place, key_shown(name), what, format!("did you mean {}?", spec.path()));
    } else {
        problems.add(place, key_shown(name), what);
    }
}

fn plain(value: &DeValue<'_>) -> Value {
    match value {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or(Value::Other("an integer of more than 64 bits"), |whole| Value::Whole(whole, number.radix())),
        DeValue::Float(number) => number.as_str().parse().map_or(Value::Other("a float"), Value::Number),
        DeValue::Boolean(flag) => Value::Flag(*flag),
        DeValue::Datetime(_) => Value::Other("a date"),
        DeValue::Array(list) => {
            let word = |value: &Spanned<DeValue<'_>>| match value.get_ref() {
                DeValue::String(text) => Some(text.to_string()),
                _ => None,
            };
            list.iter().map(word).collect::<Option<_>>().map_or(Value::Other("a list"), Value::Words)
        }
        DeValue::Table(_) => Value::Other("a table"),
    }
}

/// Where lines begin, to turn an offset into a line and a column.
struct Lines {
    text: String,
    starts: Vec<usize>,
}

impl Lines {
    fn of(text: &str) -> Self {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { text: text.to_owned(), starts }
    }

    fn place(&self, span: &Range<usize>) -> Place {
        let line = self.starts.partition_point(|start| *start <= span.start);
        let start = self.starts[line - 1];
        let column = self.text.get(start..span.start).map_or(0, |before| before.chars().count()) + 1;
        Place::File { line, column }
    }
}

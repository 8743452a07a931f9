//! Takes checked values out of a table, and resolves what points elsewhere: paths, and secrets in files or variables.

use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tierd_cache::config::Secret;
use tierd_cache::units::Share;

use super::kind::Typed;
use super::places;
use super::problems::{Gathered, Place};
use super::raw::Table;
use super::variables::Env;

/// Largest file that holds a secret.
const SECRET_BYTES_MAX: u64 = 64 << 10;

/// What is around the values: the environment, the file's folder, and the problems found so far.
pub(super) struct Reader<'a> {
    pub(super) env: &'a Env,
    pub(super) root: bool,
    /// The folder of the configuration file, absolute.
    pub(super) folder: Option<PathBuf>,
    pub(super) problems: &'a mut Gathered,
}

impl Reader<'_> {
    /// Notes that a key that must be set is not, unless it is there but wrong.
    pub(super) fn missing(&mut self, table: &Table, key: &str) {
        if table.has(key) {
            return;
        }
        let spec = super::options::find(table.section, key).expect("callers name options of the table");
        let right = format!("set it, for example {key} = {}", spec.example);
        self.problems.add_with(&table.place, table.path(key), "is not set", right);
    }

    /// A path: absolute, below the home folder, or relative to the configuration file.
    pub(super) fn path(&mut self, table: &Table, key: &str) -> Option<PathBuf> {
        let text = text(table, key)?;
        let place = table.place_of(key);
        if let Some(rest) = text.strip_prefix("~/") {
            let home = places::home(self.env);
            if home.is_none() {
                self.problems.add(place, table.path(key), "begins with ~/, but $HOME is not set");
            }
            return home.map(|home| home.join(rest));
        }
        let path = Path::new(&text);
        if path.is_absolute() {
            return Some(path.to_owned());
        }
        match (&self.folder, place) {
            (Some(folder), Place::File { .. }) => Some(folder.join(path)),
            _ => {
                self.problems.add_with(place, table.path(key), "is a relative path", "write an absolute one");
                None
            }
        }
    }

    /// A path of a file that must be readable now.
    pub(super) fn file(&mut self, table: &Table, key: &str) -> Option<PathBuf> {
        let path = self.path(table, key)?;
        if let Err(error) = std::fs::File::open(&path).and_then(|file| file.metadata()) {
            let what = format!("cannot read {}: {error}", path.display());
            self.problems.add(table.place_of(key), table.path(key), what);
        }
        Some(path)
    }

    /// The secret that `<key>_file` or `<key>_env` points at.
    pub(super) fn secret(&mut self, table: &Table, key: &str) -> Option<Secret> {
        let (file, variable) = (format!("{key}_file"), format!("{key}_env"));
        if table.get(&file).is_some() && table.get(&variable).is_some() {
            let what = format!("conflicts with {file}: both say where the secret is");
            self.problems.add_with(table.place_of(&variable), table.path(&variable), what, "keep one of them");
            return None;
        }
        let (from, found) = if table.get(&file).is_some() {
            let found = self.secret_file(table, &file)?;
            (file, found)
        } else {
            let name = text(table, &variable)?;
            let found = self.env.get(&name).cloned().ok_or_else(|| format!("${name} is not set"));
            (variable, found)
        };
        let checked = found.and_then(|secret| {
            let secret = secret.trim();
            if secret.is_empty() {
                return Err("the secret there is empty".to_owned());
            }
            // It is sent in a header: a line break inside would cut it, and means that the wrong file is named.
            if secret.chars().any(char::is_control) {
                return Err("the secret there has several lines or control characters".to_owned());
            }
            Ok(Secret::new(secret))
        });
        checked.map_err(|what| self.problems.add(table.place_of(&from), table.path(&from), what)).ok()
    }

    /// A secret's file: systemd's credentials first, then beside the configuration file. The path is shown only if it
    /// is absolute: a text that is not may be the secret itself, put into the wrong key.
    fn secret_file(&mut self, table: &Table, key: &str) -> Option<Result<String, String>> {
        let given = text(table, key)?;
        let credentials = self.env.get("CREDENTIALS_DIRECTORY").filter(|_| Path::new(&given).is_relative());
        let credential = credentials.map(|folder| Path::new(folder).join(&given)).filter(|file| file.is_file());
        let path = match credential {
            Some(file) => file,
            None => self.path(table, key)?,
        };
        let named = if Path::new(&given).is_absolute() {
            given
        } else {
            "the file (not shown, in case it is the secret)".to_owned()
        };
        Some(read_secret(&path).map_err(|error| format!("cannot read {named}: {error}")))
    }
}

fn read_secret(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(path)?.take(SECRET_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > SECRET_BYTES_MAX {
        return Err(std::io::Error::other(format!("it has more than {SECRET_BYTES_MAX} bytes")));
    }
    Ok(text)
}

/// Declares a getter for one kind of value: none if the key is not set or does not fit.
macro_rules! getter {
    ($name:ident, $variant:ident, $type:ty) => {
        pub(super) fn $name(table: Option<&Table>, key: &str) -> Option<$type> {
            match &table?.get(key)?.value {
                Typed::$variant(value) => Some(value.clone()),
                other => unreachable!("the table of options gives {key} another kind: {other:?}"),
            }
        }
    };
}

getter!(words, Text, String);
getter!(list, Words, Vec<String>);
getter!(flag, Flag, bool);
getter!(count, Count, u64);
getter!(rate, Rate, Option<u64>);
getter!(share, Share, Share);
getter!(time, Time, Duration);
getter!(mode, Mode, u32);
getter!(address, Address, Option<SocketAddr>);

/// A text of a table that is there.
pub(super) fn text(table: &Table, key: &str) -> Option<String> {
    words(Some(table), key)
}

/// A count that fits in 32 bits.
pub(super) fn count32(table: Option<&Table>, key: &str) -> Option<u32> {
    count(table, key).map(|count| u32::try_from(count).expect("the ranges of counts end below 2^32"))
}

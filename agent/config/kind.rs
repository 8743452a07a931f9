//! The kinds of value that an option can have: what a person may write for each, and the checked value that comes of
//! it. Reads no file and knows no option.

use std::net::SocketAddr;
use std::time::Duration;

use tierd_cache::units::{ByteSize, Share, parse_duration};

use super::problems::{nearest, shown};
use super::units::{exact_duration, exact_size};

/// Longest text of any option, in bytes.
const TEXT_BYTES_MAX: usize = 4096;
/// Most words of a command.
const WORDS_MAX: usize = 64;

/// A value as it was written.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    /// A TOML string.
    Text(String),
    /// A TOML integer, and the base it was written in.
    Whole(i64, u32),
    /// A TOML float.
    Number(f64),
    /// A TOML boolean.
    Flag(bool),
    /// A TOML list of strings.
    Words(Vec<String>),
    /// What an environment variable holds: text that may stand for any kind.
    Given(String),
    /// Something that no option takes.
    Other(&'static str),
}

/// A kind of option.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Kind {
    /// Any text.
    Text,
    /// A list of texts: a command and its arguments.
    Words,
    /// A file or folder.
    Path,
    /// A file that holds a secret.
    SecretFile,
    /// The name of an environment variable that holds a secret.
    SecretEnv,
    /// `true` or `false`.
    Flag,
    /// A whole number inside a range.
    Count(u64, u64),
    /// Bytes inside a range.
    Size(u64, u64),
    /// Bytes a second, or `none`.
    Rate,
    /// Bytes, or a share of the file system.
    Share,
    /// A duration inside a range, in milliseconds.
    Time(u64, u64),
    /// One of these words.
    Choice(&'static [&'static str]),
    /// Permissions, in octal.
    Mode,
    /// `host:port`, the host as a number.
    Address,
    /// The same, or `off`.
    AddressOrOff,
    /// `http://…` or `https://…`, without a password in it.
    Url,
    /// What may be logged.
    Filter,
}

/// A value that fits its kind.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Typed {
    Text(String),
    Words(Vec<String>),
    Flag(bool),
    Count(u64),
    Rate(Option<u64>),
    Share(Share),
    Time(Duration),
    Mode(u32),
    Address(Option<SocketAddr>),
}

/// Why a value does not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Misfit {
    pub(super) what: String,
    pub(super) right: String,
}

impl Kind {
    /// What a person may write, in words.
    pub(super) fn describe(self) -> String {
        match self {
            Self::Text => "a text".to_owned(),
            Self::Words => "a list of texts such as [\"/usr/bin/true\", \"now\"], the command first".to_owned(),
            Self::Path => "a path, absolute, below ~/, or relative to the configuration file".to_owned(),
            Self::SecretFile => "a path of a file that holds nothing but the secret".to_owned(),
            Self::SecretEnv => "the name of an environment variable that holds the secret".to_owned(),
            Self::Flag => "true or false".to_owned(),
            Self::Count(min, max) => format!("a whole number from {min} to {max}"),
            Self::Size(min, max) => {
                format!("a size such as \"64 MiB\", from {} to {}", exact_size(min), exact_size(max))
            }
            Self::Rate => "bytes a second such as \"200 MiB\", or \"none\"".to_owned(),
            Self::Share => "a size or a share such as \"500 GiB\" or \"80%\"".to_owned(),
            Self::Time(min, max) => {
                let (min, max) = (Duration::from_millis(min), Duration::from_millis(max));
                format!("a duration such as \"30s\", from {} to {}", exact_duration(min), exact_duration(max))
            }
            Self::Choice(words) => words.iter().map(|word| format!("{word:?}")).collect::<Vec<_>>().join(" or "),
            Self::Mode => "permissions in octal such as \"0640\"".to_owned(),
            Self::Address => "an address such as \"127.0.0.1:9470\" or \"[::1]:9470\"".to_owned(),
            Self::AddressOrOff => "an address such as \"127.0.0.1:9469\", or \"off\"".to_owned(),
            Self::Url => "an address such as \"https://models.example.com\", without user and password".to_owned(),
            Self::Filter => "a level such as \"info\", or a filter such as \"info,tierd_cache=debug\"".to_owned(),
        }
    }

    /// Reads `value` as this kind.
    pub(super) fn read(self, value: &Value) -> Result<Typed, Misfit> {
        match self {
            Self::Words => self.words(value),
            Self::Flag => self.flag(value),
            Self::Count(min, max) => self.count(value, min, max),
            Self::Size(min, max) => self.size(value, min, max),
            Self::Mode => self.mode(value),
            Self::Rate => self.rate(value),
            Self::Share => match value {
                Value::Whole(bytes, _) => u64::try_from(*bytes)
                    .map(|bytes| Typed::Share(Share::Bytes(bytes)))
                    .map_err(|_| self.misfit(format!("{bytes} is negative"))),
                _ => {
                    let text = self.text(value)?;
                    text.parse()
                        .map(Typed::Share)
                        .map_err(|_| self.misfit(format!("{} is not understood", shown(text))))
                }
            },
            Self::Text | Self::Path | Self::SecretFile | Self::SecretEnv | Self::Url | Self::Filter => {
                self.plain(self.text(value)?)
            }
            Self::Choice(words) => {
                let text = self.text(value)?;
                if words.contains(&text) {
                    return Ok(Typed::Text(text.to_owned()));
                }
                let mut misfit = self.misfit(format!("{} is unknown", shown(text)));
                if let Some(word) = nearest(text, words.iter().copied()) {
                    misfit.right = format!("did you mean {word:?}?");
                }
                Err(misfit)
            }
            Self::Time(min, max) => {
                let text = self.text(value)?;
                let time =
                    parse_duration(text).map_err(|_| self.misfit(format!("{} is not understood", shown(text))))?;
                if time < Duration::from_millis(min) || time > Duration::from_millis(max) {
                    return Err(self.misfit(format!("{} is out of range", shown(text))));
                }
                Ok(Typed::Time(time))
            }
            Self::Address | Self::AddressOrOff => {
                let text = self.text(value)?;
                if self == Self::AddressOrOff && text == "off" {
                    return Ok(Typed::Address(None));
                }
                let address = text.parse().map_err(|_| self.misfit(format!("{} is no address", shown(text))))?;
                Ok(Typed::Address(Some(address)))
            }
        }
    }

    fn misfit(self, what: impl Into<String>) -> Misfit {
        Misfit { what: what.into(), right: format!("expected {}", self.describe()) }
    }

    fn text(self, value: &Value) -> Result<&str, Misfit> {
        match value {
            Value::Text(text) | Value::Given(text) => Ok(text),
            Value::Whole(..) => Err(self.misfit("is an integer")),
            Value::Number(_) => Err(self.misfit("is a float")),
            Value::Flag(_) => Err(self.misfit("is a boolean")),
            Value::Words(_) => Err(self.misfit("is a list")),
            Value::Other(what) => Err(self.misfit(format!("is {what}"))),
        }
    }

    /// A command: in a variable as a JSON list, in the file as TOML has it. Empty means none.
    fn words(self, value: &Value) -> Result<Typed, Misfit> {
        let words = match value {
            Value::Words(words) => words.clone(),
            Value::Given(text) => serde_json::from_str::<Vec<String>>(text)
                .map_err(|_| self.misfit(format!("{} is no JSON list of texts", shown(text))))?,
            Value::Text(text) => {
                return Err(
                    self.misfit(format!("{} is one text: there is no shell that would take it apart", shown(text)))
                );
            }
            _ => return Err(self.misfit("is no list of texts")),
        };
        if words.len() > WORDS_MAX || words.iter().map(String::len).sum::<usize>() > TEXT_BYTES_MAX {
            return Err(self.misfit(format!("has more than {WORDS_MAX} words or {TEXT_BYTES_MAX} bytes")));
        }
        if words.iter().any(|word| word.contains('\0')) {
            return Err(self.misfit("holds a NUL, which no command can be given"));
        }
        if words.first().is_some_and(|program| !program.starts_with('/')) {
            return Err(self.misfit("does not begin with the absolute path of a program"));
        }
        Ok(Typed::Words(words))
    }

    /// A text, checked as far as its kind allows without looking at the machine.
    fn plain(self, text: &str) -> Result<Typed, Misfit> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(self.misfit(format!("has {} bytes, more than {TEXT_BYTES_MAX}", text.len())));
        }
        if text.chars().any(char::is_control) {
            return Err(self.misfit("holds a control character"));
        }
        if text.is_empty() && self != Self::Text {
            return Err(self.misfit("is empty"));
        }
        match self {
            // Not shown: it may be the secret itself, put into the wrong key.
            Self::SecretEnv if !is_variable_name(text) => {
                Err(self.misfit("is no name of an environment variable (not shown, in case it is the secret)"))
            }
            Self::Url => self.url(text),
            Self::Filter => match crate::telemetry::log::check_filter(text) {
                Ok(()) => Ok(Typed::Text(text.to_owned())),
                Err(why) => Err(self.misfit(format!("{} is not understood: {why}", shown(text)))),
            },
            _ => Ok(Typed::Text(text.to_owned())),
        }
    }

    fn url(self, text: &str) -> Result<Typed, Misfit> {
        let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
        // Not shown: what is not understood may hold a password.
        let Some(rest) = rest else {
            return Err(self.misfit("does not start with https:// or http://"));
        };
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        if authority.contains('@') {
            return Err(self.misfit("holds a user or a password (not shown)"));
        }
        if rest.contains(['?', '#']) {
            return Err(self.misfit("holds a query or a fragment (not shown: it may be signed)"));
        }
        let uri: Result<http::Uri, _> = text.parse();
        if authority.is_empty() || uri.is_err() {
            return Err(self.misfit(format!("{} is no address", shown(text))));
        }
        Ok(Typed::Text(text.trim_end_matches('/').to_owned()))
    }

    fn flag(self, value: &Value) -> Result<Typed, Misfit> {
        match value {
            Value::Flag(flag) => Ok(Typed::Flag(*flag)),
            Value::Given(text) if text == "true" => Ok(Typed::Flag(true)),
            Value::Given(text) if text == "false" => Ok(Typed::Flag(false)),
            Value::Text(text) | Value::Given(text) => Err(self.misfit(format!("{} is not understood", shown(text)))),
            Value::Whole(..) | Value::Number(_) | Value::Words(_) | Value::Other(_) => {
                Err(self.misfit("is no boolean"))
            }
        }
    }

    fn count(self, value: &Value, min: u64, max: u64) -> Result<Typed, Misfit> {
        let number = match value {
            Value::Whole(number, _) => i128::from(*number),
            Value::Given(text) => {
                text.trim().parse().map_err(|_| self.misfit(format!("{} is no whole number", shown(text))))?
            }
            Value::Text(text) => return Err(self.misfit(format!("{} is a text", shown(text)))),
            Value::Number(number) => return Err(self.misfit(format!("{number} is a float"))),
            Value::Flag(_) => return Err(self.misfit("is a boolean")),
            Value::Words(_) => return Err(self.misfit("is a list")),
            Value::Other(what) => return Err(self.misfit(format!("is {what}"))),
        };
        match u64::try_from(number) {
            Ok(count) if (min..=max).contains(&count) => Ok(Typed::Count(count)),
            _ => Err(self.misfit(format!("{number} is out of range"))),
        }
    }

    fn size(self, value: &Value, min: u64, max: u64) -> Result<Typed, Misfit> {
        let bytes = match value {
            Value::Whole(number, _) => {
                u64::try_from(*number).map_err(|_| self.misfit(format!("{number} is negative")))?
            }
            _ => {
                let text = self.text(value)?;
                let size: Result<ByteSize, _> = text.parse();
                size.map_err(|_| self.misfit(format!("{} is not understood", shown(text))))?.0
            }
        };
        if !(min..=max).contains(&bytes) {
            return Err(self.misfit(format!("{} is out of range", exact_size(bytes))));
        }
        Ok(Typed::Count(bytes))
    }

    fn rate(self, value: &Value) -> Result<Typed, Misfit> {
        if let Value::Whole(number, _) = value {
            let rate = u64::try_from(*number).ok().filter(|rate| *rate > 0);
            return rate.map(|rate| Typed::Rate(Some(rate))).ok_or_else(|| self.misfit(format!("{number} is too low")));
        }
        let text = self.text(value)?;
        if text == "none" {
            return Ok(Typed::Rate(None));
        }
        let size: Result<ByteSize, _> = text.trim_end_matches("/s").parse();
        match size {
            Ok(ByteSize(rate)) if rate > 0 => Ok(Typed::Rate(Some(rate))),
            Ok(_) => Err(self.misfit("0 would never fetch anything")),
            Err(_) => Err(self.misfit(format!("{} is not understood", shown(text)))),
        }
    }

    fn mode(self, value: &Value) -> Result<Typed, Misfit> {
        let mode = match value {
            Value::Whole(number, 8) => u32::try_from(*number).ok(),
            // 640 without a quote or an 0o is decimal: another mode than the one that is meant.
            Value::Whole(number, _) => return Err(self.misfit(format!("{number} is not written in octal"))),
            _ => {
                let text = self.text(value)?;
                u32::from_str_radix(text.trim_start_matches("0o"), 8).ok()
            }
        };
        mode.filter(|mode| *mode <= 0o777).map(Typed::Mode).ok_or_else(|| self.misfit("is no mode"))
    }
}

/// Whether a text can be the name of an environment variable. Lower case is refused: names are not written so, keys often are.
fn is_variable_name(text: &str) -> bool {
    text.len() <= 64
        && text.starts_with(|c: char| c.is_ascii_uppercase() || c == '_')
        && text.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
}

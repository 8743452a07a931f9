//! Bytes to JSON, within limits of size, depth and number; and the JSON that ComfyUI writes into its pictures. Never holds
//! more memory than the limits say, whatever comes in.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::{BYTES_MAX, DEPTH_MAX, VALUES_MAX, WorkflowError};

/// What every PNG begins with.
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";
/// Values that an object counts for: its map is allocated in nodes of eleven entries.
const OBJECT_WEIGHT: usize = 6;
/// Bytes of text that count for one value.
const TEXT_WEIGHT: usize = 64;

/// Reads a workflow's JSON, or that in a PNG, of at most [`BYTES_MAX`] bytes.
///
/// # Errors
///
/// Any [`WorkflowError`] but [`WorkflowError::NotAWorkflow`]: what the JSON holds is not looked at.
pub fn parse(bytes: &[u8]) -> Result<Value, WorkflowError> {
    parse_within(bytes, BYTES_MAX)
}

/// The JSON of a workflow: the bytes themselves, or what a PNG holds.
///
/// # Errors
///
/// [`WorkflowError::NotInPng`].
pub fn extract(bytes: &[u8]) -> Result<&[u8], WorkflowError> {
    if bytes.starts_with(PNG) { in_png(&bytes[PNG.len()..]) } else { Ok(bytes) }
}

/// The same with a limit of one's own.
///
/// # Errors
///
/// As [`parse`].
pub fn parse_within(bytes: &[u8], bytes_max: usize) -> Result<Value, WorkflowError> {
    let bytes = extract(bytes)?;
    if bytes.len() > bytes_max {
        return Err(WorkflowError::TooLarge { bytes: bytes.len(), max: bytes_max });
    }
    // Editors on Windows begin their files so.
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    match read(bytes) {
        Err(WorkflowError::NotJson { detail }) => match without_nan(bytes) {
            Some(plain) => read(&plain),
            None => Err(WorkflowError::NotJson { detail }),
        },
        done => done,
    }
}

fn read(bytes: &[u8]) -> Result<Value, WorkflowError> {
    let count = Count { left: Cell::new(VALUES_MAX), over: Cell::new(None) };
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let read = Seed { count: &count, depth: 0 }.deserialize(&mut json).and_then(|value| json.end().map(|()| value));
    read.map_err(|error| match count.over.get() {
        Some(Over::Depth) => WorkflowError::TooDeep { max: DEPTH_MAX },
        Some(Over::Values) => WorkflowError::TooManyValues { max: VALUES_MAX },
        None => WorkflowError::NotJson { detail: error.to_string().chars().take(200).collect() },
    })
}

/// The same with `null` for the numbers that JSON does not have: Python writes them, and ComfyUI's pictures hold them. `None`
/// if there are none.
fn without_nan(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(bytes.len());
    let (mut rest, mut in_text, mut found) = (bytes, false, false);
    while let Some((first, behind)) = rest.split_first() {
        let word =
            [b"NaN".as_slice(), b"Infinity", b"-Infinity"].into_iter().find(|word| !in_text && rest.starts_with(word));
        if let Some(word) = word {
            found = true;
            out.extend_from_slice(b"null");
            rest = &rest[word.len()..];
            continue;
        }
        out.push(*first);
        rest = behind;
        match first {
            b'"' => in_text = !in_text,
            // What a backslash escapes ends no text.
            b'\\' if in_text => {
                let Some((escaped, behind)) = rest.split_first() else { break };
                out.push(*escaped);
                rest = behind;
            }
            _ => {}
        }
    }
    found.then_some(out)
}

#[derive(Debug, Clone, Copy)]
enum Over {
    Depth,
    Values,
}

/// What may still be read.
struct Count {
    left: Cell<usize>,
    over: Cell<Option<Over>>,
}

impl Count {
    fn take<E: Error>(&self, values: usize) -> Result<(), E> {
        match self.left.get().checked_sub(values) {
            Some(left) => {
                self.left.set(left);
                Ok(())
            }
            None => {
                self.over.set(Some(Over::Values));
                Err(E::custom("too many values"))
            }
        }
    }
}

/// Reads one value and counts what it holds.
#[derive(Clone, Copy)]
struct Seed<'a> {
    count: &'a Count,
    depth: usize,
}

impl Seed<'_> {
    fn deeper<E: Error>(self) -> Result<Self, E> {
        if self.depth == DEPTH_MAX {
            self.count.over.set(Some(Over::Depth));
            return Err(E::custom("too deep"));
        }
        Ok(Self { depth: self.depth + 1, ..self })
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, json: D) -> Result<Value, D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        self.count.take(1).map(|()| Value::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        self.count.take(1).map(|()| Value::Number(value.into()))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        self.count.take(1).map(|()| Value::Number(value.into()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        self.count.take(1).map(|()| Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        self.count.take(1 + value.len() / TEXT_WEIGHT).map(|()| Value::String(value.to_owned()))
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        self.count.take(1).map(|()| Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        self.count.take(1)?;
        let inside = self.deeper()?;
        let mut all = Vec::new();
        while let Some(item) = items.next_element_seed(inside)? {
            all.push(item);
        }
        Ok(Value::Array(all))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        self.count.take(OBJECT_WEIGHT)?;
        let inside = self.deeper()?;
        let mut all = Map::new();
        while let Some(name) = entries.next_key::<String>()? {
            self.count.take(1 + name.len() / TEXT_WEIGHT)?;
            all.insert(name, entries.next_value_seed(inside)?);
        }
        Ok(Value::Object(all))
    }
}

/// The JSON in a PNG's text chunks: the API form, which says what was run, before the drawn one.
fn in_png(mut rest: &[u8]) -> Result<&[u8], WorkflowError> {
    let mut drawn = None;
    // Each chunk: length, name, content, checksum. The picture itself does not matter, nor do checksums.
    while let Some((head, behind)) = rest.split_at_checked(8) {
        let length = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let Some(content) = behind.get(..length) else { break };
        let text = match &head[4..] {
            b"tEXt" => split_nul(content),
            b"iTXt" => international(content),
            b"IEND" => break,
            _ => None,
        };
        match text {
            Some((b"prompt", json)) => return Ok(json),
            Some((b"workflow", json)) => drawn = drawn.or(Some(json)),
            _ => {}
        }
        let Some(next) = behind.get(length + 4..) else { break };
        rest = next;
    }
    let why = "it has no text chunk `prompt` or `workflow`; was it saved by ComfyUI, and not changed since?";
    drawn.ok_or(WorkflowError::NotInPng { why })
}

fn split_nul(content: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = content.iter().position(|byte| *byte == 0)?;
    Some((&content[..end], &content[end + 1..]))
}

/// `iTXt`: keyword, compression flag and method, language, translated keyword, text. Compressed ones are passed over:
/// ComfyUI writes none.
fn international(content: &[u8]) -> Option<(&[u8], &[u8])> {
    let (keyword, rest) = split_nul(content)?;
    let [0, _, rest @ ..] = rest else { return None };
    let (_, rest) = split_nul(rest)?;
    let (_, text) = split_nul(rest)?;
    Some((keyword, text))
}

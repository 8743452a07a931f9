//! The structure of safetensors files: does the header parse, and do its tensors tile the file exactly. Pure: is given
//! bytes, opens nothing, and never looks at a tensor's data.

use std::fmt;

use serde::Deserialize;
use serde::de::{Error as _, IgnoredAny, MapAccess, Visitor};

/// Longest header, in bytes. The reference implementation refuses longer ones too.
pub const HEADER_BYTES_MAX: u64 = 100_000_000;

/// What a file must begin with: the header's length, little-endian.
pub const PREFIX_BYTES: usize = 8;

/// Why a file is no sound safetensors file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadSafetensors {
    /// It is too short to hold even the length of a header.
    #[error("{bytes} bytes are too few for a safetensors file")]
    TooShort {
        /// Its size.
        bytes: u64,
    },
    /// Its header would be longer than the file, or longer than any header may be.
    #[error("its header claims {header} bytes in a file of {file}")]
    HeaderLength {
        /// What it claims.
        header: u64,
        /// The file's size.
        file: u64,
    },
    /// Its header is not what the format asks for.
    #[error("its header does not parse: {0}")]
    Header(String),
    /// A tensor's bytes are not where its neighbour's end, or not as many as its shape needs.
    #[error("tensor {tensor:?} lies at {begin}..{end}, but {expected}")]
    Tensor {
        /// Its name, cut to 200 characters.
        tensor: String,
        /// First byte, from the end of the header.
        begin: u64,
        /// Behind the last byte.
        end: u64,
        /// What would have been right.
        expected: String,
    },
    /// The tensors end before or behind the end of the file.
    #[error("its tensors end at {tensors} of {file} bytes")]
    End {
        /// Where they end, from the start of the file.
        tensors: u64,
        /// The file's size.
        file: u64,
    },
}

/// A tensor of a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// Its bytes, from the end of the header.
    pub bytes: std::ops::Range<u64>,
    /// How many dimensions it has.
    pub dimensions: usize,
}

/// Returns the length of the header that follows the first eight bytes.
///
/// # Errors
///
/// [`BadSafetensors::HeaderLength`] if it is longer than the file or than [`HEADER_BYTES_MAX`].
pub fn header_bytes(prefix: [u8; PREFIX_BYTES], file_bytes: u64) -> Result<u64, BadSafetensors> {
    let header = u64::from_le_bytes(prefix);
    if header > HEADER_BYTES_MAX || header.saturating_add(PREFIX_BYTES as u64) > file_bytes {
        return Err(BadSafetensors::HeaderLength { header, file: file_bytes });
    }
    Ok(header)
}

/// Parses a header and returns its tensors in the order of their bytes, wherever they lie.
///
/// # Errors
///
/// [`BadSafetensors::Header`] if it is not a JSON object of tensors, or names one twice.
pub fn parse(header: &[u8]) -> Result<Vec<Tensor>, BadSafetensors> {
    Ok(entries(header)?.into_iter().map(|(tensor, _)| tensor).collect())
}

/// Checks that the tensors of a header tile the rest of a file of `file_bytes` bytes exactly.
///
/// # Errors
///
/// The first rule that is broken.
pub fn check(header: &[u8], file_bytes: u64) -> Result<(), BadSafetensors> {
    let data_start = header.len() as u64 + PREFIX_BYTES as u64;
    let mut at = 0;
    for (tensor, needed) in entries(header)? {
        let bad = |expected: String| BadSafetensors::Tensor {
            tensor: tensor.name.chars().take(200).collect(),
            begin: tensor.bytes.start,
            end: tensor.bytes.end,
            expected,
        };
        if tensor.bytes.start != at || tensor.bytes.end < at {
            return Err(bad(format!("the tensor before it ends at {at}")));
        }
        if let Some(needed) = needed
            && tensor.bytes.end - at != needed
        {
            return Err(bad(format!("its shape needs {needed} bytes")));
        }
        at = tensor.bytes.end;
    }
    let tensors = data_start.saturating_add(at);
    if tensors != file_bytes {
        return Err(BadSafetensors::End { tensors, file: file_bytes });
    }
    Ok(())
}

/// All tensors in the order of their bytes, each with the bytes that its type and shape need (none for a type that is not known here).
fn entries(header: &[u8]) -> Result<Vec<(Tensor, Option<u64>)>, BadSafetensors> {
    let mut reader = serde_json::Deserializer::from_slice(header);
    let Header(mut entries) =
        Header::deserialize(&mut reader).map_err(|error| BadSafetensors::Header(error.to_string()))?;
    reader.end().map_err(|error| BadSafetensors::Header(error.to_string()))?;
    entries.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
    if let Some(pair) = entries.windows(2).find(|pair| pair[0].0.name == pair[1].0.name) {
        let name: String = pair[0].0.name.chars().take(200).collect();
        return Err(BadSafetensors::Header(format!("{name:?} is named twice")));
    }
    entries.sort_by_key(|(tensor, _)| (tensor.bytes.start, tensor.bytes.end));
    Ok(entries)
}

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl Entry {
    /// Bytes that type and shape need; none if the type is unknown, or the product leaves u64 (which no file can hold).
    fn needed(&self) -> Option<u64> {
        let bits = match self.dtype.as_str() {
            "F4" => 4,
            "F6_E2M3" | "F6_E3M2" => 6,
            "BOOL" | "U8" | "I8" | "F8_E5M2" | "F8_E4M3" | "F8_E8M0" | "F8_E4M3FNUZ" | "F8_E5M2FNUZ" => 8,
            "I16" | "U16" | "F16" | "BF16" => 16,
            "I32" | "U32" | "F32" => 32,
            "I64" | "U64" | "F64" | "C64" => 64,
            "C128" => 128,
            _ => return None,
        };
        let elements = self.shape.iter().try_fold(1u64, |product, &side| product.checked_mul(side));
        Some(elements.and_then(|n| n.checked_mul(bits)).map_or(u64::MAX, |bits| bits.div_ceil(8)))
    }
}

struct Header(Vec<(Tensor, Option<u64>)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let mut entries = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            let entry: Entry = map.next_value()?;
            let (begin, end) = entry.data_offsets;
            if end < begin {
                return Err(A::Error::custom(format_args!("a tensor ends at {end}, before it begins at {begin}")));
            }
            let tensor = Tensor { name, bytes: begin..end, dimensions: entry.shape.len() };
            entries.push((tensor, entry.needed()));
        }
        Ok(Header(entries))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = r#"{"__metadata__":{"format":"pt"},
        "b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]},
        "a":{"dtype":"F16","shape":[2,1],"data_offsets":[0,4]},
        "empty":{"dtype":"F16","shape":[0],"data_offsets":[4,4]}}"#;

    fn whole(header: &str, data: u64) -> u64 {
        header.len() as u64 + 8 + data
    }

    #[test]
    fn a_file_whose_tensors_tile_it_is_sound() {
        assert_eq!(check(GOOD.as_bytes(), whole(GOOD, 12)), Ok(()));
        assert_eq!(check(b"{}  ", 12), Ok(()));
        let names: Vec<String> = parse(GOOD.as_bytes()).expect("valid").into_iter().map(|t| t.name).collect();
        assert_eq!(names, ["a", "empty", "b"]);
    }

    #[test]
    fn a_file_cut_or_grown_by_one_byte_is_not() {
        for data in [0, 11, 13] {
            let checked = check(GOOD.as_bytes(), whole(GOOD, data));
            assert!(matches!(checked, Err(BadSafetensors::End { .. })), "{data}: {checked:?}");
        }
    }

    #[test]
    fn gaps_overlaps_wrong_shapes_and_twins_are_found() {
        for (from, to) in [
            ("[4,12]", "[5,13]"),
            ("[4,12]", "[3,12]"),
            ("[4,12]", "[4,2]"),
            ("\"shape\":[2],", "\"shape\":[3],"),
            ("\"shape\":[2],", "\"shape\":[4294967296,4294967296],"),
            ("\"b\"", "\"a\""),
            ("\"F32\"", "32"),
        ] {
            let header = GOOD.replace(from, to);
            assert_ne!(header, GOOD);
            assert!(check(header.as_bytes(), whole(&header, 12)).is_err(), "{from} -> {to} was accepted");
        }
        assert_eq!(
            check(GOOD.replace("F32", "Q99").as_bytes(), whole(GOOD, 12)),
            Ok(()),
            "the size of a new type is not known"
        );
        assert!(check(b"[]", 10).is_err() && check(b"", 8).is_err() && check(b"{} {}", 13).is_err());
    }

    #[test]
    fn a_header_cannot_claim_more_than_the_file_has() {
        assert_eq!(header_bytes(10u64.to_le_bytes(), 18), Ok(10));
        for (header, file) in [(11, 18), (u64::MAX, 18), (HEADER_BYTES_MAX + 1, u64::MAX)] {
            assert!(header_bytes(u64::to_le_bytes(header), file).is_err());
        }
    }

    proptest! {
        #[test]
        fn no_header_from_outside_makes_it_panic(header in "[\\[\\]{}\",:a-c0-9]{0,80}", file in any::<u64>()) {
            let _ = check(header.as_bytes(), file);
            let nested = format!(r#"{{"a":{{"dtype":"F32","shape":[{file}],"data_offsets":[{file},{file}]}}{header}}}"#);
            let _ = check(nested.as_bytes(), file);
        }
    }
}

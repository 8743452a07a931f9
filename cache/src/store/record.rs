//! How records are framed in every file of the store: one line each, 16 hex digits of BLAKE3 over the JSON text, a
//! space, the JSON text. Knows no record's meaning.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// What a file of records holds.
#[derive(Debug)]
pub(super) struct Decoded<T> {
    /// The good records, in their order.
    pub(super) records: Vec<T>,
    /// Where the last good record ends: what follows is a torn tail, to be cut before anything is appended.
    pub(super) good_bytes: u64,
    /// Bytes of the tail.
    pub(super) tail_bytes: u64,
    /// Bad lines between good ones, which were skipped.
    pub(super) bad_lines: u64,
}

/// The line of one record, newline included.
pub(super) fn encode<T: Serialize>(record: &T) -> Vec<u8> {
    let json = serde_json::to_string(record).expect("records hold only strings, numbers and lists");
    framed(json.as_bytes())
}

/// A text as a line, whatever it holds.
pub(super) fn framed(json: &[u8]) -> Vec<u8> {
    [checksum(json).as_bytes(), b" ", json, b"\n"].concat()
}

/// Reads all good records and says where they end. Never fails: what is not a record is no record.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Decoded<T> {
    let mut decoded = Decoded { records: Vec::new(), good_bytes: 0, tail_bytes: 0, bad_lines: 0 };
    let mut bad = 0;
    let mut at = 0;
    for line in bytes.split_inclusive(|&byte| byte == b'\n') {
        at += line.len() as u64;
        match decode_line(line) {
            Some(record) => {
                decoded.records.push(record);
                decoded.good_bytes = at;
                decoded.bad_lines += std::mem::take(&mut bad);
            }
            None => bad += 1,
        }
    }
    decoded.tail_bytes = bytes.len() as u64 - decoded.good_bytes;
    decoded
}

fn decode_line<T: DeserializeOwned>(line: &[u8]) -> Option<T> {
    let line = line.strip_suffix(b"\n")?;
    let (sum, json) = line.split_at_checked(16)?;
    let json = json.strip_prefix(b" ")?;
    if sum != checksum(json).as_bytes() {
        return None;
    }
    serde_json::from_slice(json).ok()
}

fn checksum(json: &[u8]) -> String {
    let mut hex = blake3::hash(json).to_hex().to_string();
    hex.truncate(16);
    hex
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_framing_is_byte_exact_so_bump_the_version_if_this_fails() {
        assert_eq!(encode(&("a", 1)), b"94ad0553c454cedc [\"a\",1]\n");
    }

    #[test]
    fn a_tail_torn_at_any_byte_costs_only_the_last_record() {
        let (first, second) = (encode(&1u32), encode(&"two"));
        let whole = [first.clone(), second].concat();
        for end in first.len()..whole.len() {
            let decoded = decode::<serde_json::Value>(&whole[..end]);
            assert_eq!(decoded.records, [1]);
            assert_eq!((decoded.good_bytes, decoded.bad_lines), (first.len() as u64, 0));
            assert_eq!(decoded.tail_bytes, (end - first.len()) as u64);
        }
        assert_eq!(decode::<serde_json::Value>(&whole).records.len(), 2);
    }

    #[test]
    fn a_flipped_bit_in_the_middle_costs_only_that_record() {
        let lines = [encode(&1u32), encode(&2u32), encode(&3u32)];
        let whole = lines.concat();
        for at in lines[0].len()..lines[0].len() + lines[1].len() - 1 {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            let decoded = decode::<u32>(&bytes);
            assert_eq!(decoded.records, [1, 3], "byte {at}");
            assert_eq!(decoded.good_bytes, whole.len() as u64);
        }
    }
}

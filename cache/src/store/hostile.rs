//! Doors for the fuzzer and the property tests: any bytes in place of a file of the store. Each claims what holds for every
//! file, and panics where it does not. Reads and writes nothing.

use std::path::Path;

use crate::ids::BlobId;
use crate::piece::PIECE_BYTES;

use super::index::Tables;
use super::record;
use super::sidecar::Sidecar;

/// Events that the index under test remembers.
const EVENTS_MAX: usize = 8;

/// The lines of a text as records with right checksums, since no fuzzer guesses those.
#[must_use]
pub fn framed(bytes: &[u8]) -> Vec<u8> {
    bytes.split(|&byte| byte == b'\n').flat_map(record::framed).collect()
}

/// Bytes as a journal: what it tells lies inside of the blob that it speaks of.
pub fn journal(bytes: &[u8]) {
    let Some(told) = super::journal::tell(bytes, Path::new("journal")) else { return };
    for piece in told.finished.keys() {
        let range = told.layout.range(*piece);
        assert!(range.start < range.end && range.end <= told.layout.bytes(), "piece {piece} of {:?}", told.layout);
    }
}

/// Bytes as an index: what it adds up to is what its shortest form adds up to, within the limit of events.
pub fn index(bytes: &[u8]) {
    let tell = |bytes: &[u8]| Tables::tell(bytes, Path::new("index"), EVENTS_MAX);
    let Ok(tables) = tell(bytes) else { return };
    assert!(tables.events.len() <= EVENTS_MAX);
    let again = tell(&tables.to_bytes()).expect("this version wrote it");
    assert_eq!((&again.blobs, &again.leases, &again.events), (&tables.blobs, &tables.leases, &tables.events));
    assert_eq!((again.next_lease, again.next_seq), (tables.next_lease, tables.next_seq));
    assert_eq!(again.links, tables.links);
    assert_eq!(again.withdrawn.len(), tables.withdrawn.len());
}

/// Bytes as a sidecar: believed only if it adds up to the blob.
pub fn sidecar(bytes: &[u8]) {
    let blob = BlobId([0; 32]);
    for piece_bytes in [1024, PIECE_BYTES] {
        assert!(Sidecar::tell(bytes, blob, piece_bytes).is_none(), "nothing hashes to zero");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Pieces of records, so that lines made at random get past the first field.
    fn line() -> impl Strategy<Value = String> {
        let digest = "aa".repeat(32);
        let known = vec![
            r#"{"r":"index","version":1}"#.to_owned(),
            r#"{"r":"index","version":2}"#.to_owned(),
            format!(
                r#"{{"r":"partial","version":1,"name":"{digest}","bytes":18446744073709551615,"piece_bytes":1024}}"#
            ),
            format!(r#"{{"r":"partial","version":1,"name":"{digest}","bytes":5000,"piece_bytes":1024}}"#),
            format!(r#"{{"r":"finished","piece":4,"cv":"{digest}"}}"#),
            format!(r#"{{"r":"finished","piece":4294967295,"cv":"{digest}"}}"#),
            r#"{"r":"reset"}"#.to_owned(),
            r#"{"r":"counters","next_lease":18446744073709551615,"next_seq":0}"#.to_owned(),
            r#"{"r":"lease","lease":18446744073709551615,"owner":"o","models":["vae/x"],"expires":9}"#.to_owned(),
            format!(r#"{{"r":"link","model":"vae/x","blob":"{digest}","source":null}}"#),
            format!(r#"{{"r":"link","model":"../x","blob":"{digest}","source":null}}"#),
            format!(
                r#"{{"r":"blob","blob":"{digest}","bytes":5,"trust":"first_use","sha256":null,"last_used":7,"identity":{{"inode":11,"bytes":5,"modified":[3,4]}},"partial":"{digest}"}}"#
            ),
            format!(r#"{{"r":"withdrawn","blob":"{digest}","bad":[4294967295]}}"#),
            format!(r#"{{"r":"gone","blob":"{digest}"}}"#),
            r#"{"r":"event","seq":18446744073709551615,"at":1,"what":{"kind":"started","blobs":1,"bytes":2}}"#
                .to_owned(),
            format!(r#"{{"version":1,"blob":"{digest}","bytes":18446744073709551615,"piece_bytes":8388608,"cvs":[]}}"#),
        ];
        prop_oneof![8 => proptest::sample::select(known), 1 => any::<String>(), 1 => "\\{.{0,40}\\}"]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]
        #[test]
        fn no_file_of_the_store_makes_its_reader_panic(
            lines in proptest::collection::vec(line(), 0..20),
            noise in proptest::collection::vec(any::<u8>(), 0..60),
        ) {
            let good = framed(lines.join("\n").as_bytes());
            for bytes in [&good, &noise, &[&good[..], &noise].concat()] {
                journal(bytes);
                index(bytes);
                sidecar(bytes);
            }
        }
    }
}

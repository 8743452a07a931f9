//! Counts of uses as they outlive a restart: one document, under two megabytes. Its form is a format: another form is another [`VERSION`],
//! and what has another version, or numbers that no count has, is not read. Touches no file.

use serde::{Deserialize, Serialize};

use crate::clock::Wall;
use crate::ids::BlobId;

/// The version of the form.
pub const VERSION: u32 = 1;
/// Blobs that are kept: those that a tier has, then those that were used most. More than a node serves in a week.
pub const ROWS_MAX: usize = 12_288;
/// Most that a count can be: a use each second for as long as the slow count remembers.
const COUNT_MAX: f32 = 1e6;
/// Most seconds that a use can save.
const SAVES_MAX: f32 = 1e6;

/// What was counted.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    /// When the counts were as they stand here.
    pub at: Wall,
    /// By blob.
    pub rows: Vec<Row>,
}

/// One blob.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The blob.
    #[serde(rename = "b")]
    pub blob: BlobId,
    /// Its size.
    #[serde(rename = "n")]
    pub bytes: u64,
    /// Its fast count.
    #[serde(rename = "f")]
    pub fast: f32,
    /// Its slow count.
    #[serde(rename = "s")]
    pub slow: f32,
    /// Seconds that a use waits less for having it on the disk.
    #[serde(rename = "d")]
    pub disk_saves: f32,
    /// Seconds that a use waits less for having it in RAM.
    #[serde(rename = "r")]
    pub ram_saves: f32,
}

impl Row {
    fn is_sensible(&self) -> bool {
        let within = |value: f32, most: f32| (0.0..=most).contains(&value);
        let counts = within(self.fast, COUNT_MAX) && within(self.slow, COUNT_MAX);
        counts && within(self.disk_saves, SAVES_MAX) && within(self.ram_saves, SAVES_MAX)
    }
}

/// The document around it.
#[derive(Serialize, Deserialize)]
struct Document<K> {
    version: u32,
    kept: K,
}

/// Only its version.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

impl Kept {
    /// As bytes.
    ///
    /// # Errors
    ///
    /// In words, if a number is none. It never is.
    pub fn to_bytes(&self) -> Result<Vec<u8>, String> {
        serde_json::to_vec(&Document { version: VERSION, kept: self }).map_err(|error| error.to_string())
    }

    /// From bytes.
    ///
    /// # Errors
    ///
    /// In words: what makes it useless.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        let versioned: Versioned = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if versioned.version != VERSION {
            return Err(format!("it has version {}, this is {VERSION}", versioned.version));
        }
        let Document { kept, .. } =
            serde_json::from_slice::<Document<Self>>(bytes).map_err(|error| error.to_string())?;
        if kept.rows.len() > ROWS_MAX {
            return Err(format!("it has {} blobs, at most {ROWS_MAX} are kept", kept.rows.len()));
        }
        match kept.rows.iter().find(|row| !row.is_sensible()) {
            Some(row) => Err(format!("blob {} has numbers that no count has: {row:?}", row.blob)),
            None => Ok(kept),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(n: u32) -> Row {
        let mut blob = [0; 32];
        blob[..4].copy_from_slice(&n.to_be_bytes());
        Row {
            blob: BlobId(blob),
            bytes: u64::MAX,
            fast: 1.234_567_8,
            slow: 999.999_9,
            disk_saves: 0.123_456_79,
            ram_saves: 1e-9,
        }
    }

    #[test]
    fn the_form_is_what_it_was_or_has_another_version() {
        let kept = Kept {
            at: Wall(7),
            rows: vec![Row { blob: BlobId([1; 32]), bytes: 9, fast: 0.5, slow: 2.0, disk_saves: 3.0, ram_saves: 4.5 }],
        };
        let blob = "01".repeat(32);
        let text = format!(
            r#"{{"version":1,"kept":{{"at":7,"rows":[{{"b":"{blob}","n":9,"f":0.5,"s":2.0,"d":3.0,"r":4.5}}]}}}}"#
        );
        assert_eq!(String::from_utf8(kept.to_bytes().expect("written")).expect("text"), text, "bump the version");
        assert_eq!(Kept::from_bytes(text.as_bytes()), Ok(kept));
    }

    #[test]
    fn all_rows_together_are_under_two_megabytes_and_more_are_refused() {
        let mut kept = Kept { at: Wall(0), rows: (0..ROWS_MAX as u32).map(row).collect() };
        let bytes = kept.to_bytes().expect("written");
        assert!(bytes.len() < 2_000_000, "{}", bytes.len());
        assert_eq!(Kept::from_bytes(&bytes).as_ref(), Ok(&kept));
        kept.rows.push(row(u32::MAX));
        let refused = Kept::from_bytes(&kept.to_bytes().expect("written")).expect_err("too many");
        assert!(refused.contains("at most 12288"), "{refused}");
    }

    #[test]
    fn what_is_torn_newer_or_makes_no_sense_is_refused_in_words() {
        let bytes = Kept { at: Wall(0), rows: vec![row(1)] }.to_bytes().expect("written");
        let text = String::from_utf8(bytes.clone()).expect("text");
        assert!(Kept::from_bytes(&bytes[..bytes.len() - 1]).is_err());
        for (from, to, says) in [
            ("\"version\":1", "\"version\":2", "it has version 2, this is 1"),
            ("\"f\":1.2345678", "\"f\":-1.0", "numbers that no count has"),
            ("\"s\":999.9999", "\"s\":1e30", "numbers that no count has"),
            ("\"r\":1e-9", "\"r\":1e99", "number"),
        ] {
            let bad = text.replacen(from, to, 1);
            assert_ne!(bad, text, "{from}");
            let refused = Kept::from_bytes(bad.as_bytes()).expect_err("refused");
            assert!(refused.contains(says), "{refused}");
        }
    }
}

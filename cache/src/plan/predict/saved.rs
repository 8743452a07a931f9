//! What outlives a restart, as it is written: one document, under two megabytes with every table full. Its form is a format: another
//! form is another [`VERSION`], and what has another version is not read.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::ModelKey;
use crate::plan::predict::shadow::{Kind, Score, Shadow};

/// The version of the form.
pub const VERSION: u32 = 2;

/// Everything that is kept.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Saved {
    /// What was learned.
    pub learned: Learned,
    /// How each kind of guess has done, by its name.
    pub scores: BTreeMap<String, Score>,
}

/// The document around it.
#[derive(Serialize, Deserialize)]
struct Document {
    version: u32,
    saved: Saved,
}

/// Only its version.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

/// What was learned.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Learned {
    /// Models by number.
    pub names: Vec<Name>,
    /// What came after what.
    pub contexts: Vec<Table>,
    /// Where each client stands.
    pub clients: Vec<Client>,
    /// The last leads of all clients together.
    pub leads: [Option<u32>; 2],
    /// The hours of the day, from 0:00 UTC.
    pub day: Vec<Hour>,
    /// The hours of the week, from Thursday 0:00 UTC, as time began.
    pub week: Vec<Hour>,
}

/// One model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Name {
    /// Its number.
    #[serde(rename = "n")]
    pub number: u32,
    /// The model.
    #[serde(rename = "m")]
    pub model: ModelKey,
    /// When it was last seen, in milliseconds of the wall clock.
    #[serde(rename = "s")]
    pub seen_ms: u64,
}

/// One context.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Table {
    /// What it is about, hashed.
    #[serde(rename = "k")]
    pub key: u64,
    /// When its counts were as they stand here.
    #[serde(rename = "s")]
    pub at_ms: u64,
    /// How often anything came.
    #[serde(rename = "t")]
    pub total: f32,
    /// How often each model came.
    #[serde(rename = "r")]
    pub rows: Vec<(u32, f32)>,
}

/// Where a client stands. Its name is not kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Client {
    /// A hash of its name.
    #[serde(rename = "c")]
    pub client: u64,
    /// Its last leads.
    #[serde(rename = "l")]
    pub leads: [Option<u32>; 2],
    /// When it last asked.
    #[serde(rename = "s")]
    pub at_ms: u64,
    /// Its usual pause.
    #[serde(rename = "p")]
    pub pause_ms: u64,
}

/// One hour.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Hour {
    /// How many such hours were seen.
    #[serde(rename = "t")]
    pub seen: f32,
    /// In how many of them each model was asked for.
    #[serde(rename = "r")]
    pub rows: Vec<(u32, f32)>,
}

impl Saved {
    /// What is kept of a predictor and of how it has done.
    #[must_use]
    pub fn of(learned: Learned, shadow: &Shadow) -> Self {
        let scores = Kind::all().map(|kind| (kind.name(), *shadow.score(kind)));
        Self { learned, scores: scores.collect() }
    }

    /// How everything had done.
    #[must_use]
    pub fn shadow(&self) -> Shadow {
        let mut shadow = Shadow::default();
        for kind in Kind::all() {
            if let Some(score) = self.scores.get(&kind.name()) {
                shadow.recall(kind, *score);
            }
        }
        shadow
    }

    /// As bytes.
    ///
    /// # Errors
    ///
    /// In words, if a number is none. It never is.
    pub fn to_bytes(&self) -> Result<Vec<u8>, String> {
        let document = Document { version: VERSION, saved: self.clone() };
        serde_json::to_vec(&document).map_err(|error| error.to_string())
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
        let document: Document = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        Ok(document.saved)
    }
}

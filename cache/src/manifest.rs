//! The manifest: an optional object at an origin that names models with their sizes and digests. Reads, writes and
//! merges its text; never fetches it, and trusts nothing in it: every name, path and size is checked.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::{BlobId, MODEL_KEY_BYTES_MAX, ModelKey, Sha256Digest};

/// Largest manifest that is read: a million models at 64 bytes, or 200 thousand with both digests.
pub const MANIFEST_BYTES_MAX: usize = 64 << 20;
/// Most other paths of one model.
pub const MANIFEST_SOURCES_MAX: usize = 16;
/// Largest size that a manifest may claim: 16 TiB, the largest file of ext4. Keeps sums of sizes inside u64.
pub const MODEL_BYTES_MAX: u64 = 16 << 40;
/// The format that is read and written.
const VERSION: u32 = 1;

/// The manifest, format 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Format version: 1.
    pub version: u32,
    /// The models, in the order of their names.
    pub models: Vec<ManifestModel>,
}

/// One model of a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestModel {
    /// The model.
    pub name: ModelKey,
    /// Bytes.
    pub size: u64,
    /// BLAKE3 of the content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blake3: Option<BlobId>,
    /// SHA-256 of the content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Sha256Digest>,
    /// Paths at the same origin, below its prefix, if the object is not at `name`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<String>,
}

/// Why a text is no manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// It is longer than is read.
    #[error("the manifest has {bytes} bytes, more than {max}")]
    TooLong {
        /// Its length.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// It is no JSON, or not of this shape.
    #[error("the manifest is wrong at line {line}, column {column}: {reason}")]
    Json {
        /// The line, from 1.
        line: usize,
        /// The column, from 1.
        column: usize,
        /// What is wrong.
        reason: String,
    },
    /// It is of another format.
    #[error("the manifest has version {version}, this program reads version 1")]
    Version {
        /// Its version.
        version: u32,
    },
    /// A model stands in it twice, aliases resolved.
    #[error("the manifest names {name} twice")]
    Twice {
        /// The model.
        name: ModelKey,
    },
    /// A model has a size that no model has.
    #[error("the manifest gives {name} a size of {size} bytes")]
    Size {
        /// The model.
        name: ModelKey,
        /// The size.
        size: u64,
    },
    /// A model has a path that is none, or too many.
    #[error("the manifest gives {name} a source that is no path below the prefix: {source_path:?}")]
    Source {
        /// The model.
        name: ModelKey,
        /// The path.
        source_path: String,
    },
}

/// Only the version, so that another format is called by its name and not a wrong shape.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

impl Manifest {
    /// An empty manifest of the present format.
    #[must_use]
    pub fn empty() -> Self {
        Self { version: VERSION, models: Vec::new() }
    }

    /// Reads and checks a manifest. The models come back in the order of their names. Unknown keys are ignored.
    ///
    /// # Errors
    ///
    /// Names the first thing that is wrong, with its line and column where it is the JSON.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        if bytes.len() > MANIFEST_BYTES_MAX {
            return Err(ManifestError::TooLong { bytes: bytes.len(), max: MANIFEST_BYTES_MAX });
        }
        let json = |error: serde_json::Error| ManifestError::Json {
            line: error.line(),
            column: error.column(),
            reason: reason(&error),
        };
        let Version { version } = serde_json::from_slice(bytes).map_err(json)?;
        if version != VERSION {
            return Err(ManifestError::Version { version });
        }
        let mut manifest: Self = serde_json::from_slice(bytes).map_err(json)?;
        manifest.models.sort_by(|a, b| a.name.cmp(&b.name));
        for pair in manifest.models.windows(2) {
            if pair[0].name == pair[1].name {
                return Err(ManifestError::Twice { name: pair[0].name.clone() });
            }
        }
        manifest.models.iter().try_for_each(ManifestModel::check)?;
        Ok(manifest)
    }

    /// The manifest as JSON: one model a line, sorted, so that two versions can be compared line by line. The same
    /// manifest always gives the same bytes.
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut models: Vec<&ManifestModel> = self.models.iter().collect();
        models.sort_by(|a, b| a.name.cmp(&b.name));
        let lines: Vec<String> = models
            .iter()
            .map(|model| format!("    {}", serde_json::to_string(model).expect("texts and numbers are always JSON")))
            .collect();
        let list = if lines.is_empty() { String::new() } else { format!("\n{}\n  ", lines.join(",\n")) };
        format!("{{\n  \"version\": {},\n  \"models\": [{list}]\n}}\n", self.version)
    }

    /// Adds models; one that is there already is replaced.
    pub fn merge(&mut self, models: impl IntoIterator<Item = ManifestModel>) {
        let mut all: BTreeMap<ModelKey, ManifestModel> =
            self.models.drain(..).map(|model| (model.name.clone(), model)).collect();
        all.extend(models.into_iter().map(|model| (model.name.clone(), model)));
        self.models = all.into_values().collect();
    }

    /// The entry of one model.
    #[must_use]
    pub fn get(&self, name: &ModelKey) -> Option<&ManifestModel> {
        self.models.iter().find(|model| model.name == *name)
    }
}

impl ManifestModel {
    fn check(&self) -> Result<(), ManifestError> {
        if self.size > MODEL_BYTES_MAX {
            return Err(ManifestError::Size { name: self.name.clone(), size: self.size });
        }
        let bad_part = |part: &str| matches!(part, "" | "." | "..") || part.chars().any(char::is_control);
        let bad = |path: &&String| path.len() > MODEL_KEY_BYTES_MAX || path.split('/').any(bad_part);
        let over = self.sources.get(MANIFEST_SOURCES_MAX);
        if let Some(path) = self.sources.iter().find(bad).or(over) {
            let source_path = path.chars().take(200).collect();
            return Err(ManifestError::Source { name: self.name.clone(), source_path });
        }
        Ok(())
    }
}

/// What serde says, without the place that it repeats.
fn reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let text = text.split(" at line ").next().unwrap_or(&text);
    text.chars().take(300).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(name: &str, size: u64) -> ManifestModel {
        let name = ModelKey::parse(name).unwrap();
        ManifestModel { name, size, blake3: Some(BlobId([7; 32])), sha256: None, sources: Vec::new() }
    }

    #[test]
    fn what_is_written_is_read_back_and_looks_the_same_each_time() {
        let mut manifest = Manifest::empty();
        manifest.merge([model("vae/b.sft", 2), model("loras/a \"ü\".sft", 1)]);
        manifest.models[0].sources = vec!["blobs/x y".to_owned()];
        let text = manifest.to_json();
        assert_eq!(Manifest::parse(text.as_bytes()).unwrap(), manifest);
        manifest.models.reverse();
        assert_eq!(manifest.to_json(), text);
        assert_eq!(text.lines().count(), 7, "{text}");
    }

    #[test]
    fn the_format_is_byte_exact() {
        let mut manifest = Manifest::empty();
        assert_eq!(manifest.to_json(), "{\n  \"version\": 1,\n  \"models\": []\n}\n");
        manifest.merge([model("loras/a.sft", 1)]);
        let hex = "07".repeat(32);
        let line = format!("    {{\"name\":\"loras/a.sft\",\"size\":1,\"blake3\":\"{hex}\"}}");
        assert_eq!(
            manifest.to_json(),
            format!("{{\n  \"version\": 1,\n  \"models\": [\n{line}\n  ]\n}}\n"),
            "other programs read this: bump the version"
        );
    }

    #[test]
    fn a_merge_replaces_and_keeps_the_rest() {
        let mut manifest = Manifest::empty();
        manifest.merge([model("vae/a.sft", 1), model("vae/b.sft", 2)]);
        manifest.merge([model("vae/b.sft", 3)]);
        let sizes: Vec<u64> = manifest.models.iter().map(|model| model.size).collect();
        assert_eq!(sizes, [1, 3]);
    }

    #[test]
    fn a_wrong_manifest_says_where() {
        let parse = |text: &str| Manifest::parse(text.as_bytes()).unwrap_err();
        let text = "{\"version\": 1,\n \"models\": [{\"name\": \"../x\", \"size\": 1}]}";
        let error = parse(text).to_string();
        assert!(error.contains("line 2, column") && error.contains("../x"), "{error}");
        assert_eq!(parse("{\"version\": 2, \"items\": []}"), ManifestError::Version { version: 2 });
        let twice =
            r#"{"version":1,"models":[{"name":"unet/x.sft","size":1},{"name":"diffusion_models/x.sft","size":1}]}"#;
        assert!(matches!(parse(twice), ManifestError::Twice { .. }));
        let large = r#"{"version":1,"models":[{"name":"vae/x.sft","size":18446744073709551615}]}"#;
        assert!(matches!(parse(large), ManifestError::Size { .. }));
        for path in ["../secret", "/etc/passwd", "a//b", ""] {
            let text = format!(r#"{{"version":1,"models":[{{"name":"vae/x.sft","size":1,"sources":["{path}"]}}]}}"#);
            assert!(matches!(parse(&text), ManifestError::Source { .. }), "{path}");
        }
        assert!(matches!(parse("{"), ManifestError::Json { .. }));
        assert!(matches!(
            parse(r#"{"version":1,"models":[{"name":"vae/x.sft","size":-1}]}"#),
            ManifestError::Json { .. }
        ));
    }

    #[test]
    fn too_long_a_manifest_is_refused_before_it_is_read() {
        let error = Manifest::parse(&vec![b' '; MANIFEST_BYTES_MAX + 1]).unwrap_err();
        assert!(matches!(error, ManifestError::TooLong { .. }));
    }
}

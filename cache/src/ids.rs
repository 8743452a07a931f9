//! Names: models, blobs, flights, leases, events. Newtypes only; nothing here does any work.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longest model key, in bytes.
pub const MODEL_KEY_BYTES_MAX: usize = 1024;
/// Longest single part of a model key, in bytes: the limit of the file systems below.
pub const MODEL_KEY_PART_BYTES_MAX: usize = 255;
/// Most parts of a model key, its folder included.
pub const MODEL_KEY_PARTS_MAX: usize = 16;

/// Folder names that ComfyUI still accepts for an older layout, and what they stand for.
pub const FOLDER_ALIASES: [(&str, &str); 3] =
    [("unet", "diffusion_models"), ("clip", "text_encoders"), ("t2i_adapter", "controlnet")];

/// Folders that ComfyUI and its common extensions read models from. Models are sorted into these.
pub const COMFY_FOLDERS: [&str; 39] = [
    "LLM",
    "animatediff_models",
    "animatediff_motion_lora",
    "audio_encoders",
    "background_removal",
    "checkpoints",
    "classifiers",
    "clip_vision",
    "controlnet",
    "depthanything",
    "detection",
    "diffusers",
    "diffusion_models",
    "embeddings",
    "facerestore_models",
    "frame_interpolation",
    "geometry_estimation",
    "gligen",
    "hypernetworks",
    "inpaint",
    "insightface",
    "instantid",
    "ipadapter",
    "latent_upscale_models",
    "loras",
    "model_patches",
    "onnx",
    "optical_flow",
    "photomaker",
    "pulid",
    "sam2",
    "sams",
    "style_models",
    "text_encoders",
    "ultralytics",
    "upscale_models",
    "vae",
    "vae_approx",
    "xlabs",
];

/// A model: a name in ComfyUI's layout, `<folder>/<path>`.
///
/// Always canonical: aliases are resolved (`unet/x` is `diffusion_models/x`), separators are `/`, and no
/// part is empty, `.`, `..`, or holds a NUL or another control character. It is therefore safe to join to a folder.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModelKey(Arc<str>);

/// Why a text is no model key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a model key: {reason}")]
pub struct BadModelKey {
    /// What was given, cut to 200 characters.
    pub text: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl ModelKey {
    /// Parses and canonicalises `<folder>/<path>`.
    ///
    /// # Errors
    ///
    /// Names the first rule that the text breaks.
    pub fn parse(text: &str) -> Result<Self, BadModelKey> {
        let bad = |reason| Err(BadModelKey { text: text.chars().take(200).collect(), reason });
        if text.is_empty() {
            return bad("it is empty");
        }
        if text.len() > MODEL_KEY_BYTES_MAX {
            return bad("it is longer than 1024 bytes");
        }
        if text.starts_with('/') {
            return bad("it is an absolute path; keys look like diffusion_models/flux1-schnell.safetensors");
        }
        if text.contains('\\') {
            return bad("it holds a backslash; parts are separated by /");
        }
        if text.chars().any(char::is_control) {
            return bad("it holds a NUL or another control character");
        }
        let parts: Vec<&str> = text.split('/').collect();
        if parts.len() < 2 {
            return bad("it names no folder; keys look like diffusion_models/flux1-schnell.safetensors");
        }
        if parts.len() > MODEL_KEY_PARTS_MAX {
            return bad("it has more than 16 parts");
        }
        for part in &parts {
            match *part {
                "" => return bad("a part of it is empty"),
                "." | ".." => return bad("a part of it is . or .."),
                part if part.len() > MODEL_KEY_PART_BYTES_MAX => return bad("a part of it is longer than 255 bytes"),
                _ => {}
            }
        }
        if parts[0].starts_with('.') {
            return bad("its folder starts with a dot");
        }
        let folder = canonical_folder(parts[0]);
        let rest = &text[parts[0].len()..];
        Ok(Self(format!("{folder}{rest}").into()))
    }

    /// The whole canonical key.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// ComfyUI's folder: the first part.
    #[must_use]
    pub fn folder(&self) -> &str {
        self.0.split('/').next().unwrap_or(&self.0)
    }

    /// The path below the folder: what ComfyUI shows in a drop-down.
    #[must_use]
    pub fn path(&self) -> &str {
        self.0.split_once('/').map_or(&self.0, |(_, path)| path)
    }

    /// The name of its file: the last part.
    #[must_use]
    pub fn base(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }

    /// The spellings under which an origin may hold this model: the canonical one first, then its aliases.
    #[must_use]
    pub fn spellings(&self) -> Vec<String> {
        let mut all = vec![self.0.to_string()];
        for (alias, folder) in FOLDER_ALIASES {
            if folder == self.folder() {
                all.push(format!("{alias}/{}", self.path()));
            }
        }
        all
    }
}

/// The name that a folder goes by, aliases resolved.
#[must_use]
pub fn canonical_folder(folder: &str) -> &str {
    FOLDER_ALIASES.iter().find(|(alias, _)| *alias == folder).map_or(folder, |(_, folder)| folder)
}

impl fmt::Display for ModelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ModelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

impl FromStr for ModelKey {
    type Err = BadModelKey;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl Serialize for ModelKey {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for ModelKey {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(d)?).map_err(serde::de::Error::custom)
    }
}

/// Declares a 32-byte digest that reads and writes as 64 lower-case hex digits.
macro_rules! digest {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 32]);

        impl $name {
            /// Reads 64 hex digits, upper or lower case; `None` for anything else.
            #[must_use]
            pub fn from_hex(text: &str) -> Option<Self> {
                if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
                    return None;
                }
                let mut bytes = [0; 32];
                for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
                    let pair = std::str::from_utf8(pair).ok()?;
                    *byte = u8::from_str_radix(pair, 16).ok()?;
                }
                Some(Self(bytes))
            }

            /// The first 12 hex digits: enough to tell apart in a table.
            #[must_use]
            pub fn short(&self) -> String {
                self.to_string()[..12].to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{self}")
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = String::deserialize(d)?;
                Self::from_hex(&text).ok_or_else(|| serde::de::Error::custom("expected 64 hex digits"))
            }
        }
    };
}

digest! {
    /// A blob: content, named by its BLAKE3 digest.
    BlobId
}
digest! {
    /// A SHA-256 digest, as model hubs publish it.
    Sha256Digest
}

/// Declares a number that names one thing while the daemon runs.
macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

number! {
    /// One ensure or prefetch of one blob in progress. Unique while the daemon runs.
    FlightId
}
number! {
    /// One caller's ensure or prefetch. Unique while the daemon runs.
    EnsureId
}
number! {
    /// A pin with an owner and an expiry. Unique for the life of the store, kept across restarts.
    LeaseId
}
number! {
    /// The place of an event in the order that this daemon saw. Grows by one, kept across restarts.
    Seq
}

/// The name of a configured origin: what the operator called it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct OriginName(pub Arc<str>);

impl OriginName {
    /// Wraps a configured name.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self(name.into())
    }
}

impl fmt::Display for OriginName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for OriginName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn legacy_folders_are_aliases() {
        let key = ModelKey::parse("unet/sub/x.safetensors").expect("valid");
        assert_eq!(key.as_str(), "diffusion_models/sub/x.safetensors");
        assert_eq!((key.folder(), key.path()), ("diffusion_models", "sub/x.safetensors"));
        assert_eq!(key.spellings(), ["diffusion_models/sub/x.safetensors", "unet/sub/x.safetensors"]);
    }

    #[test]
    fn a_key_that_could_leave_the_models_folder_is_refused() {
        let long = format!("a/{}", "x".repeat(256));
        for text in ["", "x", "/etc/passwd", "a//b", "a/../b", "../a/b", "a/.", "a/b\0", "a\\b/c", ".x/y", "a/", &long]
        {
            assert!(ModelKey::parse(text).is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn odd_but_harmless_keys_are_kept() {
        for text in ["loras/a b+c%20#?&.safetensors", "loras/ünïcode 模型.safetensors", "loras/..x", "loras/.hidden"]
        {
            assert_eq!(ModelKey::parse(text).expect("valid").as_str(), text);
        }
    }

    #[test]
    fn digests_round_trip_and_refuse_other_texts() {
        let id = BlobId([0xab; 32]);
        assert_eq!(BlobId::from_hex(&id.to_string()), Some(id));
        assert_eq!(BlobId::from_hex(&"AB".repeat(32)), Some(id));
        assert_eq!(BlobId::from_hex("ab"), None);
        assert_eq!(BlobId::from_hex(&"+1".repeat(32)), None);
    }
}

//! Listings: reads a page of S3's `ListObjectsV2`, and chooses which of an origin's objects are models. Pure.
//!
//! The XML is read by hand because one odd key must not hide a whole bucket: strict parsers refuse control characters,
//! and `object_store` refuses a page that holds a key such as `a//b`.

use std::collections::BTreeMap;

use super::date;
use crate::catalog::{Listed, Validator};
use crate::ids::ModelKey;

/// Most objects that one origin may list, models or not.
pub const LISTED_MAX: usize = 1_000_000;

/// What ComfyUI takes for a model (`folder_paths.supported_pt_extensions`), and gguf, which its packs add.
pub const MODEL_EXTENSIONS: [&str; 9] = ["ckpt", "pt", "pt2", "bin", "pth", "safetensors", "pkl", "sft", "gguf"];

/// Whether ComfyUI would take a file of this name for a model. Case does not matter, as in ComfyUI.
#[must_use]
pub fn is_model_name(name: &str) -> bool {
    let Some((stem, extension)) = name.rsplit_once('.') else { return false };
    !stem.is_empty() && MODEL_EXTENSIONS.iter().any(|known| known.eq_ignore_ascii_case(extension))
}

/// One object, as an origin lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Object {
    /// Its path, prefix included.
    pub(crate) path: String,
    /// Bytes.
    pub(crate) bytes: u64,
    /// Its identity.
    pub(crate) validator: Validator,
}

/// One page of a listing.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Page {
    /// The objects, in the order of their keys.
    pub(crate) objects: Vec<Object>,
    /// What asks for the next page; `None` on the last.
    pub(crate) next: Option<String>,
}

/// Reads one page. `Err` says what is wrong with it: a page that is not whole is never taken for a short one.
pub(crate) fn page(body: &[u8]) -> Result<Page, &'static str> {
    let text = String::from_utf8_lossy(body);
    let (_, mut rest) = text.split_once("<ListBucketResult").ok_or("it is no ListBucketResult")?;
    if !rest.trim_end().ends_with("</ListBucketResult>") {
        return Err("the listing ends early");
    }
    let mut objects = Vec::new();
    let mut outside = String::new();
    while let Some((before, after)) = rest.split_once("<Contents>") {
        let (item, after) = after.split_once("</Contents>").ok_or("the listing ends inside an object")?;
        outside.push_str(before);
        rest = after;
        let size = element(item, "Size").and_then(|size| size.trim().parse().ok());
        objects.push(Object {
            path: element(item, "Key").ok_or("an object has no key")?,
            bytes: size.ok_or("an object has no size")?,
            validator: Validator {
                etag: element(item, "ETag").filter(|etag| !etag.is_empty()),
                modified_ms: element(item, "LastModified").and_then(|date| date::from_iso(&date)),
            },
        });
    }
    outside.push_str(rest);
    let next = element(&outside, "NextContinuationToken").filter(|token| !token.is_empty());
    let truncated = element(&outside, "IsTruncated").is_some_and(|flag| flag.trim().eq_ignore_ascii_case("true"));
    if truncated && next.is_none() {
        return Err("there is more, but no token that asks for it");
    }
    Ok(Page { objects, next: next.filter(|_| truncated) })
}

/// Bytes as a page of a listing, for the fuzzer: what is chosen of it are models, each once, in their order.
///
/// # Panics
///
/// If that does not hold.
pub fn hostile(bytes: &[u8]) {
    let Ok(page) = page(bytes) else { return };
    let chosen = models("", page.objects);
    assert!(chosen.is_sorted_by(|one, next| one.model < next.model));
}

/// The text of the first element of this name, entities resolved.
fn element(xml: &str, name: &str) -> Option<String> {
    let (_, after) = xml.split_once(&format!("<{name}>"))?;
    let (inner, _) = after.split_once(&format!("</{name}>"))?;
    Some(unescape(inner))
}

/// Resolves XML's five entities and character references; what is neither stays as it is.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('&') {
        out.push_str(before);
        rest = after;
        let Some((entity, tail)) = after.split_once(';') else {
            out.push('&');
            continue;
        };
        match character(entity) {
            Some(c) => {
                out.push(c);
                rest = tail;
            }
            None => out.push('&'),
        }
    }
    out.push_str(rest);
    out
}

fn character(entity: &str) -> Option<char> {
    match entity {
        "amp" => Some('&'),
        "lt" => Some('<'),
        "gt" => Some('>'),
        "quot" => Some('"'),
        "apos" => Some('\''),
        _ => {
            let number = entity.strip_prefix('#')?;
            let code = match number.strip_prefix(['x', 'X']) {
                Some(hex) => u32::from_str_radix(hex, 16).ok()?,
                None => number.parse().ok()?,
            };
            char::from_u32(code)
        }
    }
}

/// Chooses the models among an origin's objects, in the order of their keys.
///
/// A model is an object below `prefix` whose path is a model key with a model's extension and no part that starts with
/// a dot. Where a legacy folder and its canonical one hold the same model, the canonical one wins.
pub(crate) fn models(prefix: &str, objects: impl IntoIterator<Item = Object>) -> Vec<Listed> {
    let mut chosen: BTreeMap<ModelKey, Listed> = BTreeMap::new();
    for object in objects {
        let Some(name) = below(prefix, &object.path) else { continue };
        if !is_model_name(name) || name.split('/').any(|part| part.starts_with('.')) {
            continue;
        }
        let model = match ModelKey::parse(name) {
            Ok(model) => model,
            Err(error) => {
                tracing::debug!(%error, "an object is skipped");
                continue;
            }
        };
        let is_canonical = name == model.as_str();
        if let Some(other) = chosen.get(&model) {
            tracing::warn!(%model, "held under two folder names, the canonical one is taken: {} {}", other.path, object.path);
            if !is_canonical {
                continue;
            }
        }
        let listed =
            Listed { model: model.clone(), path: object.path, bytes: object.bytes, validator: object.validator };
        chosen.insert(model, listed);
    }
    chosen.into_values().collect()
}

/// The part of a path below a prefix.
fn below<'a>(prefix: &str, path: &'a str) -> Option<&'a str> {
    if prefix.is_empty() { Some(path) } else { path.strip_prefix(prefix)?.strip_prefix('/') }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PAGE: &str = r#"<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">
        <Name>b</Name><Prefix>p</Prefix><IsTruncated>true</IsTruncated>
        <Contents><Key>p/loras/a&amp;b&#32;c+%20.sft</Key><LastModified>1994-11-06T08:49:37.000Z</LastModified>
        <ETag>&quot;abc-2&quot;</ETag><Size>7</Size><StorageClass>STANDARD</StorageClass></Contents>
        <Contents><Key>p//x</Key><Size>0</Size></Contents>
        <NextContinuationToken>t/1==</NextContinuationToken></ListBucketResult>"#;

    fn object(path: &str) -> Object {
        Object { path: path.into(), bytes: 1, validator: Validator::default() }
    }

    fn names(prefix: &str, paths: &[&str]) -> Vec<(String, String)> {
        let listed = models(prefix, paths.iter().map(|path| object(path)));
        listed.into_iter().map(|listed| (listed.model.to_string(), listed.path)).collect()
    }

    #[test]
    fn a_page_gives_its_objects_and_the_way_to_the_next() {
        let page = page(PAGE.as_bytes()).unwrap();
        assert_eq!(page.next.as_deref(), Some("t/1=="));
        assert_eq!(page.objects.len(), 2);
        assert_eq!(page.objects[0].path, "p/loras/a&b c+%20.sft");
        assert_eq!(page.objects[0].bytes, 7);
        let validator = Validator { etag: Some("\"abc-2\"".into()), modified_ms: Some(784_111_777_000) };
        assert_eq!(page.objects[0].validator, validator);
    }

    #[test]
    fn half_a_page_is_never_a_short_page() {
        for cut in 0..PAGE.len() {
            assert!(page(&PAGE.as_bytes()[..cut]).is_err(), "cut at {cut}");
        }
        let lost = PAGE.replace("<NextContinuationToken>t/1==</NextContinuationToken>", "");
        assert!(page(lost.as_bytes()).is_err());
    }

    #[test]
    fn only_models_below_the_prefix_are_chosen() {
        let paths = [
            "p/loras/a.safetensors",
            "p/loras/",
            "p/loras",
            "p/x.safetensors",
            "p/loras/readme.md",
            "p/loras/.hidden.safetensors",
            "p/loras/.cache/x.safetensors",
            "p/tierd-manifest.json",
            "p//loras/b.safetensors",
            "p/loras/../b.safetensors",
            "pp/loras/c.safetensors",
            "p/vae/V.PT",
        ];
        let keys: Vec<String> = names("p", &paths).into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["loras/a.safetensors", "vae/V.PT"]);
    }

    #[test]
    fn the_canonical_folder_wins_over_its_alias_in_either_order() {
        let (old, new) = ("unet/x.sft", "diffusion_models/x.sft");
        for paths in [[old, new], [new, old]] {
            assert_eq!(names("", &paths), [(new.to_owned(), new.to_owned())]);
        }
        assert_eq!(names("", &[old]), [(new.to_owned(), old.to_owned())]);
    }

    proptest! {
        #[test]
        fn no_bytes_crash_the_reader(body in proptest::collection::vec(any::<u8>(), 0..400), text in ".{0,200}") {
            let _ = page(&body);
            let _ = page(format!("<ListBucketResult><Contents><Key>{text}</Key><Size>1</Size></Contents></ListBucketResult>").as_bytes());
        }

        #[test]
        fn every_key_survives_escaping(key in "[^\u{0}]{1,60}") {
            let escaped: String = key.chars().map(|c| format!("&#x{:X};", c as u32)).collect();
            prop_assert_eq!(unescape(&escaped), key);
        }
    }
}

//! Any bytes as a manifest: a refusal, or a manifest that reads back as it was written.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tierd_cache::manifest::Manifest;

fuzz_target!(|bytes: &[u8]| {
    let Ok(manifest) = Manifest::parse(bytes) else { return };
    let again = Manifest::parse(manifest.to_json().as_bytes());
    assert_eq!(again.ok().map(|again| again.to_json()), Some(manifest.to_json()));
});

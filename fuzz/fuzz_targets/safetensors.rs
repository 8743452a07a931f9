//! Any bytes as the header of a safetensors file: checked without a panic, and what passes tiles the file.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tierd_cache::safetensors;

fuzz_target!(|bytes: &[u8]| {
    let Some((size, header)) = bytes.split_at_checked(8) else { return };
    let prefix = size.try_into().unwrap_or([0; 8]);
    let file_bytes = u64::from_le_bytes(prefix);
    let _ = safetensors::header_bytes(prefix, file_bytes);
    let checked = safetensors::check(header, file_bytes);
    let parsed = safetensors::parse(header);
    assert!(checked.is_err() || parsed.is_ok());
});

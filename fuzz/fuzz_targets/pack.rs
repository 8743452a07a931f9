//! Any bytes as a message of ComfyUI's node pack.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tierd::hostile;

fuzz_target!(|bytes: &[u8]| {
    hostile::pack(bytes);
});

//! Any text as the configuration file: good, or a bounded list of mistakes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tierd::hostile;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes) {
        hostile::config(text);
    }
});

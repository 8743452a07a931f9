//! Any bytes as the message of HintService.Report.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tierd::hostile;

fuzz_target!(|bytes: &[u8]| {
    hostile::hint(bytes);
});

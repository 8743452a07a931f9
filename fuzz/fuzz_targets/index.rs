//! Any bytes as the index of the store, as they are and with right checksums.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tierd_cache::store::hostile;

fuzz_target!(|bytes: &[u8]| {
    hostile::index(bytes);
    hostile::index(&hostile::framed(bytes));
});

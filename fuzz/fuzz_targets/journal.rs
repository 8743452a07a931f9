//! Any bytes as the journal of an unfinished blob and as a sidecar, as they are and with right checksums.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tierd_cache::store::hostile;

fuzz_target!(|bytes: &[u8]| {
    hostile::journal(bytes);
    let framed = hostile::framed(bytes);
    hostile::journal(&framed);
    hostile::sidecar(&framed);
});

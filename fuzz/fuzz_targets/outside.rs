//! Any bytes as the rest of what comes from outside: a ComfyUI server's queue, a question over NATS, a page of a bucket's listing, a
//! client's certificate.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tierd::hostile;
use tierd_cache::origin::hostile_listing;

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    match kind % 4 {
        0 => hostile::queue(bytes),
        1 => hostile::question(bytes),
        2 => hostile_listing(bytes),
        _ => hostile::certificate(bytes),
    }
});

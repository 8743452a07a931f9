//! Gives memory that the allocator keeps after a burst back to the system. One call, nothing else.
#![allow(unsafe_code, reason = "the allocator's own trim function has no safe wrapper")]

/// Returns what the allocator holds and nobody uses. Takes a few milliseconds; call it once after a burst, not in one.
pub(crate) fn trim() {
    // SAFETY: malloc_trim takes no pointer, may be called at any time from any thread, and frees nothing that is in use.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

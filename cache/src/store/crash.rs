//! Crash points: places between two steps where a test makes the store stop as if the power had gone. Nothing outside of tests.

#[cfg(test)]
use std::cell::Cell;

use super::error::StoreError;

#[cfg(test)]
thread_local! {
    /// Points to pass before the one that fails; none fails nothing.
    static LEFT: Cell<Option<u32>> = const { Cell::new(None) };
}

/// A point between two steps of an operation that a crash may cut short.
#[cfg(not(test))]
#[inline]
pub(super) fn point() -> Result<(), StoreError> {
    Ok(())
}

/// A point between two steps of an operation that a crash may cut short.
#[cfg(test)]
pub(super) fn point() -> Result<(), StoreError> {
    match LEFT.get() {
        Some(0) => {
            Err(StoreError::io("go on after a crash at", std::path::Path::new("/"), std::io::Error::other("crash")))
        }
        left => {
            LEFT.set(left.map(|left| left - 1));
            Ok(())
        }
    }
}

/// Makes this thread crash at its `number`th point from now, counted from 0; none ends that.
#[cfg(test)]
pub(super) fn at(number: Option<u32>) {
    LEFT.set(number);
}

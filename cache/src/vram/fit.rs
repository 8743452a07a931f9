//! Whether the weights of a set fit onto a device: beside what is there, once other models leave, or not whole. Arithmetic only.
//! Weights as they are stored: activations need room too, and a loader that changes their type changes their size.

use std::collections::BTreeMap;

use super::audit::Audited;
use crate::ids::BlobId;

/// A model of a set, as far as its weights count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weights {
    /// Its blob, if it is stored or its digest is known. Two models of one blob are loaded once.
    pub blob: Option<BlobId>,
    /// Its size; 0 if nothing is known of it.
    pub bytes: u64,
}

/// How weights would lie on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Beside what is there now.
    Free,
    /// Once models that are not of the set leave.
    AfterUnload,
    /// Not whole.
    TooLarge,
}

/// A set and a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fit {
    /// Bytes that nobody uses.
    pub free: u64,
    /// Bytes of the set's weights.
    pub needed: u64,
    /// Bytes of them that one worker has there already.
    pub loaded: u64,
    /// How they would lie there.
    pub place: Place,
}

/// Holds a set against one device. What is used there by others than models (contexts, activations, other programs) stays.
#[must_use]
pub fn fit(set: &[Weights], device: &Audited) -> Fit {
    let mut blobs: BTreeMap<BlobId, u64> = BTreeMap::new();
    let mut needed: u64 = 0;
    for weights in set {
        let counted = weights.blob.is_some_and(|blob| blobs.insert(blob, weights.bytes).is_some());
        if !counted {
            needed = needed.saturating_add(weights.bytes);
        }
    }
    let there = |(blob, bytes): (&BlobId, &u64)| device.loaded.get(blob).map_or(0, |loaded| *loaded.min(bytes));
    let loaded = blobs.iter().map(there).fold(0, u64::saturating_add);
    let free = device.total.saturating_sub(device.used);
    let place = if needed - loaded <= free {
        Place::Free
    } else if needed <= device.total.saturating_sub(device.other) {
        Place::AfterUnload
    } else {
        Place::TooLarge
    };
    Fit { free, needed, loaded, place }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(n: u8) -> Option<BlobId> {
        Some(BlobId([n; 32]))
    }

    fn weights(n: u8, bytes: u64) -> Weights {
        Weights { blob: blob(n), bytes }
    }

    /// 100 bytes: 40 of model 1, 20 of model 2, 10 of something else, 30 free.
    fn device() -> Audited {
        let loaded = [(BlobId([1; 32]), 40), (BlobId([2; 32]), 20)].into();
        Audited { total: 100, used: 70, claimed: 60, other: 10, loaded, ..Audited::default() }
    }

    #[test]
    fn what_is_there_already_needs_no_room() {
        let found = fit(&[weights(1, 40), weights(3, 30)], &device());
        assert_eq!(found, Fit { free: 30, needed: 70, loaded: 40, place: Place::Free });
    }

    #[test]
    fn what_fits_once_others_leave_is_told_apart_from_what_never_fits() {
        assert_eq!(fit(&[weights(3, 31)], &device()).place, Place::AfterUnload);
        assert_eq!(fit(&[weights(3, 90)], &device()).place, Place::AfterUnload, "ten are not a model's");
        assert_eq!(fit(&[weights(3, 91)], &device()).place, Place::TooLarge);
    }

    #[test]
    fn two_names_of_one_blob_are_loaded_once_and_a_claim_counts_for_no_more_than_the_file() {
        let found = fit(&[weights(1, 25), weights(1, 25), Weights { blob: None, bytes: 5 }], &device());
        assert_eq!((found.needed, found.loaded), (30, 25));
    }

    #[test]
    fn a_set_without_weights_fits_anywhere() {
        assert_eq!(fit(&[], &Audited::default()).place, Place::Free);
    }
}

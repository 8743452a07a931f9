//! In which order a set is locked in RAM: as it will be used.

use crate::engine::state::State;
use crate::engine::state::ensure::{Step, Want};
use crate::ids::BlobId;

impl State {
    /// What callers wait for in RAM, in the order in which it is to be locked. Of a set that is on the disk, what is used later waits
    /// for what is used first: the disk reads one after the other. What has just landed does not wait: its pages are there.
    pub(super) fn wanted_now(&self) -> Vec<BlobId> {
        let mut all = Vec::new();
        for ensure in self.ensures.values().filter(|ensure| ensure.admitted) {
            let of = |want: &Want| match want.step {
                Step::Inspecting(blob) | Step::Linking(blob) | Step::Scrubbing(blob) | Step::Locking(blob) => {
                    Some((order_of_use(want.model.folder()), blob, matches!(want.step, Step::Locking(_))))
                }
                _ => None,
            };
            let mut wanted: Vec<(u8, BlobId, bool)> = ensure.wants.iter().filter_map(of).collect();
            wanted.sort_by_key(|(order, ..)| *order);
            let Some((first, ..)) = wanted.first().copied() else { continue };
            let now = |(order, blob, locking): &(u8, BlobId, bool)| {
                *locking && (*order == first || self.memory.landed == Some(*blob))
            };
            all.extend(wanted.into_iter().filter(now).map(|(_, blob, _)| blob));
        }
        all
    }
}

/// The order in which ComfyUI uses the models of one prompt: text encoders, then what diffuses, then what decodes.
fn order_of_use(folder: &str) -> u8 {
    match folder {
        "text_encoders" | "clip_vision" => 0,
        "vae" | "vae_approx" | "upscale_models" => 2,
        _ => 1,
    }
}

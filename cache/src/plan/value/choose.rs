//! Which blobs give back enough bytes at the least loss. A knapsack, solved well enough: cheapest a byte first, but the last one may be
//! any that is large enough, and what turns out not to be needed stays.

use crate::ids::BlobId;

/// Candidates beyond the cheapest that are tried as the last one.
pub(super) const LOOK_AHEAD: usize = 24;

/// Something that may go.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Candidate {
    pub(super) blob: BlobId,
    pub(super) bytes: u64,
    /// What is lost with it.
    pub(super) loss: f64,
}

/// Chooses among `candidates`. `None` if all of them together are too little.
pub(super) fn choose(mut candidates: Vec<Candidate>, needed: u64) -> Option<(Vec<BlobId>, f64)> {
    if needed == 0 {
        return Some((Vec::new(), 0.0));
    }
    let per_byte = |candidate: &Candidate| candidate.loss / candidate.bytes.max(1) as f64;
    candidates.sort_by(|a, b| per_byte(a).total_cmp(&per_byte(b)).then(a.blob.cmp(&b.blob)));
    let mut best: Option<(f64, usize, usize)> = None;
    let (mut bytes, mut loss) = (0, 0.0);
    for (taken, candidate) in candidates.iter().enumerate() {
        if bytes >= needed {
            break;
        }
        // All before this one, and one more that is enough.
        for (last, closing) in candidates.iter().enumerate().skip(taken).take(LOOK_AHEAD) {
            let all = loss + closing.loss;
            if bytes + closing.bytes >= needed && best.is_none_or(|(least, ..)| all < least) {
                best = Some((all, taken, last));
            }
        }
        bytes += candidate.bytes;
        loss += candidate.loss;
    }
    let (_, taken, last) = best?;
    let mut chosen: Vec<Candidate> = candidates[..taken].to_vec();
    chosen.push(candidates[last]);
    Some(spare(chosen, needed))
}

/// Takes back what is not needed, the dearest first.
fn spare(mut chosen: Vec<Candidate>, needed: u64) -> (Vec<BlobId>, f64) {
    chosen.sort_by(|a, b| b.loss.total_cmp(&a.loss).then(a.blob.cmp(&b.blob)));
    let mut bytes: u64 = chosen.iter().map(|candidate| candidate.bytes).sum();
    chosen.retain(|candidate| {
        let spared = bytes - candidate.bytes >= needed;
        if spared {
            bytes -= candidate.bytes;
        }
        !spared
    });
    let loss = chosen.iter().map(|candidate| candidate.loss).sum();
    (chosen.into_iter().map(|candidate| candidate.blob).collect(), loss)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn candidate(n: u8, bytes: u64, loss: f64) -> Candidate {
        Candidate { blob: BlobId([n; 32]), bytes, loss }
    }

    #[test]
    fn one_that_is_large_enough_beats_many_small_ones_that_are_not() {
        let candidates = vec![candidate(0, 1, 0.0), candidate(1, 24, 5.0), candidate(2, 7, 2.0)];
        assert_eq!(choose(candidates, 7), Some((vec![BlobId([2; 32])], 2.0)));
    }

    proptest! {
        #[test]
        fn it_is_enough_and_nothing_of_it_could_stay(
            sizes in prop::collection::vec((1_u64..50, 0_u32..100), 0..30), needed in 0_u64..400,
        ) {
            let all: Vec<Candidate> = sizes.iter().enumerate()
                .map(|(n, (bytes, loss))| candidate(n as u8, *bytes, f64::from(*loss))).collect();
            let sum: u64 = all.iter().map(|candidate| candidate.bytes).sum();
            let size = |blob: &BlobId| all[blob.0[0] as usize].bytes;
            match choose(all.clone(), needed) {
                None => prop_assert!(sum < needed),
                Some((chosen, _)) => {
                    let bytes: u64 = chosen.iter().map(size).sum();
                    prop_assert!(bytes >= needed);
                    prop_assert!(chosen.iter().all(|blob| bytes - size(blob) < needed));
                }
            }
        }
    }
}

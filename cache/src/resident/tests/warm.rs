//! What the tier does where it may not lock: it says so, keeps what it can, and brings the rest back.

use super::*;

fn warm() -> Resident {
    Resident::with(Mode::Warm { why: "a test".to_owned(), what_to_change: "nothing" })
}

#[test]
fn with_8_mib_to_lock_and_no_capability_the_tier_is_warm_and_says_why() {
    let dir = folder();
    play("may_lock_8_mib", &file(&dir, "model", 20 * MIB));
}

#[test]
fn with_a_limit_worth_having_the_tier_locks_up_to_it_and_no_byte_more() {
    let dir = folder();
    play("may_lock_two_models", &file(&dir, "model", 3 * MIB - 5));
}

#[test]
fn a_warm_file_survives_readers_that_drop_it_behind_themselves() {
    let dir = folder();
    let bytes = WINDOW_BYTES + 3 * MIB;
    let path = file(&dir, "model", bytes);
    let resident = warm();
    let held = hold(&resident, &path).expect("warms");
    (0..3).for_each(|_| load_like_comfyui(&path));
    let residency = held.residency().expect("counts");
    assert_eq!(residency, Residency { bytes, resident: bytes, locked: 0 });
    assert_eq!((held.is_locked(), resident.locked()), (false, 0));
}

#[test]
fn what_was_evicted_is_read_again_within_the_budget() {
    let dir = folder();
    let bytes = WINDOW_BYTES + 3 * MIB;
    let path = file(&dir, "model", bytes);
    let held = hold(&warm(), &path).expect("warms");
    assert_eq!(held.rewarm(u64::MAX).expect("looks"), 0);
    // Cutting a file takes its pages out of every map: an eviction that no lock and no map resists.
    let file = File::options().write(true).open(&path).expect("opens");
    file.set_len(0).expect("cuts");
    file.set_len(bytes).expect("grows");
    assert_eq!(held.residency().expect("counts").resident, 0);
    assert_eq!(held.rewarm(5 * MIB).expect("reads"), 2 * REWARM_BYTES);
    assert_eq!(held.rewarm(0).expect("reads"), 0);
    assert_eq!(held.rewarm(u64::MAX).expect("reads"), bytes - 2 * REWARM_BYTES);
    assert_eq!(held.residency().expect("counts").resident, bytes);
}

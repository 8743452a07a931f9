//! What tests do in a process of its own, because it concerns the whole process: being killed, limits, counters in `/proc`.
//! Each does nothing unless another test gave it a file.

use std::io::{Read, stdin, stdout};

use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use super::*;
use crate::resident::landing::{WRITE_BYTES, start_writeback, write_through};

fn given() -> Option<PathBuf> {
    std::env::var_os(FILE).map(PathBuf::from)
}

/// Takes the right to lock more than `limit` bytes away from this thread and process.
fn give_up_locking(limit: u64) {
    let mut sets = capabilities(None).expect("this thread has some");
    sets.effective.remove(CapabilitySet::IPC_LOCK);
    set_capabilities(None, sets).expect("fewer are always granted");
    setrlimit(Resource::Memlock, Rlimit { current: Some(limit), maximum: Some(limit) }).expect("lower is granted");
}

#[test]
#[ignore = "a role of another test"]
fn holds_until_killed() {
    let Some(path) = given() else { return };
    let held = hold(&Resident::open(), &path).expect("holds");
    assert!(held.is_locked());
    println!("held");
    stdout().flush().expect("tells");
    let _ = stdin().read(&mut [0]);
    drop(held);
}

#[test]
#[ignore = "a role of another test"]
fn may_lock_8_mib() {
    let Some(path) = given() else { return };
    give_up_locking(8 * MIB);
    let resident = Resident::open();
    let Mode::Warm { why, what_to_change } = resident.mode() else { panic!("{:?}", resident.mode()) };
    assert!(why.contains("RLIMIT_MEMLOCK is 8 MiB") && why.contains("CAP_IPC_LOCK"), "{why}");
    assert!(what_to_change.contains("LimitMEMLOCK"), "{what_to_change}");
    let held = hold(&resident, &path).expect("is warm");
    let residency = held.residency().expect("counts");
    assert_eq!((residency.resident, residency.locked), (residency.bytes, 0));
    assert_eq!(Resident::locked_by_kernel().expect("tells"), 0);
}

#[test]
#[ignore = "a role of another test"]
fn may_lock_two_models() {
    let Some(path) = given() else { return };
    let bytes = fs::metadata(&path).expect("is there").len();
    // As much as every process may have, so that this runs where nobody can raise it.
    let limit = 8 * MIB;
    give_up_locking(limit);
    let resident = Resident::with(probe(MIB));
    assert_eq!(resident.mode(), &Mode::Locked { limit: Some(limit) });
    let first = hold(&resident, &path).expect("fits");
    // The kernel counts each map of the file, whoever has it.
    let mut more = Vec::new();
    let refused = loop {
        match hold(&resident, &path) {
            Ok(held) => more.push(held),
            Err(refused) => break refused,
        }
    };
    let ResidentError::Refused { locked, .. } = &refused else { panic!("{refused}") };
    assert!(*locked <= limit, "{refused}");
    assert_eq!(more.len(), 1);
    assert_eq!(resident.locked(), bytes.next_multiple_of(map::page()) * (1 + more.len() as u64));
    assert_eq!(Resident::locked_by_kernel().expect("tells"), resident.locked());
    drop((first, more));
    assert_eq!((resident.locked(), Resident::locked_by_kernel().expect("tells")), (0, 0));
}

#[test]
#[ignore = "a role of another test"]
fn lands_through_the_cache() {
    let Some(path) = given() else { return };
    let read_bytes = || {
        let counters = fs::read_to_string("/proc/self/io").expect("counts");
        let line = counters.lines().find_map(|line| line.strip_prefix("read_bytes: ")).expect("is counted");
        line.parse::<u64>().expect("a number")
    };
    const PIECE: u64 = 8 * MIB;
    // Not a whole number of pages, as most models.
    const BYTES: u64 = 10 * PIECE + 12_345;
    let partial = path.with_extension("partial");
    let file = File::options().read(true).write(true).create_new(true).open(&partial).expect("creates");
    let space = BYTES.next_multiple_of(4096);
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, space).expect("allocates");
    let resident = Resident::open();
    let held = resident.begin(&partial, BYTES).expect("maps");
    let before = read_bytes();
    let content: Vec<u8> = (0..BYTES).map(|at| ((at * 31) >> 7) as u8).collect();
    // Out of order, as pieces come.
    for piece in [3, 0, 10, 9, 1, 2, 7, 5, 4, 8, 6] {
        let range = piece * PIECE..((piece + 1) * PIECE).min(BYTES);
        write_through(&file, range.start, &content[range.start as usize..range.end as usize], WRITE_BYTES[0])
            .expect("writes");
        start_writeback(&file, range.clone()).expect("starts");
        held.extend(range).expect("locks");
    }
    file.set_len(BYTES).expect("cuts");
    file.sync_all().expect("syncs");
    fs::rename(&partial, &path).expect("renames");
    evict(&path);
    // While the kernel moves a page to another place it does not count it; none is read from the disk meanwhile, see below.
    let whole = |residency: &Residency| residency.resident == BYTES;
    let residency = (0..1000).map(|_| held.residency().expect("counts")).find(whole).expect("no page was given up");
    assert_eq!((residency.bytes, residency.locked), (BYTES, BYTES));
    load_like_comfyui(&path);
    assert!(fs::read(&path).expect("reads") == content, "what was locked is what was written");
    assert!((0..1000).any(|_| cached(&path) == BYTES), "a load took locked pages away");
    assert_eq!(read_bytes() - before, 0, "bytes read back from the disk");
}

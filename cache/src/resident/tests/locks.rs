//! What a lock promises: whole until it is dropped, gone the moment it is, and counted truly.

use std::io::Read;

use super::*;
use crate::resident::landing::{WRITE_BYTES, write_through};

/// More than two windows, and not a whole number of pages.
const BYTES: u64 = 2 * WINDOW_BYTES + 5 * MIB + 77;

#[test]
fn a_locked_file_is_whole_after_ten_loads_like_comfyui_and_an_unlocked_one_is_gone_after_one() {
    let Some(resident) = locking() else { return };
    let dir = folder();
    let path = file(&dir, "model", BYTES);
    load_like_comfyui(&path);
    assert!(cached(&path) < BYTES / 20, "{} of {BYTES} bytes stayed without a lock", cached(&path));
    let held = hold(&resident, &path).expect("locks");
    for load in 1..=10 {
        load_like_comfyui(&path);
        assert_eq!(held.residency().expect("counts").resident, BYTES, "after load {load}");
    }
    assert_eq!(held.residency().expect("counts"), Residency { bytes: BYTES, resident: BYTES, locked: BYTES });
    drop(held);
    evict(&path);
    assert!(cached(&path) < BYTES / 20, "{} bytes outlived their lock", cached(&path));
}

#[test]
fn a_killed_process_leaves_no_lock() {
    if locking().is_none() {
        return;
    }
    let dir = folder();
    let path = file(&dir, "model", BYTES);
    let mut holder = process("holds_until_killed", &path).spawn().expect("starts");
    let mut output = holder.stdout.take().expect("is piped");
    let mut told = Vec::new();
    while !told.ends_with(b"held\n") {
        let mut byte = [0];
        assert_eq!(output.read(&mut byte).expect("reads"), 1, "{}", String::from_utf8_lossy(&told));
        told.push(byte[0]);
    }
    evict(&path);
    assert_eq!(cached(&path), BYTES, "the other process holds it");
    holder.kill().expect("is killed");
    holder.wait().expect("ends");
    evict(&path);
    assert!(cached(&path) < BYTES / 20, "{} bytes stayed locked", cached(&path));
}

#[test]
fn a_stop_on_the_way_unlocks_everything() {
    let Some(resident) = locking() else { return };
    let dir = folder();
    let path = dir.path().join("model");
    // Sparse: its pages are zeros that no disk is asked for.
    let bytes = 12 * WINDOW_BYTES;
    File::create(&path).expect("creates").set_len(bytes).expect("grows");
    // The stop must fall between the first window and the last; where it comes too late, it is tried again.
    let stopped = (0..50).any(|_| {
        let (stop, progress) = (AtomicBool::new(false), AtomicU64::new(0));
        let result = std::thread::scope(|scope| {
            scope.spawn(|| {
                while progress.load(Relaxed) == 0 {
                    std::hint::spin_loop();
                }
                stop.store(true, Relaxed);
            });
            resident.hold(&path, bytes, &stop, &progress)
        });
        match result {
            Ok(_) => false,
            Err(ResidentError::Stopped) => {
                assert!((WINDOW_BYTES..bytes).contains(&progress.load(Relaxed)));
                true
            }
            Err(error) => panic!("{error}"),
        }
    });
    assert!(stopped, "no stop was obeyed");
    assert_eq!(resident.locked(), 0);
    evict(&path);
    assert!(cached(&path) < bytes / 20, "{} bytes stayed locked", cached(&path));
}

#[test]
fn bytes_that_land_are_locked_as_they_pass_and_nothing_is_read_back() {
    if locking().is_none() {
        return;
    }
    let dir = folder();
    play("lands_through_the_cache", &dir.path().join("model"));
}

#[test]
fn what_was_written_past_the_cache_is_read_back_by_the_lock_and_right() {
    let Some(resident) = locking() else { return };
    let dir = folder();
    let path = file(&dir, "model", 0);
    let space = File::options().read(true).write(true).open(&path).expect("opens");
    let bytes = 32 * MIB;
    rustix::fs::fallocate(&space, rustix::fs::FallocateFlags::empty(), 0, bytes).expect("allocates");
    let Ok(direct) = open_direct(&path) else { return println!("skipped: no direct writes in {}", path.display()) };
    let held = resident.begin(&path, bytes).expect("maps");
    // Every second MiB goes past the cache, next to locked neighbours that went through it.
    let mut memory = memmap2::MmapMut::map_anon(MIB as usize).expect("memory");
    for at in (0..bytes).step_by(MIB as usize) {
        let number = (at / MIB) as u8 + 1;
        memory.fill(number);
        if number.is_multiple_of(2) {
            direct.write_all_at(&memory, at).expect("writes");
        } else {
            write_through(&space, at, &memory, WRITE_BYTES[0]).expect("writes");
        }
        held.extend(at..at + MIB).expect("locks");
    }
    space.sync_all().expect("syncs");
    evict(&path);
    let read = fs::read(&path).expect("reads");
    assert!((0..bytes as usize).all(|at| read[at] == (at >> 20) as u8 + 1), "stale bytes in the cache");
    let residency = held.residency().expect("counts");
    assert_eq!((residency.resident, residency.locked), (bytes, bytes));
}

#[test]
fn ranges_that_overlap_are_booked_once_and_leave_the_books_when_dropped() {
    let Some(resident) = locking() else { return };
    let dir = folder();
    let path = file(&dir, "model", 4 * MIB + 1);
    let held = resident.begin(&path, 4 * MIB + 1).expect("maps");
    assert_eq!(resident.locked(), 0);
    held.extend(0..MIB).expect("locks");
    held.extend(MIB / 2..2 * MIB).expect("locks");
    held.extend(3 * MIB..9 * MIB).expect("locks what there is");
    assert_eq!(resident.locked(), 3 * MIB + map::page());
    assert_eq!(held.residency().expect("counts").locked, 3 * MIB + map::page());
    held.extend(0..u64::MAX).expect("locks");
    held.extend(0..MIB).expect("holds it already");
    assert_eq!(held.residency().expect("counts").locked, 4 * MIB + 1);
    let second = hold(&resident, &path).expect("locks");
    assert_eq!(resident.locked(), 2 * (4 * MIB + map::page()), "the kernel counts each map against the limit");
    drop((held, second));
    assert_eq!(resident.locked(), 0);
}

#[test]
fn a_file_that_was_cut_is_told_apart_from_a_limit() {
    let Some(resident) = locking() else { return };
    let dir = folder();
    let path = file(&dir, "model", 4 * MIB);
    let short = resident.begin(&path, 4 * MIB + 1).expect_err("too short");
    assert!(matches!(short, ResidentError::Short { found, expected, .. } if found == 4 * MIB && expected > found));
    let held = resident.begin(&path, 4 * MIB).expect("maps");
    File::options().write(true).open(&path).expect("opens").set_len(0).expect("cuts");
    let cut = held.extend(0..4 * MIB).expect_err("nothing there");
    assert!(matches!(cut, ResidentError::Short { found: 0, .. }), "{cut}");
    assert_eq!(resident.locked(), 0);
}

#[test]
fn an_empty_file_is_held_by_holding_nothing() {
    let dir = folder();
    let path = file(&dir, "model", 0);
    let held = hold(&Resident::open(), &path).expect("holds");
    assert_eq!(held.residency().expect("counts"), Residency::default());
}

#[test]
fn both_ways_of_counting_agree() {
    let dir = folder();
    let path = file(&dir, "model", 8 * MIB);
    let file = File::open(&path).expect("opens");
    rustix::fs::fadvise(&file, 0, None, Advice::Random).expect("advises");
    let mut some = vec![0; 3 * MIB as usize];
    file.read_exact_at(&mut some, MIB).expect("reads");
    let slow = map::Map::new(&file, 8 * MIB).expect("maps").mincore(&(0..8 * MIB)).expect("counts");
    assert!(slow >= 3 * MIB);
    match map::cachestat(&file, &(0..8 * MIB)) {
        Ok(fast) => assert_eq!(fast, slow),
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::Unsupported),
    }
    assert_eq!(resident_bytes(&file, 0..8 * MIB).expect("counts"), slow);
    assert_eq!(resident_bytes(&file, MIB..MIB).expect("counts"), 0);
}

//! What the RAM tier costs on this machine. Run by hand:
//! `cargo test --release -p tierd-cache resident::tests::speed -- --ignored --nocapture --test-threads=1`.

use std::sync::Mutex;
use std::time::Duration;

use super::*;
use crate::clock::Clock;
use crate::resident::landing::{WRITE_BYTES, Way, Ways, start_writeback, write_through};
use crate::units::GIB;

/// Fresh memory is what a reader meets on a machine that was idle; see `landing.rs`.
fn idle() {
    std::thread::sleep(Duration::from_secs(4));
}

#[test]
#[ignore = "a measurement, not a claim"]
fn holding_four_gibibytes() {
    let Some(resident) = locking() else { return };
    let dir = folder();
    let path = file(&dir, "model", 4 * GIB);
    let clock = Clock::start();
    for round in 0..3 {
        evict(&path);
        idle();
        for what in ["cold", "resident"] {
            let start = clock.now();
            let held = hold(&resident, &path).expect("holds");
            let seconds = clock.now().since(start).as_secs_f64();
            let counted = clock.now();
            assert_eq!(held.residency().expect("counts").resident, 4 * GIB);
            let count = clock.now().since(counted).as_micros();
            let dropped = clock.now();
            drop(held);
            let free = clock.now().since(dropped).as_micros();
            println!(
                "round {round} {what}: {:.1} ms, {:.2} GB/s; counted in {count} us, unlocked in {free} us",
                seconds * 1e3,
                4.0 * GIB as f64 / seconds / 1e9
            );
        }
    }
}

#[test]
#[ignore = "a measurement, not a claim"]
fn landing_a_gibibyte() {
    const BYTES: u64 = GIB;
    const PIECE: u64 = 8 * MIB;
    let Some(resident) = locking() else { return };
    let dir = folder();
    let clock = Clock::start();
    for round in 0..3 {
        for plan in ["no ram", "through", "behind", "ways"] {
            idle();
            let path = dir.path().join("landing");
            let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).expect("creates");
            rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, BYTES).expect("allocates");
            let direct = open_direct(&path).expect("opens");
            let held = resident.begin(&path, BYTES).expect("maps");
            let (next, ways, through) = (AtomicU64::new(0), Mutex::new(Ways::default()), AtomicU64::new(0));
            let start = clock.now();
            std::thread::scope(|scope| {
                for _ in 0..8 {
                    scope.spawn(|| {
                        let mut block = memmap2::MmapMut::map_anon(MIB as usize).expect("memory");
                        block.fill(round + 1);
                        loop {
                            let piece = next.fetch_add(PIECE, Relaxed);
                            if piece >= BYTES {
                                break;
                            }
                            for at in (piece..piece + PIECE).step_by(MIB as usize) {
                                let way = match plan {
                                    "through" => Way::Through(WRITE_BYTES[0]),
                                    "ways" => ways.lock().expect("whole").choose(),
                                    _ => Way::Behind,
                                };
                                let Way::Through(write) = way else {
                                    direct.write_all_at(&block, at).expect("writes");
                                    continue;
                                };
                                let cost = write_through(&file, at, &block, write).expect("writes");
                                ways.lock().expect("whole").took(write, MIB, cost);
                                through.fetch_add(MIB, Relaxed);
                            }
                            if plan != "no ram" {
                                start_writeback(&file, piece..piece + PIECE).expect("starts");
                                held.extend(piece..piece + PIECE).expect("locks");
                            }
                        }
                    });
                }
            });
            file.sync_data().expect("syncs");
            let seconds = clock.now().since(start).as_secs_f64();
            let through = through.load(Relaxed) / MIB;
            println!("round {round} {plan}: {seconds:.2} s, {through} of {} MiB through", BYTES / MIB);
            drop(held);
            fs::remove_file(&path).expect("removes");
        }
    }
}

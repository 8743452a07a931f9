//! What the store costs on this machine. Run by hand: `cargo test --release -p tierd-cache store::tests::speed -- --ignored --nocapture`.

use super::*;
use crate::clock::Clock;
use crate::units::{GIB, MIB};

fn cpu_seconds() -> f64 {
    let usage = fs::read_to_string("/proc/self/stat").expect("readable");
    let fields: Vec<&str> = usage.rsplit(')').next().expect("named").split_whitespace().collect();
    let ticks: u64 = fields[11..13].iter().map(|field| field.parse::<u64>().expect("a number")).sum();
    ticks as f64 / 100.0
}

#[test]
#[ignore = "a measurement, not a claim"]
fn writing_committing_and_scrubbing_a_gibibyte() {
    for direct_io in [DirectIo::Auto, DirectIo::Off] {
        let dir = folder();
        let store = Store::open(&StoreConfig { direct_io, ..config(&dir) }, 16).expect("opens").0;
        let clock = Clock::start();
        let timed = |what: &str, act: &mut dyn FnMut()| {
            let (start, cpu) = (clock.now(), cpu_seconds());
            act();
            let (seconds, cpu) = (clock.now().since(start).as_secs_f64(), cpu_seconds() - cpu);
            println!("{} {what}: {:.1} ms, {:.0} MiB/s, {cpu:.2} CPU s", store.mode(), seconds * 1e3, 1024.0 / seconds);
        };
        let pattern = content(1, MIB);
        let layout = Layout::new(GIB);
        let mut hasher = PieceHasher::new(layout, 0);
        (0..8).for_each(|_| hasher.update(&pattern));
        let name = PartialName([1; 32]);
        let mut partial = None;
        timed("begin", &mut || partial = Some(store.begin(name, GIB, &NEVER).expect("begins").0));
        let partial = partial.expect("begun");
        let cvs = Mutex::new(vec![Cv([0; 32]); 128]);
        timed("write + hash + journal + sync", &mut || {
            let next = AtomicU64::new(0);
            std::thread::scope(|scope| {
                for _ in 0..8 {
                    scope.spawn(|| {
                        let mut block = block();
                        block.fill(&pattern);
                        loop {
                            let piece = next.fetch_add(1, Relaxed) as u32;
                            if piece >= 128 {
                                break;
                            }
                            let mut hasher = PieceHasher::new(layout, piece);
                            for at in layout.range(piece).step_by(MIB as usize) {
                                hasher.update(block.bytes());
                                partial.write(at, &mut block).expect("writes");
                            }
                            partial.finished(piece, hasher.finish()).expect("journals");
                            cvs.lock().expect("whole")[piece as usize] = hasher.finish();
                        }
                    });
                }
            });
            partial.sync().expect("syncs");
        });
        timed("resume", &mut || assert_eq!(store.begin(name, GIB, &NEVER).expect("begins").1.len(), 128));
        let partial = store.begin(name, GIB, &NEVER).expect("begins").0;
        timed("sha256", &mut || {
            store.sha256(&partial, &NEVER).expect("reads");
        });
        let cvs = cvs.into_inner().expect("whole");
        let blob = root(layout, &cvs);
        let links = vec![link("vae/a", blob)];
        let mut commit = Some(Commit { blob, cvs, trust: Trust::Blake3, sha256: None, links, now: Wall(0) });
        timed("commit", &mut || store.commit(&partial, commit.take().expect("once")).expect("commits"));
        timed("scrub", &mut || assert_eq!(scrub(&store, blob), [0; 0]));
        timed("remove", &mut || assert_eq!(store.remove(blob).expect("removes"), GIB));
    }
}

#[test]
#[ignore = "a measurement, not a claim"]
fn committing_many_small_blobs() {
    let dir = folder();
    let store = open(&dir).0;
    let clock = Clock::start();
    let mut micros: Vec<u128> = (0..100)
        .map(|seed| {
            let data = content(seed, BYTES);
            let (partial, _) = begin(&store, &data);
            write(&partial, &data, 0..6);
            partial.sync().expect("syncs");
            let start = clock.now();
            store.commit(&partial, commit_of(&data, &[&format!("vae/{seed}")])).expect("commits");
            clock.now().since(start).as_micros()
        })
        .collect();
    micros.sort_unstable();
    println!("commit: median {} us, p90 {} us", micros[50], micros[90]);
}

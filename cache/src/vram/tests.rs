//! Claims about the ledger, its advice and its audit; and random walks against a naive model of it.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::advice::advise;
use super::audit::{Gpu, audit};
use super::*;
use crate::clock::Tick;
use crate::config::VramConfig;

const EXPIRY: Duration = Duration::from_secs(10);

fn worker(n: u8) -> WorkerId {
    WorkerId::parse(&format!("w{n}")).expect("a valid name")
}

fn blob(n: u8) -> BlobId {
    BlobId([n; 32])
}

fn key(n: u8) -> ModelKey {
    ModelKey::parse(&format!("vae/m{n}")).expect("a valid key")
}

fn claim(n: u8, loaded: u64, in_use: bool) -> Claim {
    Claim { file: format!("/m/{n}"), blob: Some(blob(n)), bytes: 10, loaded, in_use }
}

fn device(total: u64, free: u64, models: Vec<Claim>) -> DeviceReport {
    DeviceReport { index: 0, uuid: "GPU-A".to_owned(), total, free, models, ..DeviceReport::default() }
}

fn report(seq: u64, models: Vec<Claim>) -> Report {
    Report { seq, devices: Some(vec![device(100, 50, models)]), ..Report::default() }
}

fn read(n: u8) -> Read {
    Read { file: format!("/m/{n}"), blob: Some(blob(n)), bytes: 10, elapsed: Duration::from_secs(1) }
}

fn seconds(n: u64) -> Tick {
    Tick(n * 1_000_000)
}

fn with_worker(hello: Hello) -> Ledger {
    let mut ledger = Ledger::new(EXPIRY);
    assert!(ledger.hello(&worker(0), hello, seconds(0)).expect("there is room"));
    ledger
}

#[test]
fn a_worker_that_falls_silent_or_whose_process_ends_claims_nothing_any_more() {
    let mut ledger = with_worker(Hello { watched: Some(7), ..Hello::default() });
    ledger.report(&worker(0), report(1, vec![claim(1, 10, false)]), seconds(1)).expect("known");
    assert!(ledger.holds(blob(1)) && ledger.is_whole(blob(1)));
    assert_eq!(ledger.next_expiry(), Some(seconds(11)));
    assert!(ledger.expire(seconds(10)).is_empty());
    assert_eq!(ledger.expire(seconds(11)), [worker(0)]);
    assert_eq!((ledger.of_process(7), ledger.of_process(8)), (vec![worker(0)], vec![]));
    assert!(ledger.gone(&worker(0)).is_some());
    assert!(!ledger.holds(blob(1)));
    let late = ledger.report(&worker(0), report(2, vec![claim(1, 10, false)]), seconds(11));
    assert_eq!(late, Err(VramError::Unknown(worker(0))));
}

#[test]
fn a_file_that_was_just_read_is_held_until_it_is_claimed_or_half_a_minute_is_over() {
    let mut ledger = with_worker(Hello::default());
    let reads = Report { seq: 1, reads: vec![read(1)], ..Report::default() };
    let changes = ledger.report(&worker(0), reads, seconds(1)).expect("known");
    assert_eq!((changes.used, changes.reads.len()), (vec![blob(1)], 1));
    assert!(ledger.holds(blob(1)) && !ledger.is_whole(blob(1)));
    ledger.hello(&worker(0), Hello::default(), seconds(30)).expect("known");
    ledger.expire(seconds(30));
    assert!(ledger.holder(blob(1)).expect("held").contains("has just read it"));
    ledger.expire(seconds(31));
    assert!(!ledger.holds(blob(1)));
    ledger.opens(&worker(0), blob(2), seconds(31));
    assert!(ledger.holds(blob(2)), "what is about to be opened is held too");
}

#[test]
fn a_name_that_stands_for_a_newer_blob_does_not_free_the_one_that_is_loaded() {
    let mut ledger = with_worker(Hello::default());
    let newer = || Claim { blob: Some(blob(2)), ..claim(1, 10, false) };
    ledger.report(&worker(0), report(1, vec![claim(1, 10, false)]), seconds(1)).expect("known");
    ledger.report(&worker(0), report(2, vec![newer()]), seconds(2)).expect("known");
    assert!(ledger.holds(blob(1)) && !ledger.holds(blob(2)), "it was not read since");
    let again = Read { blob: Some(blob(2)), ..read(1) };
    let reads = Report { reads: vec![again], ..report(3, vec![newer()]) };
    ledger.report(&worker(0), reads, seconds(3)).expect("known");
    assert!(!ledger.holds(blob(1)) && ledger.holds(blob(2)));
}

#[test]
fn a_report_that_was_overtaken_tells_its_events_and_nothing_of_devices() {
    let mut ledger = with_worker(Hello::default());
    ledger.report(&worker(0), report(5, vec![claim(1, 10, false)]), seconds(1)).expect("known");
    let late = Report { reads: vec![read(3)], ..report(4, vec![]) };
    ledger.report(&worker(0), late, seconds(2)).expect("known");
    assert!(ledger.holds(blob(1)) && ledger.holds(blob(3)));
}

#[test]
fn what_is_used_from_vram_is_a_hit_and_what_was_read_for_it_is_not() {
    let mut ledger = with_worker(Hello::default());
    let mut told = |seq, reads: Vec<Read>, in_use| {
        let report = Report { reads, ..report(seq, vec![claim(1, 10, in_use)]) };
        ledger.report(&worker(0), report, seconds(seq)).expect("known").hits
    };
    assert!(told(1, vec![read(1)], true).is_empty(), "it was loaded for this use");
    assert!(told(2, vec![], true).is_empty(), "it is the same use");
    assert!(told(3, vec![], false).is_empty());
    assert_eq!(told(4, vec![], true), [blob(1)]);
}

#[test]
fn a_model_is_copied_unless_some_worker_streams_it() {
    let mut ledger = with_worker(Hello::default());
    ledger.report(&worker(0), report(1, vec![claim(1, 10, false), claim(2, 4, false)]), seconds(1)).expect("known");
    assert!(ledger.is_copied(blob(1)));
    assert!(!ledger.is_copied(blob(2)), "a part of it is read again from the file");
    let streams = Hello { fast_disk: true, ..Hello::default() };
    ledger.hello(&worker(1), streams, seconds(1)).expect("there is room");
    ledger.report(&worker(1), report(1, vec![claim(1, 3, false)]), seconds(1)).expect("known");
    assert!(!ledger.is_copied(blob(1)));
    assert_eq!(ledger.loaded(blob(1)), 13);
}

#[test]
fn files_of_another_mount_namespace_are_known_by_the_workers_folders() {
    let folders = vec![("vae".to_owned(), "/c/vae/".to_owned()), ("unet".to_owned(), "/c/unet".to_owned())];
    let ledger = with_worker(Hello { folders, ..Hello::default() });
    let alias = |file| ledger.alias(&worker(0), file).map(|key| key.to_string());
    assert_eq!(alias("/c/vae/sub/x.sft").as_deref(), Some("vae/sub/x.sft"));
    assert_eq!(alias("/c/unet/x").as_deref(), Some("diffusion_models/x"));
    for file in ["/c/vaex/y", "/c/vae", "/c/vae/../../etc/passwd", "", "/etc/passwd"] {
        assert_eq!(alias(file), None, "{file}");
    }
}

#[test]
fn lists_and_texts_beyond_their_bounds_are_refused_with_the_bound() {
    let mut ledger = with_worker(Hello::default());
    let devices = vec![DeviceReport::default(); DEVICES_MAX + 1];
    let many = Report { devices: Some(devices), ..Report::default() };
    let refused = ledger.report(&worker(0), many, seconds(1));
    assert_eq!(refused, Err(VramError::TooMany { what: "devices", found: 33, max: 32 }));
    let long = Hello { address: "x".repeat(TEXT_BYTES_MAX + 1), ..Hello::default() };
    assert!(matches!(ledger.hello(&worker(0), long, seconds(1)), Err(VramError::TooMany { .. })));
    for n in 1..WORKERS_MAX as u8 {
        ledger.hello(&worker(n), Hello::default(), seconds(1)).expect("there is room");
    }
    assert_eq!(ledger.hello(&worker(99), Hello::default(), seconds(1)), Err(VramError::Full));
    for text in ["", "a b", "ä", "../x"] {
        assert_eq!(WorkerId::parse(text), None);
    }
    assert_eq!(WorkerId::parse(&"x".repeat(65)), None);
}

fn advised(ledger: &Ledger) -> Advice {
    let stored = |model: &ModelKey| {
        let n: u8 = model.path()[1..].parse().ok()?;
        Some((Some(blob(n)), 10))
    };
    let named = |blob: BlobId| Some(key(blob.0[0]));
    let mut all = advise(ledger, &worker(0), &VramConfig::default(), &stored, &named);
    all.remove(0)
}

fn rows(rows: &[AdvisedModel]) -> Vec<String> {
    rows.iter().map(|row| row.model.as_ref().map_or_else(|| row.file.clone(), ToString::to_string)).collect()
}

#[test]
fn a_full_device_is_told_to_let_go_what_nothing_needs_the_longest_unused_first() {
    let mut ledger = with_worker(Hello::default());
    let next = Some(vec![key(3), key(9)]);
    let models = vec![claim(1, 10, false), claim(2, 10, true), claim(3, 10, false), claim(4, 10, false)];
    ledger.report(&worker(0), Report { next, ..report(1, models.clone()) }, seconds(1)).expect("known");
    let full = |seq, used_now: u8, free| {
        let mut models = models.clone();
        models[used_now as usize - 1].in_use = true;
        Report { seq, devices: Some(vec![device(100, free, models)]), ..Report::default() }
    };
    ledger.report(&worker(0), full(2, 1, 2), seconds(2)).expect("known");
    ledger.report(&worker(0), full(3, 2, 2), seconds(3)).expect("known");
    let advice = advised(&ledger);
    assert_eq!(rows(&advice.unload), ["vae/m4", "vae/m1"], "98 used of 85: two of 10 must go; 4 was never used");
    assert_eq!(rows(&advice.load), ["vae/m9"], "3 is loaded");
    assert!(advice.preload.is_empty() && !advice.idle);
    ledger.report(&worker(0), full(4, 2, 15), seconds(4)).expect("known");
    assert!(advised(&ledger).unload.is_empty(), "at the mark nothing must go");
}

#[test]
fn a_device_with_room_is_told_what_it_could_load_ahead_and_stays_below_the_low_mark() {
    let mut ledger = with_worker(Hello { address: "http://127.0.0.1:8188".to_owned(), ..Hello::default() });
    ledger.expect("http://127.0.0.1:8188", vec![key(1), key(2), key(1), key(3)]);
    let used_35 = Report { seq: 1, devices: Some(vec![device(100, 65, vec![])]), ..Report::default() };
    ledger.report(&worker(0), used_35, seconds(1)).expect("known");
    let advice = advised(&ledger);
    assert_eq!(rows(&advice.load), ["vae/m1", "vae/m2", "vae/m3"]);
    assert_eq!(rows(&advice.preload), ["vae/m1", "vae/m2"], "35 + 3 * 10 is beyond 60");
    assert!(advice.idle && !advice.is_empty());
    ledger.expect("http://127.0.0.1:8188", vec![]);
    assert!(advised(&ledger).is_empty());
}

#[test]
fn claims_are_held_against_the_driver_by_uuid_and_process() {
    let mut ledger = with_worker(Hello { pid: 1, watched: Some(70), ..Hello::default() });
    let mut on_device = device(1000, 900, vec![claim(1, 40, false), claim(2, 30, false)]);
    on_device.uuid = "a".to_owned();
    let devices = Some(vec![on_device]);
    ledger.report(&worker(0), Report { seq: 1, devices, ..Report::default() }, seconds(1)).expect("known");
    let gpu = |uuid: &str, used| Gpu {
        index: 3,
        uuid: uuid.to_owned(),
        total: 2000,
        used,
        processes: vec![(70, Some(90)), (71, None)],
        ..Gpu::default()
    };
    let views = ledger.views(seconds(1));
    let rows = audit(&views, &[gpu("GPU-b", 5), gpu("GPU-A", 100)]);
    assert_eq!(rows.len(), 2);
    assert_eq!((rows[0].claimed, rows[0].other), (0, 5));
    let row = &rows[1];
    assert_eq!((row.used, row.claimed, row.other, row.overclaimed, row.models), (100, 70, 30, 0, 2));
    let process = &row.processes[0];
    assert_eq!((process.pid, process.used, process.claimed), (70, Some(90), 70));
    assert_eq!(process.worker, Some(worker(0)));
    let lying = audit(&views, &[gpu("GPU-A", 10)]);
    assert_eq!((lying[0].other, lying[0].overclaimed), (0, 60));
    let alone = audit(&views, &[]);
    assert_eq!((alone[0].used, alone[0].total, alone[0].by_driver), (100, 1000, false));
}

/// What the naive model of the ledger remembers of a worker.
#[derive(Debug, Default)]
struct Naive {
    heard: Tick,
    seq: u64,
    claims: Vec<(u8, u64)>,
    reads: BTreeMap<u8, Tick>,
}

#[derive(Debug, Clone)]
enum Step {
    Hello(u8),
    Report { worker: u8, seq: u64, claims: Option<Vec<(u8, u64, bool)>>, reads: Vec<u8> },
    Opens(u8, u8),
    Gone(u8),
    Wait(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let claims = proptest::collection::vec((0..6u8, 0..=10u64, any::<bool>()), 0..5);
    prop_oneof![
        2 => (0..4u8).prop_map(Step::Hello),
        6 => (0..4u8, 0..40u64, proptest::option::of(claims), proptest::collection::vec(0..6u8, 0..3))
            .prop_map(|(worker, seq, claims, reads)| Step::Report { worker, seq, claims, reads }),
        1 => (0..4u8, 0..6u8).prop_map(|(worker, n)| Step::Opens(worker, n)),
        1 => (0..4u8).prop_map(Step::Gone),
        3 => (0..14u8).prop_map(Step::Wait),
    ]
}

proptest! {
    #[test]
    fn whatever_workers_say_the_ledger_holds_what_a_naive_one_does(steps in proptest::collection::vec(step(), 1..120)) {
        let mut ledger = Ledger::new(EXPIRY);
        let mut naive: BTreeMap<u8, Naive> = BTreeMap::new();
        let mut now = seconds(1);
        for step in steps {
            match step {
                Step::Hello(n) => {
                    let new = ledger.hello(&worker(n), Hello::default(), now).expect("four fit");
                    prop_assert_eq!(new, !naive.contains_key(&n));
                    naive.entry(n).or_default().heard = now;
                }
                Step::Report { worker: n, seq, claims, reads } => {
                    let models = claims.as_ref().map(|claims| {
                        claims.iter().map(|(n, loaded, in_use)| claim(*n, *loaded, *in_use)).collect::<Vec<_>>()
                    });
                    let devices = models.map(|models| vec![device(100, 50, models)]);
                    let reads_of = reads.iter().map(|n| read(*n)).collect();
                    let report = Report { seq, devices, reads: reads_of, ..Report::default() };
                    let told = ledger.report(&worker(n), report, now);
                    prop_assert_eq!(told.is_ok(), naive.contains_key(&n));
                    if let Some(naive) = naive.get_mut(&n) {
                        naive.heard = now;
                        naive.reads.extend(reads.iter().map(|n| (*n, now.after(READ_HOLD))));
                        if let Some(claims) = claims.filter(|_| seq > naive.seq) {
                            naive.claims = claims.iter().map(|(n, loaded, _)| (*n, *loaded)).collect();
                        }
                        naive.seq = naive.seq.max(seq);
                    }
                }
                Step::Opens(n, model) => {
                    ledger.opens(&worker(n), blob(model), now);
                    if let Some(naive) = naive.get_mut(&n) {
                        naive.heard = now;
                        naive.reads.insert(model, now.after(READ_HOLD));
                    }
                }
                Step::Gone(n) => {
                    prop_assert_eq!(ledger.gone(&worker(n)).is_some(), naive.remove(&n).is_some());
                }
                Step::Wait(seconds) => {
                    now = now.after(Duration::from_secs(seconds.into()));
                    for lost in ledger.expire(now) {
                        ledger.gone(&lost);
                    }
                    naive.retain(|_, naive| naive.heard.after(EXPIRY) > now);
                    naive.values_mut().for_each(|naive| naive.reads.retain(|_, until| *until > now));
                }
            }
            prop_assert_eq!(ledger.check(), Vec::<String>::new());
            for n in 0..6u8 {
                let claims = |naive: &Naive| naive.claims.iter().any(|(claimed, _)| *claimed == n);
                let held = naive.values().any(|naive| claims(naive) || naive.reads.contains_key(&n));
                prop_assert_eq!(ledger.holds(blob(n)), held, "blob {}", n);
                prop_assert_eq!(ledger.holder(blob(n)).is_some(), held);
                let all = naive.values().flat_map(|naive| &naive.claims).filter(|(claimed, _)| *claimed == n);
                let loaded: u64 = all.clone().map(|(_, loaded)| loaded).sum();
                prop_assert_eq!(ledger.loaded(blob(n)), loaded);
                prop_assert_eq!(ledger.is_whole(blob(n)), all.clone().any(|(_, loaded)| *loaded >= 10));
            }
            let known: BTreeSet<String> = naive.keys().map(|n| worker(*n).to_string()).collect();
            let seen: BTreeSet<String> = ledger.views(now).iter().map(|view| view.worker.to_string()).collect();
            prop_assert_eq!(seen, known);
        }
    }
}

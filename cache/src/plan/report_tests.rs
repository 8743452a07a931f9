//! Claims about the record and the arithmetic of reports.

use super::*;

const GIB: u64 = 1 << 30;

fn at(hour: u64) -> Wall {
    Wall(hour * HOUR_MS + 5)
}

fn found(models: u64, bytes: u64, waited_ms: u64) -> Found {
    Found { models, bytes, waited_ms }
}

#[test]
fn what_was_saved_follows_from_the_rate_at_which_callers_were_served() {
    let mut record = Record::default();
    // Two models of 10 GiB came at 0.5 GiB/s; four were there, and cost 2 s of waiting in all.
    let (totals, _) = record.at(at(100));
    totals.origin = found(2, 20 * GIB, 40_000);
    totals.nvme = found(3, 30 * GIB, 1500);
    totals.ram = found(1, 10 * GIB, 500);
    totals.locked = Moved { models: 1, bytes: 10 * GIB, ms: 5000 };
    let report = record.report(24, at(100));
    assert_eq!(report.saved.bytes, 40 * GIB);
    assert!((report.saved.seconds.expect("a rate") - 78.0).abs() < 1e-6, "{:?}", report.saved);
    assert!((report.saved.ram_seconds.expect("a rate") - 5.0).abs() < 1e-6, "{:?}", report.saved);
    assert_eq!(report.now.hit_ratio(), Some(4.0 / 6.0));
    assert_eq!(report.now.byte_hit_ratio(), Some(40.0 / 60.0));
}

#[test]
fn a_node_that_never_fetched_claims_no_seconds_and_one_that_fetched_before_takes_that_rate() {
    let mut record = Record::default();
    record.at(at(100)).0.nvme = found(3, 30 * GIB, 0);
    assert_eq!(record.report(24, at(100)).saved.seconds, None);
    let mut record = Record::default();
    record.at(at(90)).0.origin = found(1, GIB, 1000);
    record.at(at(100)).0.nvme = found(3, 30 * GIB, 0);
    let report = record.report(8, at(100));
    assert_eq!(report.now.origin.models, 0);
    assert!((report.saved.seconds.expect("the rate of before") - 30.0).abs() < 1e-6);
}

#[test]
fn a_period_is_whole_hours_with_the_present_one_and_the_one_before_is_as_long() {
    let mut record = Record::default();
    for hour in 0..48 {
        record.at(at(1000 + hour)).0.ready = 1 + u64::from(hour == 23);
    }
    let report = record.report(24, at(1047));
    assert_eq!((report.now.ready, report.before.ready), (24, 25));
    assert_eq!(report.from, Wall(1024 * HOUR_MS));
    assert_eq!(report.recorded_from, Some(Wall(1000 * HOUR_MS)));
    // Hours in which nothing happened count as time all the same.
    assert_eq!(record.report(24, at(1059)).now.ready, 12);
    assert_eq!(record.report(0, at(1047)).now.ready, 1);
    assert_eq!(record.report(u64::MAX, at(1047)).now.ready, 49);
}

#[test]
fn the_record_is_bounded_and_a_clock_that_is_set_back_loses_nothing() {
    let mut record = Record::default();
    for hour in 0..HOURS_MAX * 2 {
        record.at(at(hour)).0.ready = 1;
    }
    assert_eq!(record.0.len() as u64, HOURS_MAX);
    let (totals, new) = record.at(at(5));
    totals.ready += 1;
    assert!(!new);
    assert_eq!(record.report(1, at(5)).now.ready, 2, "the last hour is the present one");
    // A jump ahead leaves one row, not one for each hour of the gap.
    record.at(at(1_000_000)).0.ready = 1;
    assert_eq!(record.0.len(), 1);
}

#[test]
fn stored_rows_that_are_out_of_order_are_left_out() {
    let row = |hour| Hour { hour, totals: Totals { ready: hour, ..Totals::default() } };
    let record = Record::from_rows(vec![row(5), row(7), row(6), row(7), row(9)]);
    assert_eq!(record.0.iter().map(|row| row.hour).collect::<Vec<_>>(), [5, 7, 9]);
}

#[test]
fn the_stored_form_is_byte_exact_so_bump_the_name_if_this_fails() {
    let mut totals = Totals { ready: 1, ..Totals::default() };
    totals.evicted.insert("room".to_owned(), Moved { models: 1, bytes: 2, ms: 0 });
    totals.origins.insert(OriginName::new("r2"), Given { bytes: 3, busy_ms: 4, requests: 5, failed: 6 });
    let json = serde_json::to_string(&Hour { hour: 7, totals }).expect("serializes");
    let none = "{\"models\":0,\"bytes\":0,\"waited_ms\":0}";
    assert_eq!(
        json,
        format!(
            "{{\"hour\":7,\"totals\":{{\"vram\":{none},\"ram\":{none},\"nvme\":{none},\"origin\":{none},\"ready\":1,\"failed\":0,\
             \"locked\":{{\"models\":0,\"bytes\":0,\"ms\":0}},\"evicted\":{{\"room\":{{\"models\":1,\"bytes\":2,\"ms\":0}}}},\
             \"demoted\":{{}},\"damaged\":0,\"origins\":{{\"r2\":{{\"bytes\":3,\"busy_ms\":4,\"requests\":5,\"failed\":6}}}}}}}}"
        )
    );
    let old: Hour = serde_json::from_str("{\"hour\":7,\"totals\":{\"ready\":2}}").expect("what is missing is zero");
    assert_eq!(old.totals.ready, 2);
}

fn period(hits: u64, misses: u64) -> Totals {
    Totals { nvme: found(hits, hits, 0), origin: found(misses, misses, misses), ..Totals::default() }
}

#[test]
fn what_got_worse_is_told_and_what_did_not_is_not() {
    let mut before = period(90, 10);
    let mut now = period(70, 30);
    let r2 = OriginName::new("r2");
    before.origins.insert(r2.clone(), Given { bytes: 100 * GIB, busy_ms: 100_000, requests: 1000, failed: 10 });
    now.origins.insert(r2, Given { bytes: 50 * GIB, busy_ms: 100_000, requests: 1000, failed: 100 });
    now.evicted.insert("room".to_owned(), Moved { models: 12, bytes: GIB, ms: 0 });
    now.demoted.insert("pressure".to_owned(), Moved { models: 40, bytes: GIB, ms: 0 });
    now.evicted.insert("asked".to_owned(), Moved { models: 500, bytes: GIB, ms: 0 });
    now.damaged = 1;
    let kinds: Vec<RegressionKind> = regressions(&before, &now).iter().map(|told| told.kind).collect();
    use RegressionKind::*;
    assert_eq!(kinds, [HitRatio, OriginSpeed, OriginFailures, Evictions, Pressure, Damage]);
    assert!(regressions(&now, &before).is_empty(), "all of it got better");
    assert!(regressions(&before, &before).is_empty());
}

#[test]
fn a_period_that_saw_little_says_nothing() {
    assert!(regressions(&period(5, 0), &period(0, 100)).is_empty());
    let slow = Given { bytes: 1, busy_ms: 999, requests: 9, failed: 9 };
    assert_eq!((slow.speed(), slow.failed_share()), (None, None));
}

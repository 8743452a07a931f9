//! Claims about the predictor and its shadow: what is learned, what is forgotten, what outlives a restart.

use super::contexts::CONTEXTS_MAX;
use super::habits::CLIENTS_MAX;
use super::names::NAMES_MAX;
use super::saved::Saved;
use super::shadow::{Kind, Level, Settled, Shadow, Step};
use super::{Guess, Habit, Habits, Predictor, Seen};
use crate::clock::Wall;
use crate::ids::ModelKey;

const GB: u64 = 1_000_000_000;
const HOUR_MS: u64 = 3_600_000;
const DAY_MS: u64 = 24 * HOUR_MS;

fn model(name: &str) -> ModelKey {
    ModelKey::parse(&format!("checkpoints/{name}")).expect("a key")
}

fn ask(habits: &mut Habits, client: &str, names: &[&str], at_ms: u64) -> Vec<Guess> {
    let models: Vec<(ModelKey, u64)> =
        names.iter().enumerate().map(|(at, name)| (model(name), 9 * GB - at as u64 * GB)).collect();
    habits.seen(&Seen { client, models: &models, at: Wall(at_ms) })
}

fn probability(guesses: &[Guess], name: &str) -> f64 {
    guesses.iter().find(|guess| guess.model == model(name)).map_or(0.0, |guess| guess.probability)
}

#[test]
fn what_a_client_asks_for_in_turns_is_guessed_with_what_goes_with_it() {
    let mut habits = Habits::default();
    let mut last = Vec::new();
    for turn in 0..8_u64 {
        let (now, names) = (turn * 60_000, if turn % 2 == 0 { ["a", "vae-a"] } else { ["b", "vae-b"] });
        last = ask(&mut habits, "me", &names, now);
    }
    assert!(probability(&last, "a") > 0.85 && probability(&last, "vae-a") > 0.85, "{last:?}");
    assert_eq!(last.iter().find(|guess| guess.top).map(|guess| guess.model.clone()), Some(model("a")));
    assert!(probability(&last, "b") < 0.3, "{last:?}");
    assert!(last.iter().all(|guess| guess.horizon.as_secs() == 180));
}

#[test]
fn two_models_back_tell_what_one_does_not() {
    let mut habits = Habits::default();
    let mut guesses = Vec::new();
    // a x b, c x d: what follows x depends on what was before it.
    for turn in 0..60_u64 {
        let name = ["a", "x", "b", "c", "x", "d"][turn as usize % 6];
        guesses = ask(&mut habits, "me", &[name], turn * 60_000);
        if turn == 55 {
            assert!(probability(&guesses, "b") > 0.8, "{guesses:?}");
        }
    }
    assert!(probability(&guesses, "a") > 0.8, "{guesses:?}");
}

#[test]
fn a_stranger_is_guessed_from_what_others_do_but_not_with_confidence_of_ones_own() {
    let mut habits = Habits::default();
    for turn in 0..40_u64 {
        let client = format!("c{}", turn / 2);
        ask(&mut habits, &client, &[["a", "b"][turn as usize % 2]], turn * 60_000);
    }
    let guesses = ask(&mut habits, "new", &["a"], 41 * 60_000);
    assert!(probability(&guesses, "b") > 0.6, "{guesses:?}");
}

#[test]
fn fickle_people_are_not_guessed_with_confidence() {
    let (mut habits, mut rng) = (Habits::default(), fastrand::Rng::with_seed(3));
    let mut sure = 0;
    for turn in 0..2000_u64 {
        let (client, name) = (format!("c{}", rng.u32(0..20)), format!("m{}", rng.u32(0..30)));
        let guesses = ask(&mut habits, &client, &[&name], turn * 60_000);
        sure += usize::from(guesses.iter().any(|guess| guess.probability >= 0.6));
    }
    assert!(sure < 20, "{sure} of 2000");
}

#[test]
fn the_models_of_an_hour_are_told_a_quarter_of_an_hour_before_it_and_once() {
    let mut habits = Habits::default();
    for day in 0..7 {
        let nine = day * DAY_MS + 9 * HOUR_MS;
        habits.passed(Wall(nine - 2 * HOUR_MS));
        let early = habits.passed(Wall(nine - HOUR_MS / 2));
        let told = habits.passed(Wall(nine - HOUR_MS / 4));
        assert!(early.is_empty() && habits.passed(Wall(nine - HOUR_MS / 5)).is_empty());
        assert_eq!(probability(&told, "batch") >= 0.6, day >= 4, "day {day}: {told:?}");
        ask(&mut habits, "cron", &["batch", "vae"], nine + 60_000);
        let mut hour = nine + HOUR_MS;
        while hour < (day + 1) * DAY_MS + 7 * HOUR_MS {
            habits.passed(Wall(hour));
            hour += HOUR_MS;
        }
    }
    let due = habits.due().expect("always due").0;
    assert_eq!(due % HOUR_MS, HOUR_MS * 3 / 4);
}

#[test]
fn what_happens_on_workdays_only_is_not_expected_on_the_weekend_after_some_weeks() {
    let mut habits = Habits::default();
    let mut told = Vec::new();
    for day in 0..6 * 7_u64 {
        for hour in 0..24 {
            let at = day * DAY_MS + hour * HOUR_MS;
            if hour == 9 && day % 7 < 5 {
                ask(&mut habits, "cron", &["batch"], at + 1000);
            }
            let guesses = habits.passed(Wall(at + HOUR_MS * 3 / 4));
            if hour == 8 {
                told.push(probability(&guesses, "batch"));
            }
        }
    }
    let last = &told[35..];
    assert!(last[..5].iter().all(|p| *p >= 0.6) && last[5..].iter().all(|p| *p < 0.6), "{last:?}");
}

#[test]
fn an_hour_that_nobody_watched_counts_as_nothing() {
    let mut habits = Habits::default();
    ask(&mut habits, "cron", &["batch"], 9 * HOUR_MS);
    ask(&mut habits, "cron", &["batch"], DAY_MS + 9 * HOUR_MS + HOUR_MS / 2);
    let kept = habits.saved().expect("it keeps something");
    let seen: f32 = kept.day.iter().map(|hour| hour.seen).sum();
    assert!((seen - 1.0).abs() < 1e-6, "one whole hour was watched: {seen}");
}

#[test]
fn memory_is_bounded_and_what_is_used_is_not_forgotten() {
    let mut habits = Habits::default();
    for turn in 0..20_000_u64 {
        let (client, name) = (format!("c{turn}"), format!("m{turn}"));
        ask(&mut habits, &client, &[&name, "vae"], turn * 1000);
    }
    let (names, contexts, clients) = habits.sizes();
    assert!(names <= NAMES_MAX && contexts <= CONTEXTS_MAX && clients <= CLIENTS_MAX, "{names} {contexts} {clients}");
    assert!(habits.knows(&model("vae")) && habits.knows(&model("m19999")) && !habits.knows(&model("m0")));
    let bytes = Saved::of(habits.saved().expect("it keeps something"), &Shadow::default()).to_bytes().expect("written");
    assert!(bytes.len() < 2_000_000, "{} bytes", bytes.len());
}

#[test]
fn a_restart_forgets_nothing_and_guesses_the_same() {
    let (mut habits, mut rng) = (Habits::default(), fastrand::Rng::with_seed(9));
    for turn in 0..500_u64 {
        let (client, name) = (format!("c{}", rng.u32(0..5)), format!("m{}", rng.u32(0..9)));
        ask(&mut habits, &client, &[&name, "vae"], turn * 600_000);
    }
    let saved = Saved::of(habits.saved().expect("it keeps something"), &Shadow::default());
    let bytes = saved.to_bytes().expect("written");
    let mut again = Habits::from(Saved::from_bytes(&bytes).expect("read").learned);
    assert_eq!(again.saved(), habits.saved());
    for turn in 500..520_u64 {
        let name = format!("m{}", turn % 9);
        let at = turn * 600_000;
        assert_eq!(ask(&mut again, "c1", &[&name], at), ask(&mut habits, "c1", &[&name], at));
    }
}

#[test]
fn the_format_is_byte_exact_so_bump_the_version_if_this_fails() {
    let mut habits = Habits::default();
    ask(&mut habits, "me", &["a", "b"], 1000);
    let saved = Saved::of(habits.saved().expect("it keeps something"), &Shadow::default());
    let text = String::from_utf8(saved.to_bytes().expect("written")).expect("text");
    let digest = blake3::hash(text.as_bytes()).to_hex();
    assert!(text.starts_with(r#"{"version":2,"saved":{"learned":{"names":[{"n":0,"m":"checkpoints/a","s":1000},"#));
    assert_eq!(&digest[..16], "efa633a1e9b32f38", "{text}");
    let newer = text.replacen("\"version\":2", "\"version\":3", 1);
    assert_eq!(Saved::from_bytes(newer.as_bytes()), Err("it has version 3, this is 2".to_owned()));
    assert!(Saved::from_bytes(&text.as_bytes()[..text.len() - 1]).is_err());
}

const KIND: Kind = Kind { habit: Habit::Hour, step: Step::Fetch, level: Level::Sure };

fn settled(hit: bool) -> Settled {
    let (saved, lost) = if hit { (5.0, 0.1) } else { (0.0, 0.1) };
    Settled { habit: Habit::Hour, level: Level::Sure, hit, top: true, step: Some(Step::Fetch), bytes: GB, saved, lost }
}

/// How many guesses it takes until the shadow says so.
fn until(shadow: &mut Shadow, guess: &Settled, acts: bool) -> Option<usize> {
    (1..1000).find(|_| shadow.settle(guess, 0.75).iter().any(|(kind, score)| *kind == KIND && score.acts == acts))
}

#[test]
fn a_habit_acts_once_it_has_proved_right_and_steps_back_when_it_fails() {
    let mut shadow = Shadow::default();
    assert_eq!(until(&mut shadow, &settled(true), true), Some(17), "a dozen, as they fade");
    assert_eq!(Kind::all().filter(|kind| shadow.score(*kind).acts).collect::<Vec<_>>(), [KIND]);
    assert_eq!(until(&mut shadow, &settled(false), false), Some(4));
    assert_eq!(shadow.score(KIND).moves.tried, 0.0, "it begins anew");
    assert!((0..10).all(|_| shadow.settle(&settled(true), 0.75).is_empty()));
}

#[test]
fn what_steps_back_has_twice_as_much_to_show_and_is_forgiven_as_it_earns_it() {
    let mut shadow = Shadow::default();
    let mut took = Vec::new();
    for _ in 0..5 {
        took.push(until(&mut shadow, &settled(true), true).expect("it is right"));
        until(&mut shadow, &settled(false), false).expect("it is wrong");
    }
    assert_eq!(took, [17, 24, 48, 96, 192], "of a liar less and less is heard");
    assert_eq!(until(&mut shadow, &settled(true), true), Some(384));
    for _ in 0..384 + 192 + 96 {
        assert!(shadow.settle(&settled(true), 0.75).is_empty());
    }
    assert_eq!(shadow.score(KIND).backs, 2);
}

#[test]
fn a_habit_that_is_right_about_what_is_there_anyway_or_that_saves_nothing_never_acts() {
    let mut shadow = Shadow::default();
    for _ in 0..1000 {
        assert!(shadow.settle(&Settled { step: None, ..settled(true) }, 0.75).is_empty());
    }
    let useless = Settled { habit: Habit::Sequence, saved: 0.1, lost: 0.2, ..settled(true) };
    for _ in 0..1000 {
        assert!(shadow.settle(&useless, 0.75).is_empty());
    }
}

#[test]
fn what_a_habit_has_proved_outlives_a_restart() {
    let mut shadow = Shadow::default();
    until(&mut shadow, &settled(true), true);
    let saved = Saved::of(Habits::default().saved().expect("it keeps something"), &shadow);
    let again = Saved::from_bytes(&saved.to_bytes().expect("written")).expect("read").shadow();
    assert_eq!(again, shadow);
    assert!(again.acts());
}

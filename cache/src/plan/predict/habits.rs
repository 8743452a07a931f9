//! The predictor: what a client asks for after what, what goes with what, and which hours see what.
//!
//! A request's largest model is its **lead**. The next lead is guessed from contexts, the general ones first: what is popular; what this
//! client asks for; what follows this lead, and these two leads, for anybody; the same for this client. Each context corrects the one
//! before by what it has seen, so that one that has seen little says little:
//!
//! ```text
//! p = (count + DOUBT x p before) / (total + DOUBT)
//! ```
//!
//! What goes with the lead (its VAE, its text encoders, its LoRAs) is as likely as the lead times its share of that lead's requests.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use crate::clock::Wall;
use crate::plan::predict::contexts::{Context, Contexts, Key, mix};
use crate::plan::predict::hours::Hours;
use crate::plan::predict::names::{Named, Names};
use crate::plan::predict::saved::{Client as SavedClient, Hour, Learned, Name, Table};
use crate::plan::predict::{GUESSES_MAX, Guess, Habit, PROBABILITY_MIN, Predictor, Seen};

/// Clients that are remembered.
pub(super) const CLIENTS_MAX: usize = 1024;
/// Requests that a more general context counts for. Two: what happened once may be chance, and is the same chance in every context.
const DOUBT: f64 = 2.0;
/// Leads that are weighed for one question.
const LEADS_MAX: usize = 32;
/// Bounds of a client's horizon, in milliseconds, and how many of its usual pauses that is.
const HORIZON_MS: (u64, u64) = (60_000, 3_600_000);
const PAUSES: u64 = 3;
/// Models of one request that are learned from: a workflow has 3 to 40.
const MODELS_MAX: usize = 64;

/// The kinds of context.
const POPULAR: u64 = 1;
const OF_CLIENT: u64 = 2;
const AFTER: u64 = 3;
const AFTER_TWO: u64 = 4;
const CLIENT_AFTER: u64 = 5;
const CLIENT_AFTER_TWO: u64 = 6;
const WITH: u64 = 7;

/// Where a client stands.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Client {
    /// Its last leads, the last one first.
    leads: [Option<u32>; 2],
    at_ms: u64,
    /// Its usual pause between two requests.
    pause_ms: u64,
}

/// The predictor.
#[derive(Debug, Default)]
pub struct Habits {
    names: Names,
    contexts: Contexts,
    hours: Hours,
    clients: HashMap<u64, Client>,
    /// The last leads of all clients together.
    leads: [Option<u32>; 2],
}

/// A client by number. Its name is not kept.
fn client_number(client: &str) -> u64 {
    client.bytes().fold(mix(client.len() as u64), |hash, byte| mix(hash ^ u64::from(byte)))
}

/// No lead yet.
fn part(lead: Option<u32>) -> u64 {
    lead.map_or(u64::MAX, u64::from)
}

impl Habits {
    /// The contexts of a client's next lead, the general ones first.
    fn contexts_of(&self, client: u64, leads: [Option<u32>; 2]) -> [Key; 6] {
        let [last, before] = leads.map(part);
        let [all_last, all_before] = self.leads.map(part);
        [
            Key::of(POPULAR, &[]),
            Key::of(OF_CLIENT, &[client]),
            Key::of(AFTER, &[all_last]),
            Key::of(AFTER_TWO, &[all_last, all_before]),
            Key::of(CLIENT_AFTER, &[client, last]),
            Key::of(CLIENT_AFTER_TWO, &[client, last, before]),
        ]
    }

    fn client(&mut self, number: u64) -> Client {
        if let Some(client) = self.clients.get(&number) {
            return *client;
        }
        if self.clients.len() >= CLIENTS_MAX {
            let mut oldest: Vec<(u64, u64)> = self.clients.iter().map(|(who, client)| (client.at_ms, *who)).collect();
            let (gone, ..) = oldest.select_nth_unstable(CLIENTS_MAX / 4);
            for (_, who) in gone {
                self.clients.remove(who);
            }
        }
        Client::default()
    }

    /// The likeliest next leads.
    fn leads(&self, keys: [Key; 6]) -> Vec<(u32, f64)> {
        let found: Vec<&Context> = keys.iter().filter_map(|key| self.contexts.get(*key)).collect();
        let mut leads: BTreeMap<u32, f64> = BTreeMap::new();
        // The special ones name their candidates first: if there are too many, the general ones' are left out.
        for number in found.iter().rev().flat_map(|context| context.rows.iter().map(|(number, _)| *number)) {
            if leads.len() < LEADS_MAX {
                leads.insert(number, 0.0);
            }
        }
        for (number, probability) in &mut leads {
            for context in &found {
                let total = f64::from(context.total);
                *probability = (context.share(*number) * total + DOUBT * *probability) / (total + DOUBT);
            }
        }
        leads.into_iter().collect()
    }

    /// Guesses for a client, from where it stands now.
    fn guess(&self, number: u64, client: Client) -> Vec<Guess> {
        let leads = self.leads(self.contexts_of(number, client.leads));
        let mut all: BTreeMap<u32, f64> = BTreeMap::new();
        for (lead, probability) in &leads {
            *all.entry(*lead).or_default() += probability;
            // What goes with something unlikely is unlikely.
            let Some(with) = self.contexts.get(Key::of(WITH, &[u64::from(*lead)])) else { continue };
            for (other, _) in with.rows.iter().filter(|_| *probability * 4.0 >= PROBABILITY_MIN) {
                *all.entry(*other).or_default() += probability * with.share(*other);
            }
        }
        let horizon_ms = (PAUSES * client.pause_ms).clamp(HORIZON_MS.0, HORIZON_MS.1);
        let top = leads.iter().max_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0))).map(|(lead, _)| *lead);
        self.told(all.into_iter(), Habit::Sequence, horizon_ms, top)
    }

    fn told(
        &self,
        rows: impl Iterator<Item = (u32, f64)>,
        habit: Habit,
        horizon_ms: u64,
        top: Option<u32>,
    ) -> Vec<Guess> {
        let guess = |(number, probability): (u32, f64)| {
            Some(Guess {
                model: self.names.model(number)?.clone(),
                probability: probability.min(1.0),
                horizon: Duration::from_millis(horizon_ms),
                habit,
                top: top == Some(number),
            })
        };
        let mut guesses: Vec<Guess> =
            rows.filter(|(_, probability)| *probability >= PROBABILITY_MIN).filter_map(guess).collect();
        guesses.sort_by(|a, b| b.probability.total_cmp(&a.probability).then_with(|| a.model.cmp(&b.model)));
        guesses.truncate(GUESSES_MAX);
        guesses
    }
}

impl Predictor for Habits {
    fn seen(&mut self, seen: &Seen<'_>) -> Vec<Guess> {
        let at_ms = seen.at.0;
        let models = &seen.models[..seen.models.len().min(MODELS_MAX)];
        let Some(largest) = models.iter().max_by(|a, b| a.1.cmp(&b.1).then_with(|| b.0.cmp(&a.0))) else {
            return Vec::new();
        };
        let lead = self.names.number(&largest.0, at_ms);
        let numbers: Vec<u32> = models.iter().map(|(model, _)| self.names.number(model, at_ms)).collect();
        let number = client_number(seen.client);
        let mut client = self.client(number);
        let with: Vec<u32> = numbers.iter().copied().filter(|other| *other != lead).collect();
        self.contexts.came(Key::of(WITH, &[u64::from(lead)]), &with, at_ms);
        for key in self.contexts_of(number, client.leads) {
            self.contexts.came(key, &[lead], at_ms);
        }
        self.hours.seen(&numbers, at_ms);
        if client.leads[0].is_some() {
            let pause = at_ms.saturating_sub(client.at_ms).min(HORIZON_MS.1);
            client.pause_ms = if client.pause_ms == 0 { pause } else { (3 * client.pause_ms + pause) / 4 };
        }
        (client.leads, client.at_ms) = ([Some(lead), client.leads[0]], at_ms);
        self.leads = [Some(lead), self.leads[0]];
        self.clients.insert(number, client);
        self.guess(number, client)
    }

    fn passed(&mut self, at: Wall) -> Vec<Guess> {
        let rows = self.hours.passed(at.0);
        let top = rows.first().map(|(number, _)| *number);
        self.told(rows.into_iter(), Habit::Hour, Hours::horizon_ms(at.0), top)
    }

    fn due(&self) -> Option<Wall> {
        self.hours.due_ms().map(Wall)
    }

    fn saved(&self) -> Option<Learned> {
        let mut clients: Vec<(&u64, &Client)> = self.clients.iter().collect();
        clients.sort_unstable_by_key(|(number, _)| **number);
        let hour = |bucket: &super::hours::Bucket| Hour { seen: bucket.seen, rows: bucket.rows.clone() };
        Some(Learned {
            names: self
                .names
                .rows()
                .into_iter()
                .map(|(number, row)| Name { number, model: row.model.clone(), seen_ms: row.seen_ms })
                .collect(),
            contexts: self
                .contexts
                .rows()
                .into_iter()
                .map(|(key, context)| Table {
                    key: key.0,
                    at_ms: context.at_ms,
                    total: context.total,
                    rows: context.rows.clone(),
                })
                .collect(),
            clients: clients
                .into_iter()
                .map(|(number, client)| SavedClient {
                    client: *number,
                    leads: client.leads,
                    at_ms: client.at_ms,
                    pause_ms: client.pause_ms,
                })
                .collect(),
            leads: self.leads,
            day: self.hours.day.iter().map(hour).collect(),
            week: self.hours.week.iter().map(hour).collect(),
        })
    }
}

impl From<Learned> for Habits {
    /// Takes up what was kept; more than fits is left out.
    fn from(kept: Learned) -> Self {
        let bucket = |hour: Hour| super::hours::Bucket { seen: hour.seen, rows: hour.rows };
        let name = |name: Name| (name.number, Named { model: name.model, seen_ms: name.seen_ms });
        let table =
            |table: Table| (Key(table.key), Context { at_ms: table.at_ms, total: table.total, rows: table.rows });
        let client =
            |kept: SavedClient| (kept.client, Client { leads: kept.leads, at_ms: kept.at_ms, pause_ms: kept.pause_ms });
        Self {
            names: Names::from_rows(kept.names.into_iter().map(name)),
            contexts: Contexts::from_rows(kept.contexts.into_iter().map(table)),
            hours: Hours::from_buckets(
                kept.day.into_iter().map(bucket).collect(),
                kept.week.into_iter().map(bucket).collect(),
            ),
            clients: kept.clients.into_iter().take(CLIENTS_MAX).map(client).collect(),
            leads: kept.leads,
        }
    }
}

/// For tests and bounds: how many rows all tables hold together.
#[cfg(test)]
impl Habits {
    pub(super) fn sizes(&self) -> (usize, usize, usize) {
        (self.names.rows().len(), self.contexts.rows().len(), self.clients.len())
    }

    pub(super) fn knows(&self, model: &crate::ids::ModelKey) -> bool {
        self.names.rows().iter().any(|(_, row)| row.model == *model)
    }
}

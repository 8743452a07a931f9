//! What one client may take of the daemon: requests at once, and requests a second. A bounded table of those that are
//! known; arithmetic on the time that is passed in. Decides nothing about who a client is.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::rpc::access::Client;

/// Most clients that are told apart; all others share one entry.
const CLIENTS_MAX: usize = 4096;
/// A client that asked for nothing this long has all its rate again and is forgotten.
const IDLE: Duration = Duration::from_secs(1);

/// Every client's use, shared by all listeners.
#[derive(Debug)]
pub(crate) struct Limits {
    requests_max: u32,
    rate_max: u32,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    clients: HashMap<Client, Usage>,
    /// Of those for whom the table has no room.
    crowd: Option<Usage>,
    swept: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Usage {
    running: u32,
    /// Requests that it may still make at once, and when that was so.
    left: f64,
    at: Instant,
}

/// Why a client must wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Over {
    /// It has this many requests under way.
    Requests(u32),
    /// It made this many a second; the next is due after this wait.
    Rate(u32, Duration),
}

/// A request that counts for its client until it is dropped.
#[derive(Debug)]
#[must_use = "the request counts as long as this lives"]
pub(crate) struct Ticket {
    limits: Arc<Limits>,
    /// None for the crowd.
    client: Option<Client>,
}

impl Limits {
    pub(crate) fn new(requests_max: u32, rate_max: u32) -> Self {
        Self { requests_max, rate_max, table: Mutex::default() }
    }

    /// Counts a request, or says why not. One that is refused costs its client nothing.
    pub(crate) fn admit(self: &Arc<Self>, client: &Client, now: Instant) -> Result<Ticket, Over> {
        let rate = f64::from(self.rate_max);
        let mut table = self.lock();
        let known = table.clients.contains_key(client) || table.make_room(now);
        let fresh = Usage { running: 0, left: rate, at: now };
        let usage = match known {
            true => table.clients.entry(client.clone()).or_insert(fresh),
            false => table.crowd.get_or_insert(fresh),
        };
        let passed = now.saturating_duration_since(usage.at).as_secs_f64();
        (usage.left, usage.at) = ((usage.left + passed * rate).min(rate), now);
        if usage.running >= self.requests_max {
            return Err(Over::Requests(self.requests_max));
        }
        if usage.left < 1.0 {
            return Err(Over::Rate(self.rate_max, Duration::from_secs_f64((1.0 - usage.left) / rate)));
        }
        usage.left -= 1.0;
        usage.running += 1;
        Ok(Ticket { limits: Arc::clone(self), client: known.then(|| client.clone()) })
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// Whether there is room for one more client, idle ones forgotten if need be, at most once in a while.
    fn make_room(&mut self, now: Instant) -> bool {
        if self.clients.len() < CLIENTS_MAX {
            return true;
        }
        if self.swept.is_none_or(|swept| now.saturating_duration_since(swept) >= IDLE) {
            self.swept = Some(now);
            self.clients.retain(|_, usage| usage.running > 0 || now.saturating_duration_since(usage.at) < IDLE);
        }
        self.clients.len() < CLIENTS_MAX
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut table = self.limits.lock();
        let usage = match &self.client {
            Some(client) => table.clients.get_mut(client),
            None => table.crowd.as_mut(),
        };
        if let Some(usage) = usage {
            usage.running = usage.running.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(requests_max: u32, rate_max: u32) -> Arc<Limits> {
        Arc::new(Limits::new(requests_max, rate_max))
    }

    #[test]
    fn one_client_at_its_limit_leaves_the_others_alone_and_gets_its_place_back() {
        let (limits, now) = (limits(2, 100), Instant::now());
        let (one, other) = (Client::User(1), Client::User(2));
        let first = limits.admit(&one, now).expect("the first");
        let _second = limits.admit(&one, now).expect("the second");
        assert_eq!(limits.admit(&one, now).expect_err("the third"), Over::Requests(2));
        let _theirs = limits.admit(&other, now).expect("another client");
        drop(first);
        assert!(limits.admit(&one, now).is_ok());
    }

    #[test]
    fn a_rate_is_refused_with_the_wait_until_the_next_and_comes_back_with_time() {
        let (limits, now) = (limits(100, 4), Instant::now());
        let ask = |at| limits.admit(&Client::User(1), at).map(drop);
        assert!((0..4).all(|_| ask(now).is_ok()), "a second's worth at once");
        assert_eq!(ask(now), Err(Over::Rate(4, Duration::from_millis(250))));
        assert_eq!(ask(now + Duration::from_millis(125)), Err(Over::Rate(4, Duration::from_millis(125))));
        assert_eq!(ask(now + Duration::from_millis(250)), Ok(()));
        assert!(ask(now + Duration::from_millis(250)).is_err(), "one came back, not two");
        let later = now + Duration::from_secs(60);
        assert_eq!((0..9).filter(|_| ask(later).is_ok()).count(), 4, "never more than a second's worth");
    }

    #[test]
    fn the_table_is_bounded_idle_clients_are_forgotten_and_the_crowd_shares_one_entry() {
        let (limits, now) = (limits(2, 100), Instant::now());
        let busy: Vec<Ticket> =
            (0..CLIENTS_MAX as u32).map(|uid| limits.admit(&Client::User(uid), now).expect("room")).collect();
        let late = |uid: u32| Client::User(1_000_000 + uid);
        let crowd = [limits.admit(&late(1), now).expect("shared"), limits.admit(&late(2), now).expect("shared")];
        assert_eq!(limits.admit(&late(3), now).expect_err("shared"), Over::Requests(2));
        assert_eq!(limits.lock().clients.len(), CLIENTS_MAX);
        let mut busy = busy.into_iter();
        let (still, second) = (busy.next(), limits.admit(&Client::User(0), now));
        drop((busy, crowd));
        let _own = limits.admit(&late(3), now + 2 * IDLE).expect("an entry of its own again");
        assert_eq!(limits.lock().clients.len(), 2, "the idle are forgotten");
        assert!(limits.admit(&Client::User(0), now + 2 * IDLE).is_err(), "who is busy is not");
        drop((still, second));
    }
}

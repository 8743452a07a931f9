//! The host around the process: systemd's notifications and watchdog, signals, and what the process takes of the machine.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sd_notify::NotifyState;
use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, System};
use tierd_cache::metrics::{self, ProcessSample};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::telemetry::health::Health;

/// Tells systemd that the daemon is ready. Does nothing where systemd did not start it.
pub fn notify_ready(status: &str) {
    notify(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Tells systemd that the daemon is stopping, and that this may take up to `deadline`.
pub fn notify_stopping(status: &str, deadline: Duration) {
    let usec = u32::try_from(deadline.as_micros()).unwrap_or(u32::MAX);
    notify(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(usec), NotifyState::Status(status)]);
}

/// One line for `systemctl status`.
pub fn notify_status(status: &str) {
    notify(&[NotifyState::Status(status)]);
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "cannot notify systemd");
    }
}

/// Feeds systemd's watchdog until `stop`, as long as the engine answers. Returns at once if systemd set none.
pub async fn watchdog(health: &Health, stop: &CancellationToken) {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    feed(limit / 2, health, stop, || notify(&[NotifyState::Watchdog])).await;
}

/// Calls `feed_it` every `interval` while the engine answers.
async fn feed(interval: Duration, health: &Health, stop: &CancellationToken, mut feed_it: impl FnMut()) {
    let mut ticks = tokio::time::interval(interval.max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        if health.is_alive().await {
            feed_it();
        } else {
            tracing::error!("the engine does not answer: systemd's watchdog is not fed");
        }
    }
}

/// SIGTERM and SIGINT, counted from the moment that this is made.
#[derive(Debug)]
pub struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    /// Catches both signals from now on. Needs a tokio runtime.
    ///
    /// # Errors
    ///
    /// The system's answer, if it refuses.
    pub fn catch() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next of them and returns its name.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Measures this process when asked, never by itself: an idle daemon stays idle.
#[derive(Debug)]
pub struct ProcessMeter {
    /// None where the system does not tell.
    system: Option<Mutex<System>>,
}

impl Default for ProcessMeter {
    fn default() -> Self {
        Self { system: System::new().ok().map(Mutex::new) }
    }
}

impl ProcessMeter {
    /// Measures, and records it in the metrics. Does nothing where the system does not tell (no `/proc`).
    pub fn measure(&self) {
        if let Some(sample) = self.sample() {
            metrics::process(sample);
        }
    }

    fn sample(&self) -> Option<ProcessSample> {
        let pid = Pid::from_u32(std::process::id());
        // A poisoned lock guards nothing here but old figures.
        let mut system = self.system.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner);
        let kind = ProcessRefreshKind::nothing().with_memory().with_cpu().without_tasks();
        system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), true, kind);
        let process = system.process(pid)?;
        Some(ProcessSample {
            resident_bytes: process.memory(),
            cpu_seconds: Duration::from_millis(process.accumulated_cpu_time()).as_secs_f64(),
            open_fds: process.open_files().map(|files| files as u64),
            started: process.start_time(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::telemetry::health::tests::Fake;

    #[tokio::test(start_paused = true)]
    async fn the_watchdog_is_fed_only_while_the_engine_answers() {
        let (health, engine, stop) = (Health::default(), Fake::default(), CancellationToken::new());
        health.opened(Box::new(engine.clone()));
        let fed = std::cell::Cell::new(0);
        let feeding = feed(Duration::from_secs(5), &health, &stop, || fed.set(fed.get() + 1));
        let watching = async {
            tokio::time::sleep(Duration::from_secs(21)).await;
            assert_eq!(fed.get(), 5, "at 0, 5, 10, 15 and 20 s");
            engine.hangs.store(true, Ordering::Release);
            tokio::time::sleep(Duration::from_secs(60)).await;
            assert_eq!(fed.get(), 5, "fed while the engine hung");
            engine.hangs.store(false, Ordering::Release);
            tokio::time::sleep(Duration::from_secs(12)).await;
            assert!(fed.get() > 5, "not fed after the engine came back");
            stop.cancel();
        };
        tokio::join!(feeding, watching);
    }

    #[test]
    fn the_process_knows_its_own_size_and_files() {
        let sample = ProcessMeter::default().sample().expect("there is a /proc");
        assert!(sample.resident_bytes > 1 << 20, "{sample:?}");
        assert!(sample.open_fds.is_some_and(|files| files >= 3), "{sample:?}");
        assert!(sample.started > 1_500_000_000, "{sample:?}");
    }
}

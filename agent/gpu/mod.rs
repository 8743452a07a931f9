//! The GPUs as their driver has them: asked when somebody wants to know, never by itself. No driver is normal and said once;
//! what fails is tried again later. Never changes anything on a GPU.

mod figures;
mod nvml;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tierd_cache::clock::{Clock, Tick};
use tierd_cache::vram::audit::Gpu;
use tokio::sync::Semaphore;

pub use figures::{Devices, Figures};
pub use nvml::Nvml;

/// How long an answer counts: a page of status and a scrape beside it ask once.
const FRESH: Duration = Duration::from_secs(1);
/// How long a missing driver is left alone: it comes by an installation, not by itself.
const DRIVER_RETRY: Duration = Duration::from_secs(60);
/// How long a GPU that is lost, or a driver that refuses, is left alone.
const FAULT_RETRY: Duration = Duration::from_secs(10);
/// Longest wait for an answer: a driver whose GPU fell off the bus may hang, and the node's status must not hang with it.
const ANSWER_WAIT: Duration = Duration::from_secs(2);
/// GPUs that are looked at: more than a node has.
pub const GPUS_MAX: u32 = 64;

/// Why GPUs cannot be looked at.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GpuError {
    /// There is no driver.
    #[error("no NVIDIA driver: {detail}")]
    NoDriver {
        /// What was looked for.
        detail: String,
    },
    /// The driver does not talk to this user.
    #[error(
        "the NVIDIA driver does not talk to this user ({detail}): give it /dev/nvidia* (systemd: PrivateDevices=no and DeviceAllow=char-nvidia* rw)"
    )]
    NoPermission {
        /// What the driver says.
        detail: String,
    },
    /// A GPU fell off the bus, or needs a reset.
    #[error("a GPU is lost ({detail}): see dmesg for its Xid, then reset it or restart the node")]
    Lost {
        /// What the driver says.
        detail: String,
    },
    /// Anything else.
    #[error("the NVIDIA driver fails: {detail}")]
    Failed {
        /// What the driver says.
        detail: String,
    },
}

/// Something that knows the GPUs.
pub trait Gpus: Send {
    /// Looks at every GPU now. After an error it must find its way back by itself: the driver may have been replaced.
    ///
    /// # Errors
    ///
    /// [`GpuError`].
    fn look(&mut self) -> Result<Vec<Gpu>, GpuError>;
}

/// What was seen last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The GPUs. Empty if they cannot be looked at.
    pub gpus: Vec<Gpu>,
    /// Why they cannot; none if they can.
    pub error: Option<GpuError>,
}

impl Seen {
    /// How the driver is asked, in words.
    #[must_use]
    pub fn detail(&self) -> String {
        match &self.error {
            None => format!("the NVIDIA driver tells of {} GPUs", self.gpus.len()),
            Some(error) => error.to_string(),
        }
    }
}

/// Asks for the GPUs and remembers the answer for a moment. Cheap to clone.
#[derive(Clone)]
pub struct GpuMeter {
    clock: Clock,
    inner: Arc<Mutex<Inner>>,
    /// One look at a time: a driver that hangs takes one thread, not one for each question.
    looking: Arc<Semaphore>,
    wait: Duration,
}

struct Inner {
    gpus: Box<dyn Gpus>,
    last: Option<(Tick, Seen)>,
}

impl std::fmt::Debug for GpuMeter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GpuMeter").finish_non_exhaustive()
    }
}

impl Default for GpuMeter {
    fn default() -> Self {
        Self::new(Box::new(Nvml::default()))
    }
}

impl GpuMeter {
    /// Asks these.
    #[must_use]
    pub fn new(gpus: Box<dyn Gpus>) -> Self {
        Self {
            clock: Clock::start(),
            inner: Arc::new(Mutex::new(Inner { gpus, last: None })),
            looking: Arc::new(Semaphore::new(1)),
            wait: ANSWER_WAIT,
        }
    }

    /// The GPUs now, or as they were a moment ago. Does not block the runtime, and waits for no driver longer than a moment.
    pub async fn seen(&self) -> Seen {
        let looked = tokio::time::timeout(self.wait, async {
            let turn = self.looking.clone().acquire_owned().await;
            let meter = self.clone();
            tokio::task::spawn_blocking(move || {
                let seen = meter.look(meter.clock.now());
                // Held as long as the driver takes, not as long as somebody waits for it.
                drop(turn);
                seen
            })
            .await
        });
        let detail = match looked.await {
            Ok(Ok(seen)) => return seen,
            Ok(Err(panic)) => format!("looking at the GPUs panicked: {panic}"),
            Err(_) => format!("no answer within {:?}", self.wait),
        };
        Seen { gpus: Vec::new(), error: Some(GpuError::Failed { detail }) }
    }

    fn look(&self, now: Tick) -> Seen {
        // A poisoned lock guards nothing here but old figures.
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, seen)) = &inner.last
            && now.since(*at) < counts_for(seen)
        {
            return seen.clone();
        }
        let seen = match inner.gpus.look() {
            Ok(gpus) => Seen { gpus, error: None },
            Err(error) => Seen { gpus: Vec::new(), error: Some(error) },
        };
        tell(inner.last.as_ref().map(|(_, seen)| seen), &seen);
        inner.last = Some((now, seen.clone()));
        seen
    }
}

fn counts_for(seen: &Seen) -> Duration {
    match seen.error {
        None => FRESH,
        Some(GpuError::NoDriver { .. }) => DRIVER_RETRY,
        Some(GpuError::NoPermission { .. } | GpuError::Lost { .. } | GpuError::Failed { .. }) => FAULT_RETRY,
    }
}

/// Logs what is new.
fn tell(before: Option<&Seen>, seen: &Seen) {
    let kind = |seen: &Seen| seen.error.as_ref().map(std::mem::discriminant);
    if before.is_some_and(|before| kind(before) == kind(seen)) {
        return;
    }
    match &seen.error {
        None if before.is_some() => tracing::info!(gpus = seen.gpus.len(), "the NVIDIA driver answers again"),
        None => tracing::info!(gpus = seen.gpus.len(), "the NVIDIA driver answers"),
        Some(error @ GpuError::NoDriver { .. }) => tracing::info!(%error, "VRAM is known from workers only"),
        Some(error) => tracing::warn!(%error, "VRAM is known from workers only"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers that were prepared, the first one first; then the last one again.
    struct Fake(Arc<Mutex<Script>>);

    struct Script {
        answers: Vec<Answer>,
        asked: usize,
    }

    type Answer = Result<Vec<Gpu>, GpuError>;

    impl Gpus for Fake {
        fn look(&mut self) -> Result<Vec<Gpu>, GpuError> {
            let mut script = self.0.lock().expect("no test panics with it");
            script.asked += 1;
            if script.answers.len() > 1 { script.answers.remove(0) } else { script.answers[0].clone() }
        }
    }

    fn meter(answers: Vec<Answer>) -> (GpuMeter, impl Fn() -> usize) {
        let script = Arc::new(Mutex::new(Script { answers, asked: 0 }));
        let asked = script.clone();
        (GpuMeter::new(Box::new(Fake(script))), move || asked.lock().expect("no test panics with it").asked)
    }

    fn card() -> Gpu {
        Gpu { total: 80, used: 8, ..Gpu::default() }
    }

    fn seconds(n: u64) -> Tick {
        Tick(n * 1_000_000)
    }

    fn detail() -> String {
        "test".to_owned()
    }

    #[test]
    fn an_absent_driver_is_normal_and_looked_for_once_a_minute() {
        let (meter, asked) = meter(vec![Err(GpuError::NoDriver { detail: detail() }), Ok(vec![card()])]);
        let seen = meter.look(seconds(0));
        assert!(seen.gpus.is_empty() && seen.detail().contains("no NVIDIA driver"), "{seen:?}");
        meter.look(seconds(59));
        assert_eq!(asked(), 1);
        assert_eq!(meter.look(seconds(60)).gpus, [card()], "it was installed meanwhile");
    }

    #[test]
    fn a_driver_that_refuses_says_what_to_change_and_is_asked_again() {
        let (meter, asked) = meter(vec![Err(GpuError::NoPermission { detail: detail() }), Ok(vec![card()])]);
        assert!(meter.look(seconds(0)).detail().contains("DeviceAllow=char-nvidia* rw"));
        meter.look(seconds(9));
        assert_eq!(asked(), 1);
        assert_eq!(meter.look(seconds(10)).error, None);
    }

    #[test]
    fn a_lost_gpu_is_told_and_its_return_is_seen() {
        let lost = Err(GpuError::Lost { detail: detail() });
        let (meter, asked) = meter(vec![Ok(vec![card()]), lost, Ok(vec![card()])]);
        assert_eq!(meter.look(seconds(0)).gpus.len(), 1);
        let seen = meter.look(seconds(2));
        assert!(seen.gpus.is_empty(), "old figures of a lost GPU are no figures");
        assert!(seen.detail().contains("a GPU is lost"));
        assert_eq!(meter.look(seconds(12)).gpus, [card()]);
        assert_eq!(asked(), 3);
    }

    #[tokio::test]
    async fn many_questions_at_once_are_one_look() {
        let (meter, asked) = meter(vec![Ok(vec![card()])]);
        for _ in 0..10 {
            assert_eq!(meter.seen().await.gpus.len(), 1);
        }
        assert_eq!(asked(), 1);
    }

    /// Answers when it is let.
    struct Stuck(std::sync::mpsc::Receiver<()>);

    impl Gpus for Stuck {
        fn look(&mut self) -> Result<Vec<Gpu>, GpuError> {
            // A sender that is gone lets it go too.
            let _ = self.0.recv();
            Ok(vec![card()])
        }
    }

    #[tokio::test]
    async fn a_driver_that_hangs_is_told_and_takes_one_thread() {
        let (let_go, stuck) = std::sync::mpsc::channel();
        let short = Duration::from_millis(20);
        let meter = GpuMeter { wait: short, ..GpuMeter::new(Box::new(Stuck(stuck))) };
        for _ in 0..3 {
            assert!(meter.seen().await.detail().contains("no answer within 20ms"));
        }
        drop(let_go);
        let patient = GpuMeter { wait: Duration::from_secs(20), ..meter };
        assert_eq!(patient.seen().await.gpus, [card()], "it came back");
    }
}

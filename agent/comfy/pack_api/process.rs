//! Watches the processes of workers: the kernel tells when one ends, so that what it had in VRAM counts no more at once. Signals
//! nobody.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tierd_cache::engine::EngineHandle;
use tokio::runtime::Handle;

/// Processes that are watched at once, each by a thread that sleeps and a file descriptor: twice as many as there may be workers,
/// since one that fell silent may live on.
const WATCHES_MAX: usize = 128;
/// Stack of such a thread, which does one system call.
const STACK_BYTES: usize = 128 << 10;

/// Returns when the process ends.
fn until_ended(pid: Pid) -> Result<(), Errno> {
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    loop {
        match poll(&mut [PollFd::new(&process, PollFlags::IN)], None) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

/// The processes that are watched.
#[derive(Debug, Clone, Default)]
pub(crate) struct Watches {
    watched: Arc<Mutex<BTreeSet<u32>>>,
}

impl Watches {
    /// Tells the engine when this process ends. Does nothing if it is watched already; where the kernel cannot tell, the worker
    /// lapses by its silence.
    pub(crate) fn watch(&self, pid: u32, engine: &EngineHandle) {
        let Some(id) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return };
        {
            let mut watched = self.watched();
            if watched.len() >= WATCHES_MAX || !watched.insert(pid) {
                return;
            }
        }
        let (watches, engine, runtime) = (self.clone(), engine.clone(), Handle::current());
        let wait = move || {
            let ended = until_ended(id);
            watches.watched().remove(&pid);
            match ended {
                // An engine that is gone has forgotten its workers.
                Ok(()) => drop(runtime.spawn(async move { engine.process_ended(pid).await })),
                Err(error) => {
                    tracing::debug!(pid, %error, "a worker's process cannot be watched; it lapses by its silence")
                }
            }
        };
        let waiting = std::thread::Builder::new().name(format!("worker-{pid}")).stack_size(STACK_BYTES).spawn(wait);
        if let Err(error) = waiting {
            self.watched().remove(&pid);
            tracing::debug!(pid, %error, "no thread to watch a worker's process; it lapses by its silence");
        }
    }

    fn watched(&self) -> std::sync::MutexGuard<'_, BTreeSet<u32>> {
        // A poisoned lock guards a set of numbers: whole at every moment.
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! The threads that move bytes, apart from those that decide and answer. A fetch reads and hashes for milliseconds without a
//! pause when its origin is fast; on the threads of the loop and of gRPC every answer would wait behind that.

use std::future::Future;
use std::io;

use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

/// How much these threads, and those that write for them, stand back for the others of the daemon: a step of 10 is a tenth of the
/// share. Two cores beside a download at full speed answered 99 of 100 estimates within 1.0 ms with it, 3.9 ms without; where
/// nobody asks, they have the cores to themselves.
const NICENESS: i32 = 10;

/// The runtime of all fetches. What still runs when it is dropped is ended without waiting.
#[derive(Debug)]
pub(crate) struct Movers(Option<Runtime>);

impl Movers {
    /// Starts a thread for each core.
    pub(crate) fn start() -> io::Result<Self> {
        let runtime =
            Builder::new_multi_thread().thread_name("tierd-fetch").on_thread_start(stand_back).enable_all().build()?;
        Ok(Self(Some(runtime)))
    }

    /// Runs work there.
    pub(crate) fn spawn<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        self.0.as_ref().expect("only a drop takes it away").spawn(work)
    }
}

/// Lowers this thread's share; Linux keeps it for each thread, not for the process.
fn stand_back() {
    if let Err(error) = rustix::process::nice(NICENESS) {
        tracing::debug!(%error, "threads that move bytes have the same share as those that answer");
    }
}

impl Drop for Movers {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            // Dropped inside another runtime, where nothing may block.
            runtime.shutdown_background();
        }
    }
}

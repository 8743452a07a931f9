//! The threads that move bytes, apart from those that decide and answer. A fetch reads and hashes for milliseconds without a
//! pause when its origin is fast; on the threads of the loop and of gRPC every answer would wait behind that.

use std::future::Future;
use std::io;

use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

/// The runtime of all fetches. What still runs when it is dropped is ended without waiting.
#[derive(Debug)]
pub(crate) struct Movers(Option<Runtime>);

impl Movers {
    /// Starts a thread for each core.
    pub(crate) fn start() -> io::Result<Self> {
        let runtime = Builder::new_multi_thread().thread_name("tierd-fetch").enable_all().build()?;
        Ok(Self(Some(runtime)))
    }

    /// Runs work there.
    pub(crate) fn spawn<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        self.0.as_ref().expect("only a drop takes it away").spawn(work)
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

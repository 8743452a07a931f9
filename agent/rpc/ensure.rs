//! The stream of one ensure: passes the engine's updates on and adds the ends that the engine does not know, a deadline
//! and a drain. Whatever happens, the caller reads exactly one terminal message, and the status says the same.

use std::time::Duration;

use futures_util::Stream;
use tierd_cache::engine::view::{EnsureFailed, EnsureUpdate};
use tierd_cache::fault::Fault;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::rpc::{fault, pb};

enum Step {
    /// Updates are to come.
    Open,
    /// The terminal message was sent; the status is next.
    Failing(Status),
    /// Nothing is to come.
    Closed,
}

struct Walk {
    updates: mpsc::Receiver<EnsureUpdate>,
    begun: Instant,
    timeout: Option<Duration>,
    stop: CancellationToken,
    step: Step,
}

/// The answers to one ensure, in order. Dropping the stream drops the receiver, and with it nothing else.
pub(crate) fn answers(
    updates: mpsc::Receiver<EnsureUpdate>,
    timeout: Option<Duration>,
    stop: CancellationToken,
) -> impl Stream<Item = Result<pb::EnsureResponse, Status>> + Send + 'static {
    let walk = Walk { updates, begun: Instant::now(), timeout, stop, step: Step::Open };
    futures_util::stream::unfold(walk, |mut walk| async {
        match std::mem::replace(&mut walk.step, Step::Closed) {
            Step::Closed => None,
            Step::Failing(status) => Some((Err(status), walk)),
            Step::Open => {
                let update = walk.next().await;
                walk.step = match &update {
                    EnsureUpdate::Plan(_) | EnsureUpdate::Progress(_) => Step::Open,
                    EnsureUpdate::Ready(_) => Step::Closed,
                    EnsureUpdate::Failed(failed) => Step::Failing(fault::status(&failed.fault)),
                };
                Some((Ok((&update).into()), walk))
            }
        }
    })
}

impl Walk {
    /// The engine's next update; a `Failed` of our own if the deadline passes, the daemon drains or the engine is gone.
    async fn next(&mut self) -> EnsureUpdate {
        // An end that is there already counts, even if the deadline has just passed.
        if let Ok(update) = self.updates.try_recv() {
            return update;
        }
        let deadline = async {
            match self.timeout {
                Some(timeout) => tokio::time::sleep_until(self.begun + timeout).await,
                None => std::future::pending().await,
            }
        };
        let fault = tokio::select! {
            biased;
            update = self.updates.recv() => match update {
                Some(update) => return update,
                None => Fault::ShuttingDown,
            },
            () = deadline => Fault::DeadlineExceeded,
            () = self.stop.cancelled() => Fault::ShuttingDown,
        };
        EnsureUpdate::Failed(EnsureFailed { elapsed: self.begun.elapsed(), fault, models: Vec::new() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::StreamExt;
    use pb::ensure_response::Update;
    use tierd_cache::engine::view::{EnsurePlan, EnsureReady};
    use tierd_cache::ids::EnsureId;
    use tonic::Code;

    fn plan() -> EnsureUpdate {
        EnsureUpdate::Plan(EnsurePlan { ensure: EnsureId(1), models: vec![], bytes_total: 0, bytes_to_fetch: 0 })
    }

    fn ready() -> EnsureUpdate {
        EnsureUpdate::Ready(EnsureReady { elapsed: Duration::ZERO, bytes_fetched: 0, models: vec![] })
    }

    fn failed_with(fault: Fault) -> EnsureUpdate {
        EnsureUpdate::Failed(EnsureFailed { elapsed: Duration::ZERO, fault, models: vec![] })
    }

    /// The words of a stream: its updates, then the code of its status.
    async fn words(stream: impl Stream<Item = Result<pb::EnsureResponse, Status>>) -> Vec<String> {
        let word = |item: Result<pb::EnsureResponse, Status>| match item.map(|response| response.update) {
            Ok(Some(Update::Plan(_))) => "plan".to_owned(),
            Ok(Some(Update::Progress(_))) => "progress".to_owned(),
            Ok(Some(Update::Ready(_))) => "ready".to_owned(),
            Ok(Some(Update::Failed(failed))) => failed.fault.expect("always set").kind().word(),
            Ok(None) => "nothing".to_owned(),
            Err(status) => format!("{:?}", status.code()),
        };
        stream.map(word).collect().await
    }

    #[tokio::test]
    async fn a_good_end_closes_the_stream_with_ok() {
        let (send, updates) = mpsc::channel(4);
        for update in [plan(), ready(), plan()] {
            send.try_send(update).expect("room");
        }
        assert_eq!(words(answers(updates, None, CancellationToken::new())).await, ["plan", "ready"]);
    }

    #[tokio::test]
    async fn a_bad_end_is_told_as_a_message_and_as_a_status() {
        let (send, updates) = mpsc::channel(4);
        let fault = Fault::NoRoom { needed: 1, free: 0, evictable: 0 };
        for update in [plan(), failed_with(fault)] {
            send.try_send(update).expect("room");
        }
        let words = words(answers(updates, None, CancellationToken::new())).await;
        assert_eq!(words, ["plan", "no_room", &format!("{:?}", Code::ResourceExhausted)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_ends_the_stream_while_the_fetch_goes_on() {
        let (send, updates) = mpsc::channel(4);
        send.try_send(plan()).expect("room");
        let begun = Instant::now();
        let words = words(answers(updates, Some(Duration::from_secs(3)), CancellationToken::new())).await;
        assert_eq!(words, ["plan", "deadline_exceeded", "DeadlineExceeded"]);
        assert_eq!(begun.elapsed().as_secs(), 3);
    }

    #[tokio::test]
    async fn a_drain_and_a_lost_engine_both_say_shutting_down() {
        let stop = CancellationToken::new();
        let (_send, updates) = mpsc::channel(4);
        stop.cancel();
        assert_eq!(words(answers(updates, None, stop)).await, ["shutting_down", "Unavailable"]);
        let (send, updates) = mpsc::channel::<EnsureUpdate>(4);
        drop(send);
        assert_eq!(words(answers(updates, None, CancellationToken::new())).await, ["shutting_down", "Unavailable"]);
    }

    #[tokio::test]
    async fn dropping_the_stream_drops_the_receiver() {
        let (send, updates) = mpsc::channel(4);
        drop(answers(updates, None, CancellationToken::new()));
        assert!(send.is_closed());
    }
}

//! The pace of a body: a client that sends too slowly loses its slot for requests.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body::{Body, Frame, SizeHint};
use s3s::StdError;

use crate::{
    clock::{Clock, LeaseTime},
    limits::{GATEWAY_BODY_PACE, GATEWAY_BODY_PATIENCE, GATEWAY_WRITER_STALL},
};

/// A body that fails if its client is too slow. Only the time in which the gateway waits for bytes counts, because a
/// slow disk is not the client's fault.
pub(super) struct PacedBody {
    body: s3s::Body,
    clock: Arc<dyn Clock>,
    /// The time for which the gateway still waits for bytes. Received bytes add to this time.
    patience: Duration,
    waiting: Option<BodyWait>,
}

struct BodyWait {
    since: LeaseTime,
    deadline: BoxFuture<'static, ()>,
}

/// No bytes or too few bytes came for too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the body comes too slowly: at least {GATEWAY_BODY_PACE} bytes a second, and some every {} s", GATEWAY_WRITER_STALL.as_secs())]
pub(super) struct TooSlow;

impl PacedBody {
    pub(super) fn new(body: s3s::Body, clock: Arc<dyn Clock>) -> Self {
        PacedBody { body, clock, patience: GATEWAY_BODY_PATIENCE, waiting: None }
    }

    /// Adds time for received bytes.
    fn received(&mut self, bytes: usize) {
        if let Some(waiting) = self.waiting.take() {
            self.patience = self.patience.saturating_sub(self.clock.now().lease.since(waiting.since));
        }
        let earned = Duration::from_secs(bytes as u64) / GATEWAY_BODY_PACE;
        self.patience = self.patience.saturating_add(earned).min(GATEWAY_BODY_PATIENCE);
    }
}

impl Body for PacedBody {
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        let this = self.get_mut();
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) {
            let bytes = match &frame {
                Some(Ok(frame)) => frame.data_ref().map_or(0, Bytes::len),
                _ => 0,
            };
            this.received(bytes);
            return Poll::Ready(frame);
        }
        let (clock, patience) = (&this.clock, this.patience);
        let waiting = this.waiting.get_or_insert_with(|| BodyWait {
            since: clock.now().lease,
            deadline: clock.sleep(patience.min(GATEWAY_WRITER_STALL)),
        });
        waiting.deadline.as_mut().poll(cx).map(|()| Some(Err(TooSlow.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, StreamBody};
    use tokio::sync::mpsc;
    use tokio_stream::wrappers::ReceiverStream;

    use super::*;
    use crate::{clock::manual::ManualClock, identity::testing::NOW};

    type Frames = mpsc::Sender<Result<Frame<Bytes>, StdError>>;

    fn paced() -> (Arc<ManualClock>, Frames, PacedBody) {
        let (clock, (sender, frames)) = (Arc::new(ManualClock::new(NOW)), mpsc::channel(1));
        let body = s3s::Body::http_body_unsync(StreamBody::new(ReceiverStream::new(frames)));
        (clock.clone(), sender, PacedBody::new(body, clock))
    }

    async fn send(sender: &Frames, bytes: usize) {
        sender.send(Ok(Frame::data(Bytes::from(vec![0; bytes])))).await.unwrap();
    }

    /// Returns the seconds for which a client keeps its slot, if it sends `bytes` bytes every `seconds` seconds.
    async fn held(bytes: usize, seconds: u64) -> Option<u64> {
        let (clock, sender, mut body) = paced();
        for round in 0..1_000 {
            let mut frame = std::pin::pin!(body.frame());
            assert!(futures_util::poll!(frame.as_mut()).is_pending());
            clock.advance(Duration::from_secs(seconds));
            if let Poll::Ready(Some(Err(error))) = futures_util::poll!(frame.as_mut()) {
                assert!(error.is::<TooSlow>(), "{error}");
                return Some((round + 1) * seconds);
            }
            send(&sender, bytes).await;
            frame.await.unwrap().unwrap();
        }
        None
    }

    // A body that drips ends soon, and one that comes slowly but steadily does not.
    #[tokio::test]
    async fn a_body_that_drips_ends_in_time() {
        let pace = GATEWAY_BODY_PACE as usize;
        assert_eq!(held(1 << 20, 31).await, Some(31), "nothing for too long, however much came before");
        let patience = GATEWAY_BODY_PATIENCE.as_secs();
        assert!(held(1, 10).await.is_some_and(|held| held <= patience + 10));
        assert!(held(pace, 10).await.is_some_and(|held| held <= 2 * patience));
        assert_eq!(held(pace * 10, 10).await, None);
    }

    // The time in which the gateway does not read the body does not count against the client.
    #[tokio::test]
    async fn a_slow_reader_costs_its_client_nothing() {
        let (clock, sender, mut body) = paced();
        for _ in 0..10 {
            send(&sender, 1).await;
            clock.advance(Duration::from_secs(3_600));
            body.frame().await.unwrap().unwrap();
        }
    }
}

//! The body of a request. Its client must keep a pace, and its chunks are bounded. The gateway receives and discards the bytes that
//! no operation reads.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use s3s::StdError;

use super::{body_pace::BodyPace, chunk_framing::ChunkFraming};
use crate::{
    clock::Clock,
    limits::{GATEWAY_UNREAD_BYTES_MAX, GATEWAY_UNREAD_WAIT},
};

/// Passes the frames of a body on, and fails at a frame that breaks a bound.
///
/// If the connection is closed while a client is sending, the client cannot read the answer. So the rest of the body is received
/// and discarded, within bounds, when this value is dropped.
pub(super) struct ReceivedBody {
    /// `None` after its end.
    body: Option<s3s::Body>,
    pace: BodyPace,
    /// Present if the request says that its body is in chunks.
    chunks: Option<ChunkFraming>,
    clock: Arc<dyn Clock>,
}

impl ReceivedBody {
    pub(super) fn new(body: s3s::Body, headers: &HeaderMap, clock: Arc<dyn Clock>) -> Self {
        let kind = headers.get("x-amz-content-sha256").map(http::HeaderValue::as_bytes);
        let is_chunked = kind.is_some_and(|kind| kind.starts_with(b"STREAMING-"));
        let chunks = is_chunked.then(ChunkFraming::default);
        ReceivedBody { body: Some(body), pace: BodyPace::new(clock.clone()), chunks, clock }
    }

    /// Checks a frame that the client sent.
    fn check(&mut self, frame: &Frame<Bytes>) -> Result<(), StdError> {
        let bytes = frame.data_ref().map_or(&[][..], Bytes::as_ref);
        self.pace.received(bytes.len());
        match &mut self.chunks {
            Some(chunks) => Ok(chunks.follow(bytes)?),
            None => Ok(()),
        }
    }
}

impl Body for ReceivedBody {
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        let this = self.get_mut();
        let Some(body) = &mut this.body else { return Poll::Ready(None) };
        let frame = match Pin::new(body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => Some(this.check(&frame).map(|()| frame)),
            Poll::Ready(end) => {
                this.body = None;
                end
            }
            Poll::Pending => {
                let too_slow = std::task::ready!(this.pace.poll_too_slow(cx));
                this.body = None;
                Some(Err(too_slow.into()))
            }
        };
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl Drop for ReceivedBody {
    fn drop(&mut self) {
        let Some(body) = self.body.take().filter(|body| !body.is_end_stream()) else { return };
        let timeout = self.clock.sleep(GATEWAY_UNREAD_WAIT);
        tokio::spawn(async move {
            tokio::select! {
                () = discard(body) => {}
                () = timeout => {}
            }
        });
    }
}

async fn discard(mut body: s3s::Body) {
    let mut left = GATEWAY_UNREAD_BYTES_MAX;
    while let Some(Ok(frame)) = body.frame().await {
        left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
        if left == 0 {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http_body_util::StreamBody;
    use tokio::sync::mpsc;
    use tokio_stream::wrappers::ReceiverStream;

    use super::*;
    use crate::{
        clock::manual::ManualClock,
        gateway::{body_pace::TooSlow, chunk_framing::BadChunk},
        identity::testing::NOW,
        limits::{GATEWAY_BODY_PACE, GATEWAY_BODY_PATIENCE},
    };

    type Frames = mpsc::Sender<Result<Frame<Bytes>, StdError>>;

    fn receiving(headers: &HeaderMap) -> (Arc<ManualClock>, Frames, ReceivedBody) {
        let (clock, (sender, frames)) = (Arc::new(ManualClock::new(NOW)), mpsc::channel(1));
        let body = s3s::Body::http_body_unsync(StreamBody::new(ReceiverStream::new(frames)));
        (clock.clone(), sender, ReceivedBody::new(body, headers, clock))
    }

    async fn send(sender: &Frames, bytes: impl Into<Bytes>) {
        sender.send(Ok(Frame::data(bytes.into()))).await.unwrap();
    }

    /// Returns the seconds for which a client keeps its slot, if it sends `bytes` bytes every `seconds` seconds.
    async fn held(bytes: usize, seconds: u64) -> Option<u64> {
        let (clock, sender, mut body) = receiving(&HeaderMap::new());
        for round in 0..1_000 {
            let mut frame = std::pin::pin!(body.frame());
            assert!(futures_util::poll!(frame.as_mut()).is_pending());
            clock.advance(Duration::from_secs(seconds));
            if let Poll::Ready(Some(Err(error))) = futures_util::poll!(frame.as_mut()) {
                assert!(error.is::<TooSlow>(), "{error}");
                return Some((round + 1) * seconds);
            }
            send(&sender, vec![0; bytes]).await;
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
        let (clock, sender, mut body) = receiving(&HeaderMap::new());
        for _ in 0..10 {
            send(&sender, "x").await;
            clock.advance(Duration::from_secs(3_600));
            body.frame().await.unwrap().unwrap();
        }
    }

    // Only a body that says it is in chunks is read in chunks.
    #[tokio::test]
    async fn a_body_in_chunks_is_followed() {
        let mut headers = HeaderMap::new();
        let (_, sender, mut plain) = receiving(&headers);
        send(&sender, "ffffffff\r\n").await;
        plain.frame().await.unwrap().unwrap();
        headers.insert("x-amz-content-sha256", "STREAMING-UNSIGNED-PAYLOAD-TRAILER".parse().unwrap());
        let (_, sender, mut chunked) = receiving(&headers);
        send(&sender, "3\r\nabc\r\n").await;
        chunked.frame().await.unwrap().unwrap();
        send(&sender, "ffffffff\r\n").await;
        assert!(chunked.frame().await.unwrap().unwrap_err().is::<BadChunk>());
    }
}

//! Responses: pages of a list, streams, and bodies. They count against the caller's buffer until they are sent.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, future, stream};
use http_body::{Body, Frame};
use prost::Message;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::room::RequestRoom;
use crate::{
    clock::Clock,
    limits,
    reason::{Reason, Refusal},
};

/// Returns as many entries as fit into a page. The first entry is always returned, because the size of entries is
/// limited elsewhere.
pub(super) fn fit_page<T: Message>(entries: impl Iterator<Item = T>) -> Vec<T> {
    let mut left = limits::PAGE_BYTES_MAX;
    let mut fitting = Vec::new();
    for entry in entries {
        let bytes = entry.encoded_len();
        if bytes > left && !fitting.is_empty() {
            break;
        }
        left = left.saturating_sub(bytes);
        fitting.push(entry);
    }
    fitting
}

/// Sends the messages of one stream. It buffers one message, which counts against the caller's buffer until the client
/// takes it.
pub(super) struct ResponseStream<T> {
    messages: mpsc::Sender<T>,
    end: oneshot::Sender<Status>,
    room: Arc<RequestRoom>,
    clock: Arc<dyn Clock>,
    /// The number of bytes of the buffered message.
    waiting: usize,
}

impl<T: Message + 'static> ResponseStream<T> {
    /// Returns the sender, and the stream that the client reads.
    pub(super) fn new(
        room: Arc<RequestRoom>,
        clock: Arc<dyn Clock>,
    ) -> (Self, impl Stream<Item = Result<T, Status>> + Send) {
        let (messages, received) = mpsc::channel(1);
        let (end, why) = oneshot::channel();
        // The end comes after all messages, even if they are read late.
        let why = stream::once(why).filter_map(|why| future::ready(why.ok().map(Err)));
        let answers = ReceiverStream::new(received).map(Ok).chain(why);
        (ResponseStream { messages, end, room, clock, waiting: 0 }, answers)
    }

    /// Waits until the client has taken the last message, for a bounded time.
    pub(super) async fn wait_until_taken(&mut self) -> Result<(), Refusal> {
        tokio::select! {
            biased;
            taken = self.messages.reserve() => {
                taken.map_err(|_| Refusal::new(Reason::Unreachable, "the client is gone"))?;
            }
            () = self.clock.sleep(limits::READER_STALL) => {
                let seconds = limits::READER_STALL.as_secs();
                let refusal = Refusal::new(Reason::FellBehind, format!("the stream was not read for {seconds} s"));
                return Err(refusal.fix("ask again, and read each message as it comes"));
            }
        }
        self.room.forget(std::mem::take(&mut self.waiting));
        Ok(())
    }

    /// Sends a message. The client must have taken the previous message.
    pub(super) fn send(&mut self, message: T) -> Result<(), Refusal> {
        let bytes = message.encoded_len();
        self.room.read(bytes)?;
        self.waiting = bytes;
        let sent = self.messages.try_send(message);
        sent.map_err(|_| Refusal::new(Reason::Unreachable, "the client is gone"))
    }

    /// Resolves when the client has disconnected.
    pub(super) async fn gone(&self) {
        self.messages.closed().await;
    }

    /// Ends the stream, with the refusal if there is one.
    pub(super) fn end(mut self, ended: Result<(), Refusal>) {
        self.room.forget(std::mem::take(&mut self.waiting));
        if let Err(refusal) = ended {
            // A client that has disconnected receives nothing more.
            let _ = self.end.send(refusal.status());
        }
    }
}

/// The body of a response in pieces of [`limits::SEND_BUFFER_BYTES`]. Each piece counts against the caller's buffer
/// until HTTP/2 has sent it.
pub(super) struct ResponseBody {
    body: tonic::body::Body,
    room: Arc<RequestRoom>,
    /// The encoded bytes that HTTP/2 does not have yet.
    rest: Bytes,
    is_over: bool,
}

impl ResponseBody {
    pub(super) fn new(body: tonic::body::Body, room: Arc<RequestRoom>) -> Self {
        ResponseBody { body, room, rest: Bytes::new(), is_over: false }
    }

    fn piece(&mut self) -> Frame<Bytes> {
        let bytes = self.rest.split_to(self.rest.len().min(limits::SEND_BUFFER_BYTES));
        Frame::data(Bytes::from_owner(Piece { bytes, room: self.room.clone() }))
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if !self.rest.is_empty() {
            return Poll::Ready(Some(Ok(self.piece())));
        }
        if self.is_over {
            return Poll::Ready(None);
        }
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                Ok(bytes) if bytes.is_empty() => Poll::Ready(Some(Ok(Frame::data(bytes)))),
                Ok(bytes) => match self.room.write(bytes.len()) {
                    Ok(()) => {
                        self.rest = bytes;
                        Poll::Ready(Some(Ok(self.piece())))
                    }
                    Err(refusal) => {
                        self.is_over = true;
                        let mut trailers = http::HeaderMap::new();
                        let added = refusal.status().add_header(&mut trailers);
                        Poll::Ready(Some(added.map(|()| Frame::trailers(trailers))))
                    }
                },
                Err(frame) => Poll::Ready(Some(Ok(frame))),
            },
            other => other,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && (self.is_over || self.body.is_end_stream())
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        self.room.sent(self.rest.len());
    }
}

/// A piece of a body that HTTP/2 has but has not sent yet.
struct Piece {
    bytes: Bytes,
    room: Arc<RequestRoom>,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.room.sent(self.bytes.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::v1;

    #[test]
    fn a_page_ends_at_its_bytes_and_has_one_entry_at_least() {
        let lock = |bytes| v1::Lock { reason: "x".repeat(bytes), ..Default::default() };
        assert_eq!(fit_page((0..5).map(|_| lock(10))).len(), 5);
        assert_eq!(fit_page((0..5).map(|_| lock(limits::PAGE_BYTES_MAX / 3))).len(), 2);
        assert_eq!(fit_page((0..5).map(|_| lock(limits::PAGE_BYTES_MAX * 2))).len(), 1);
        assert_eq!(fit_page(std::iter::empty::<v1::Lock>()).len(), 0);
    }
}

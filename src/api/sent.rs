//! The body of an answer: it counts against its caller's room until it was sent.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame};
use tonic::Status;

use super::room::Held;
use crate::limits;

/// An answer's body in pieces of [`limits::SEND_BUFFER_BYTES`]. Each counts until HTTP/2 has sent it.
pub(super) struct Sent {
    body: tonic::body::Body,
    held: Arc<Held>,
    /// What was encoded and not handed out yet.
    rest: Bytes,
    is_over: bool,
}

impl Sent {
    pub(super) fn new(body: tonic::body::Body, held: Arc<Held>) -> Self {
        Sent { body, held, rest: Bytes::new(), is_over: false }
    }

    fn piece(&mut self) -> Frame<Bytes> {
        let bytes = self.rest.split_to(self.rest.len().min(limits::SEND_BUFFER_BYTES));
        Frame::data(Bytes::from_owner(Piece { bytes, held: self.held.clone() }))
    }
}

impl Body for Sent {
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
                Ok(bytes) => match self.held.write(bytes.len()) {
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

impl Drop for Sent {
    fn drop(&mut self) {
        self.held.sent(self.rest.len());
    }
}

/// Bytes on their way to the client.
struct Piece {
    bytes: Bytes,
    held: Arc<Held>,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.held.sent(self.bytes.len());
    }
}

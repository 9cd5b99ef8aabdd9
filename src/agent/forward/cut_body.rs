//! A body that is cut when access ends. Its reader then gets an error, so that a cut never looks like the end.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::upstream::BusyConnection;

/// The body of a request or an answer while the forwarder passes it on.
pub(super) struct CutBody {
    body: Incoming,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    /// The connection from which the body comes. It is used again after the last byte.
    connection: Option<BusyConnection>,
}

impl CutBody {
    /// Makes a body that fails as soon as `cut` is cancelled.
    pub(super) fn new(body: Incoming, cut: CancellationToken) -> Self {
        CutBody { body, cut: Box::pin(cut.cancelled_owned()), connection: None }
    }

    /// Keeps the connection of the body, and returns it to the pool after the last byte.
    pub(super) fn of_connection(mut self, connection: BusyConnection) -> Self {
        if self.body.is_end_stream() {
            connection.give_back();
        } else {
            self.connection = Some(connection);
        }
        self
    }
}

impl Body for CutBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.cut.as_mut().poll(cx).is_ready() {
            self.connection = None;
            return Poll::Ready(Some(Err(io::Error::other("access has ended"))));
        }
        let polled = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        if (polled.is_none() || self.body.is_end_stream())
            && let Some(connection) = self.connection.take()
        {
            connection.give_back();
        }
        Poll::Ready(polled.map(|frame| frame.map_err(io::Error::other)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

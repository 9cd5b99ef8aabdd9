//! The rest of a request's body that no operation reads. If the connection is closed while a client is sending, the
//! client cannot read the answer. So the rest of the body is received and discarded.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use s3s::StdError;

use crate::{
    clock::Clock,
    limits::{GATEWAY_UNREAD_BYTES_MAX, GATEWAY_UNREAD_WAIT},
};

/// A body whose rest is received and discarded, within bounds, when it is dropped.
pub(super) struct UnreadBody {
    body: Option<s3s::Body>,
    clock: Arc<dyn Clock>,
}

impl UnreadBody {
    pub(super) fn new(body: s3s::Body, clock: Arc<dyn Clock>) -> Self {
        UnreadBody { body: Some(body), clock }
    }
}

impl Body for UnreadBody {
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        let this = self.get_mut();
        let Some(body) = &mut this.body else { return Poll::Ready(None) };
        let polled = Pin::new(body).poll_frame(cx);
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) {
            this.body = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl Drop for UnreadBody {
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

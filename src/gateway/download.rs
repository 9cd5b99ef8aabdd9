//! The body of a download. It is cut when its access ends.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures_util::{FutureExt, Stream, StreamExt, future::BoxFuture, stream::BoxStream};
use http::Version;
use s3s::{
    StdError,
    stream::{ByteStream, RemainingLength},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    caller::GatewayCaller,
    live_access::LiveAccess,
    store::StoreError,
    usage::{Direction, Transfer},
};
use crate::{clock::Clock, limits::GATEWAY_CUT_GRACE, link::Share, reason::Refusal};

/// A body that sends the chunks of an object. It checks the access before each chunk, and waits for the store and for
/// the end of the access at the same time.
///
/// If the client stops reading, this body is no longer polled. So a separate task cuts the connection in that case. The task
/// begins when the body sends its first chunk, unless this chunk is the last one.
pub(super) struct Download {
    /// The chunks. Only this body uses them. The mutex makes the body `Sync`, because s3s requires this.
    chunks: Mutex<BoxStream<'static, Result<Bytes, StoreError>>>,
    ended: Mutex<BoxFuture<'static, Refusal>>,
    left: u64,
    access: LiveAccess,
    transfer: Transfer,
    /// Cuts the connection when it is cancelled. If `over` is dropped, the task that would cut the connection ends.
    cut: CancellationToken,
    over: Option<DropGuard>,
    /// Whether the last chunk can wait for the client: over HTTP/2, the connection keeps the chunk and this body.
    last_chunk_waits: bool,
    clock: Arc<dyn Clock>,
    _room: Arc<Share>,
}

impl Download {
    /// Makes a body of `bytes` bytes.
    pub(super) fn new(
        chunks: BoxStream<'static, Result<Bytes, StoreError>>,
        bytes: u64,
        access: LiveAccess,
        caller: &GatewayCaller,
    ) -> Self {
        Download {
            chunks: Mutex::new(chunks),
            ended: Mutex::new(access.ended().boxed()),
            left: bytes,
            transfer: Transfer::begin(Direction::Read, &access),
            access,
            cut: caller.cut.clone(),
            over: None,
            last_chunk_waits: caller.version >= Version::HTTP_2,
            clock: caller.sessions.clock().clone(),
            _room: caller.room.clone(),
        }
    }

    /// Begins the task that cuts the connection some time after the access has ended.
    fn watch(&self) -> DropGuard {
        let over = CancellationToken::new();
        let (ended, done) = (self.access.ended(), over.clone());
        let (clock, connection) = (self.clock.clone(), self.cut.clone());
        tokio::spawn(async move {
            let last_resort = async {
                ended.await;
                clock.sleep(GATEWAY_CUT_GRACE).await;
            };
            tokio::select! {
                () = done.cancelled() => {}
                () = last_resort => connection.cancel(),
            }
        });
        over.drop_guard()
    }
}

impl Stream for Download {
    type Item = Result<Bytes, StdError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.left == 0 {
            return Poll::Ready(None);
        }
        let ended = this.ended.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Poll::Ready(refusal) = ended.poll_unpin(cx) {
            *ended = futures_util::future::ready(refusal.clone()).boxed();
            this.transfer.cut(&refusal);
            return Poll::Ready(Some(Err(refusal.into())));
        }
        let chunks = this.chunks.get_mut().unwrap_or_else(PoisonError::into_inner);
        let chunk = match ready!(chunks.poll_next_unpin(cx)) {
            Some(Ok(chunk)) => chunk,
            Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
            None => return Poll::Ready(Some(Err(StoreError::Changed.into()))),
        };
        if let Err(refusal) = this.access.check() {
            this.transfer.cut(&refusal);
            return Poll::Ready(Some(Err(refusal.into())));
        }
        let bytes = chunk.len() as u64;
        if bytes > this.left {
            return Poll::Ready(Some(Err(StoreError::Changed.into())));
        }
        this.left = this.left.saturating_sub(bytes);
        this.transfer.add(bytes);
        if this.left == 0 {
            this.transfer.finish();
        }
        if this.over.is_none() && (this.left > 0 || this.last_chunk_waits) {
            this.over = Some(this.watch());
        }
        Poll::Ready(Some(Ok(chunk)))
    }
}

impl ByteStream for Download {
    fn remaining_length(&self) -> RemainingLength {
        RemainingLength::new_exact(usize::try_from(self.left).unwrap_or(usize::MAX))
    }
}

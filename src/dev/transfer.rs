//! A transfer, which is cut when its access ends.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use futures_util::{FutureExt, future::BoxFuture};
use http_body::{Body, Frame, SizeHint};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    sync::{OwnedSemaphorePermit, broadcast},
};
use tokio_util::{
    io::poll_read_buf,
    sync::{CancellationToken, DropGuard},
};

use crate::{
    clock::Clock,
    limits::{FILE_CHUNK, FILE_CUT_GRACE},
    link::Connection,
    name::{ResourceName, SpiffeId},
    reason::{Reason, Refusal},
    verify::Access,
};

pub(super) type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// One transfer. Observers receive this value when the transfer has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileTransfer {
    pub direction: TransferDirection,
    pub peer: SpiffeId,
    pub resource: ResourceName,
    /// The path below the resource.
    pub path: String,
    /// The number of bytes that this server sent or received. If a download was cut, the client may have fewer bytes.
    pub bytes: u64,
    pub end: TransferEnd,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransferDirection {
    Download,
    Upload,
}

/// How a transfer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransferEnd {
    /// All bytes were sent or received.
    Whole,
    /// The transfer was cut, because its access ended.
    Cut(Reason),
    /// The client disconnected, or the disk failed.
    Broken,
}

/// Counts the bytes of a transfer. When the counter is dropped, the observers get the transfer.
pub(super) struct TransferCounter {
    pub(super) transfer: FileTransfer,
    pub(super) ended: broadcast::Sender<FileTransfer>,
    pub(super) _permit: OwnedSemaphorePermit,
}

impl TransferCounter {
    pub(super) fn add(&mut self, bytes: usize) {
        self.transfer.bytes = self.transfer.bytes.saturating_add(bytes as u64);
    }

    pub(super) fn set_end(&mut self, end: TransferEnd) {
        self.transfer.end = end;
    }
}

impl Drop for TransferCounter {
    fn drop(&mut self) {
        let _ = self.ended.send(self.transfer.clone()); // an error means that there is no observer
    }
}

/// The body of a download: a file in chunks.
///
/// It checks the access before each chunk. It waits for the disk and for the end of the access at the same time. If the client
/// stops reading, this body is not polled, and does not notice the end of the access. So a separate task cuts the connection some
/// time after that end.
pub(super) struct DownloadBody {
    file: Pin<Box<dyn AsyncRead + Send>>,
    left: u64,
    access: Access,
    ended: BoxFuture<'static, Refusal>,
    tally: TransferCounter,
    _over: DropGuard,
}

impl DownloadBody {
    /// Makes a body for the next `bytes` bytes of a file.
    pub(super) fn new(
        file: impl AsyncRead + Send + 'static,
        bytes: u64,
        access: Access,
        tally: TransferCounter,
        connection: Connection,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let over = CancellationToken::new();
        let (ended, done) = (access.ended(), over.clone());
        tokio::spawn(async move {
            let last_resort = async {
                ended.await;
                clock.sleep(FILE_CUT_GRACE).await;
            };
            tokio::select! {
                () = done.cancelled() => {}
                () = last_resort => connection.cut(),
            }
        });
        let ended = access.ended().boxed();
        let file = Box::pin(file.take(bytes));
        DownloadBody { file, left: bytes, access, ended, tally, _over: over.drop_guard() }
    }
}

impl Body for DownloadBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if this.left == 0 {
            return Poll::Ready(None);
        }
        if let Poll::Ready(refusal) = this.ended.poll_unpin(cx) {
            this.ended = futures_util::future::ready(refusal.clone()).boxed();
            return Poll::Ready(Some(Err(refusal.into())));
        }
        let mut chunk = BytesMut::with_capacity(FILE_CHUNK);
        let read = ready!(poll_read_buf(this.file.as_mut(), cx, &mut chunk))?;
        if read == 0 {
            return Poll::Ready(Some(Err(io::Error::from(io::ErrorKind::UnexpectedEof).into())));
        }
        this.access.check()?;
        this.left = this.left.saturating_sub(read as u64);
        this.tally.add(read);
        if this.left == 0 {
            this.tally.set_end(TransferEnd::Whole);
        }
        Poll::Ready(Some(Ok(Frame::data(chunk.freeze()))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

impl Drop for DownloadBody {
    fn drop(&mut self) {
        if self.left > 0
            && let Err(refusal) = self.access.check()
        {
            self.tally.set_end(TransferEnd::Cut(refusal.reason));
        }
    }
}

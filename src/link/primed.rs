//! A stream whose first bytes were read in advance.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

/// A stream that returns the bytes that were read in advance, and then the rest.
///
/// In TLS 1.3 the handshake of a client ends before the server has checked the client's certificate. Only the first bytes of
/// the server, the SETTINGS of HTTP/2, show that the certificate was accepted. If the server refuses it, an alert comes
/// instead.
pub(super) struct Primed<S> {
    first: Bytes,
    stream: S,
}

impl<S: AsyncRead + Unpin> Primed<S> {
    /// Waits for the first bytes of the other side.
    pub(super) async fn wait(mut stream: S) -> io::Result<Self> {
        let mut first = BytesMut::with_capacity(256);
        if stream.read_buf(&mut first).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Primed { first: first.freeze(), stream })
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Primed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, out);
        }
        let some = self.first.len().min(out.remaining());
        out.put_slice(self.first.get(..some).unwrap_or_default());
        self.first.advance(some);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Primed<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test]
    async fn bytes_read_ahead_are_returned_once_and_in_order() {
        let (near, mut far) = tokio::io::duplex(64);
        far.write_all(b"first, ").await.unwrap();
        let mut primed = Primed::wait(near).await.unwrap();
        far.write_all(b"then").await.unwrap();
        drop(far);
        let mut text = String::new();
        primed.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "first, then");
    }

    #[tokio::test]
    async fn a_peer_that_closes_without_bytes_is_an_error() {
        let (near, far) = tokio::io::duplex(64);
        drop(far);
        let error = Primed::wait(near).await.err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}

//! The body of a request, bounded in bytes and in time.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use tonic::{Status, codegen::StdError};

use super::room::RequestRoom;
use crate::{
    clock::Clock,
    limits,
    reason::{Reason, Refusal},
};

/// The number of bytes before each message: a flag, and the length (gRPC over HTTP/2, "Length-Prefixed-Message").
const PREFIX_BYTES: usize = 5;

/// The number of messages that a client sends with one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Messages {
    One,
    /// Several messages in quick succession.
    Several,
    /// Any number of messages at any time.
    Many,
}

/// The body of a request. It reserves capacity before its bytes are read, and must arrive in time.
///
/// When the length of a message is known, the body reserves capacity for the decoded message, even if the client sends
/// only half of it. Each message must arrive within [`limits::BODY`]. If the call sends one message, this applies to
/// the whole body.
pub(super) struct RequestBody<B> {
    body: B,
    messages: Messages,
    held: Arc<RequestRoom>,
    clock: Arc<dyn Clock>,
    deadline: BodyDeadline,
    prefix: Vec<u8>,
    /// The number of bytes of the current message that have not arrived yet.
    left: usize,
    /// The capacity that the current message of a stream uses.
    taken: usize,
    began: bool,
}

/// The time until which the next bytes must arrive.
enum BodyDeadline {
    /// There is no deadline: the next message may come at any time.
    None,
    /// [`limits::BODY`] after bytes are missing for the first time. Most bodies arrive at once and need no timer.
    Due,
    Runs(BoxFuture<'static, ()>),
}

impl BodyDeadline {
    /// Is ready if the bytes are too late. If they are not, registers the timer.
    fn poll(&mut self, clock: &Arc<dyn Clock>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match self {
                BodyDeadline::None => return Poll::Pending,
                BodyDeadline::Due => *self = BodyDeadline::Runs(clock.sleep(limits::BODY)),
                BodyDeadline::Runs(timer) => return timer.as_mut().poll(cx),
            }
        }
    }
}

impl<B> RequestBody<B> {
    pub(super) fn new(body: B, messages: Messages, held: Arc<RequestRoom>, clock: Arc<dyn Clock>) -> Self {
        let deadline = BodyDeadline::Due;
        let prefix = Vec::with_capacity(PREFIX_BYTES);
        RequestBody { body, messages, held, clock, deadline, prefix, left: 0, taken: 0, began: false }
    }

    /// Tracks the messages in the next bytes of the body.
    fn follow(&mut self, mut bytes: &[u8]) -> Result<(), Refusal> {
        while !bytes.is_empty() {
            if self.left > 0 {
                let some = self.left.min(bytes.len());
                self.left -= some;
                bytes = bytes.get(some..).unwrap_or_default();
            } else {
                let some = PREFIX_BYTES.saturating_sub(self.prefix.len()).min(bytes.len());
                let (prefix, rest) = bytes.split_at_checked(some).unwrap_or((bytes, &[]));
                self.prefix.extend_from_slice(prefix);
                bytes = rest;
                self.begin()?;
            }
        }
        let is_between = self.left == 0 && self.prefix.is_empty();
        match self.messages {
            Messages::One => {}
            Messages::Several if is_between => self.deadline = BodyDeadline::Due,
            Messages::Many if is_between => self.deadline = BodyDeadline::None,
            Messages::Several | Messages::Many if matches!(self.deadline, BodyDeadline::None) => {
                self.deadline = BodyDeadline::Due;
            }
            Messages::Several | Messages::Many => {}
        }
        Ok(())
    }

    /// Begins a message, if its prefix is complete.
    fn begin(&mut self) -> Result<(), Refusal> {
        let [_, length @ ..] = self.prefix.as_slice() else { return Ok(()) };
        let Ok(length) = <[u8; 4]>::try_from(length) else { return Ok(()) };
        self.prefix.clear();
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        let most = match self.messages {
            Messages::One => limits::MESSAGE_BYTES_MAX,
            Messages::Several | Messages::Many => limits::STREAM_MESSAGE_BYTES_MAX,
        };
        if length > most {
            return Err(too_large(most));
        }
        if self.began && self.messages == Messages::One {
            let text = "the call takes one message, and more than one came";
            return Err(Refusal::new(Reason::FieldInvalid, text));
        }
        self.began = true;
        self.held.forget(std::mem::take(&mut self.taken));
        let decoded = length.saturating_mul(limits::DECODED_PER_BYTE);
        self.held.read(decoded)?;
        match self.messages {
            Messages::One => self.held.keep(decoded),
            Messages::Several | Messages::Many => self.taken = decoded,
        }
        self.left = length;
        Ok(())
    }
}

impl<B> Drop for RequestBody<B> {
    fn drop(&mut self) {
        self.held.forget(self.taken);
    }
}

/// Returns the refusal of a message that exceeds its bound.
pub(super) fn too_large(most: usize) -> Refusal {
    Refusal::new(Reason::MessageTooLarge, format!("the message is larger than {most} bytes"))
}

/// Reads and drops the body of a request that is refused, for at most [`limits::REFUSED_BODY`].
///
/// A body that arrives after its answer belongs to a stream that HTTP/2 has forgotten. The HTTP/2 library counts each
/// such body as a fault of the client. After 1,024 faults, it ends the connection with all other calls. The body of a
/// call that sends many messages may never end, so the daemon does not wait for it.
pub(super) async fn discard<B: Body + Unpin>(mut body: B, messages: Messages, clock: Arc<dyn Clock>) {
    if messages != Messages::One || body.is_end_stream() {
        return;
    }
    let end = async { while let Some(Ok(_)) = body.frame().await {} };
    tokio::select! {
        () = end => {}
        () = clock.sleep(limits::REFUSED_BODY) => {}
    }
}

fn refuse(refusal: &Refusal) -> StdError {
    Box::<Status>::new(refusal.status())
}

impl<B> Body for RequestBody<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<StdError>,
{
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        let this = &mut *self;
        match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                let followed = frame.data_ref().map_or(Ok(()), |bytes| this.follow(bytes));
                Poll::Ready(Some(followed.map(|()| frame).map_err(|refusal| refuse(&refusal))))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(error.into()))),
            Poll::Ready(None) => {
                this.deadline = BodyDeadline::None;
                Poll::Ready(None)
            }
            Poll::Pending => match this.deadline.poll(&this.clock, cx) {
                Poll::Ready(()) => {
                    this.deadline = BodyDeadline::None;
                    let text = format!(
                        "the request did not come within {} s: send it whole",
                        limits::BODY.as_secs()
                    );
                    Poll::Ready(Some(Err(refuse(&Refusal::new(Reason::Overloaded, text)))))
                }
                Poll::Pending => Poll::Pending,
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

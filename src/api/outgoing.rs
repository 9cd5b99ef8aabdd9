//! The answers of one stream: a message at a time, and an end that says why.

use std::sync::Arc;

use futures_util::{Stream, StreamExt, future, stream};
use prost::Message;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::room::Held;
use crate::{
    clock::Clock,
    limits,
    reason::{Reason, Refusal},
};

/// Sends the answers of one stream. It holds one that was not taken yet, which counts against its caller's room.
pub(super) struct Outgoing<T> {
    messages: mpsc::Sender<T>,
    end: oneshot::Sender<Status>,
    held: Arc<Held>,
    clock: Arc<dyn Clock>,
    /// Bytes of the message that was not taken yet.
    waiting: usize,
}

impl<T: Message + 'static> Outgoing<T> {
    /// The sender, and the stream that a client reads.
    pub(super) fn new(
        held: Arc<Held>,
        clock: Arc<dyn Clock>,
    ) -> (Self, impl Stream<Item = Result<T, Status>> + Send) {
        let (messages, received) = mpsc::channel(1);
        let (end, why) = oneshot::channel();
        // How it ended comes after what was sent before it, however late that is read.
        let why = stream::once(why).filter_map(|why| future::ready(why.ok().map(Err)));
        let answers = ReceiverStream::new(received).map(Ok).chain(why);
        (Outgoing { messages, end, held, clock, waiting: 0 }, answers)
    }

    /// Waits until the last message was taken. A client that does not take it in time is not waited for.
    pub(super) async fn ready(&mut self) -> Result<(), Refusal> {
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
        self.held.forget(std::mem::take(&mut self.waiting));
        Ok(())
    }

    /// Sends a message, once the last one was taken.
    pub(super) fn send(&mut self, message: T) -> Result<(), Refusal> {
        let bytes = message.encoded_len();
        self.held.read(bytes)?;
        self.waiting = bytes;
        let sent = self.messages.try_send(message);
        sent.map_err(|_| Refusal::new(Reason::Unreachable, "the client is gone"))
    }

    /// Resolves when the client is gone.
    pub(super) async fn gone(&self) {
        self.messages.closed().await;
    }

    /// Ends the stream, if need be with the reason.
    pub(super) fn end(mut self, ended: Result<(), Refusal>) {
        self.held.forget(std::mem::take(&mut self.waiting));
        if let Err(refusal) = ended {
            // A client that is gone hears nothing more.
            let _ = self.end.send(refusal.status());
        }
    }
}

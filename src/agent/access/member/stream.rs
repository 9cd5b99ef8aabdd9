//! The keep-alive stream of a member: it joins, sends beats, and receives notices.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::{
    agent::access::calls::{Calls, timed},
    clock::{LeaseTime, Now, Wall},
    limits::{BEAT, CALL, LOST_AFTER},
    name::{AttemptNumber, InstanceName, JobId},
    proto::{convert::nearest_wall, v1},
    reason::{Reason, Refusal},
    secret::{Secret, SecretText},
};

/// How many beats may wait for a slow connection. Further beats are dropped, because the next beat contains the same
/// information.
const BEATS_WAITING: usize = 4;

/// The member that this process is for the daemon, and the secret that proves it in addition to the SVID.
#[derive(Clone, Debug)]
pub(crate) struct AttemptSession {
    pub(crate) job: JobId,
    pub(crate) attempt: AttemptNumber,
    pub(crate) instance: InstanceName,
    /// The secret that this process generated. The daemon has only its digest.
    pub(crate) secret: Secret,
    /// The ticket from `BeginAttempt`. It is needed if several jobs share the identity.
    pub(crate) ticket: SecretText,
}

impl AttemptSession {
    pub(crate) fn to_wire(&self) -> v1::Session {
        v1::Session {
            job: self.job.to_string(),
            attempt: self.attempt.value(),
            instance: self.instance.to_string(),
            secret: self.secret.expose().to_vec(),
        }
    }
}

/// A member that has joined, with its open stream.
pub(crate) struct Connected {
    pub(crate) calls: Calls,
    pub(crate) stream: BeatStream,
    pub(crate) offers: Vec<v1::Offer>,
    pub(crate) epoch: u64,
    pub(crate) ends_at_latest: Option<Wall>,
}

/// An open stream. If it is dropped without [`leave`](Self::leave), the daemon counts the member as away.
pub(crate) struct BeatStream {
    sender: mpsc::Sender<v1::KeepAliveRequest>,
    receiver: Streaming<v1::KeepAliveResponse>,
    beats: u64,
    interval: Duration,
    lost_after: u32,
    next_beat: LeaseTime,
    last_message: LeaseTime,
    /// How far the daemon's wall clock is ahead of this host's, in ms.
    pub(crate) lead_ms: i64,
}

/// Joins and opens the stream. A member that was away comes back in the same way, because it shows the same secret.
pub(crate) async fn connect(
    calls: Calls,
    session: &AttemptSession,
    now: impl Fn() -> Now,
) -> Result<Connected, Refusal> {
    let join = v1::JoinAttemptRequest {
        job: session.job.to_string(),
        attempt: session.attempt.value(),
        instance: session.instance.to_string(),
        session_digest: session.secret.digest().0.to_vec(),
        ticket: session.ticket.expose().to_owned(),
    };
    let joined = calls.await_answer(calls.members().join_attempt(timed(CALL, join))).await?;
    let (sender, outgoing) = mpsc::channel(BEATS_WAITING);
    // The channel is empty, so this cannot fail.
    let first = v1::KeepAliveRequest { session: Some(session.to_wire()), beat: 1, goodbye: false };
    let _ = sender.try_send(first);
    let mut receiver = calls.await_answer(calls.members().keep_alive(ReceiverStream::new(outgoing))).await?;
    let welcome = calls.await_answer(async { receiver.message().await.map(tonic::Response::new) }).await?;
    let welcome = welcome.ok_or_else(|| Refusal::new(Reason::Unreachable, "the stream ended at once"))?;
    let now = now();
    let interval =
        joined.beat.and_then(|d| Duration::try_from(d).ok()).filter(|d| !d.is_zero()).unwrap_or(BEAT);
    let stream = BeatStream {
        sender,
        receiver,
        beats: 1,
        interval,
        lost_after: if joined.lost_after == 0 { LOST_AFTER } else { joined.lost_after },
        next_beat: now.lease.plus(interval),
        last_message: now.lease,
        lead_ms: welcome.time.map_or(0, |time| lead(nearest_wall(&time), now.wall)),
    };
    Ok(Connected {
        calls,
        stream,
        offers: joined.offers,
        epoch: joined.epoch,
        ends_at_latest: joined.ends_at_latest.as_ref().map(nearest_wall),
    })
}

impl BeatStream {
    /// Waits for the next message. `Ok(None)` if the daemon closed the stream. Cancel safe.
    pub(crate) async fn message(&mut self) -> Result<Option<v1::KeepAliveResponse>, tonic::Status> {
        self.receiver.message().await
    }

    /// Notes that a message came.
    pub(crate) fn mark_alive(&mut self, now: LeaseTime) {
        self.last_message = now;
    }

    /// When to call [`beat`](Self::beat) next.
    pub(crate) fn next_beat(&self) -> LeaseTime {
        self.next_beat.min(self.times_out())
    }

    /// How long either side may be silent. After that, the daemon counts the member as away, and the member drops the stream.
    pub(crate) fn window(&self) -> Duration {
        self.interval.saturating_mul(self.lost_after)
    }

    fn times_out(&self) -> LeaseTime {
        self.last_message.plus(self.window())
    }

    /// Sends a beat if it is due. Returns `false` if the daemon was silent for too long.
    pub(crate) fn beat(&mut self, now: LeaseTime) -> bool {
        if now >= self.times_out() {
            return false;
        }
        if now >= self.next_beat {
            self.beats = self.beats.saturating_add(1);
            self.next_beat = now.plus(self.interval);
            let beat = v1::KeepAliveRequest { session: None, beat: self.beats, goodbye: false };
            let _ = self.sender.try_send(beat);
        }
        true
    }

    /// Leaves, and waits until the daemon closes the stream.
    pub(crate) async fn leave(mut self) {
        let bye = v1::KeepAliveRequest { session: None, beat: self.beats.saturating_add(1), goodbye: true };
        if self.sender.send(bye).await.is_ok() {
            while let Ok(Some(_)) = self.receiver.message().await {}
        }
    }
}

fn lead(theirs: Wall, ours: Wall) -> i64 {
    let signed = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
    signed(theirs.0).saturating_sub(signed(ours.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_daemons_clock_may_be_ahead_or_behind() {
        assert_eq!(lead(Wall(5_000), Wall(2_000)), 3_000);
        assert_eq!(lead(Wall(2_000), Wall(5_000)), -3_000);
    }
}

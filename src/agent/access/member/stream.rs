//! The keep-alive stream: joining, opening it, beating, and what a message on it leads to.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::{
    agent::access::calls::{Calls, timed},
    clock::{LeaseTime, Now, Wall},
    limits::{BEAT, CALL, LOST_AFTER},
    name::{AttemptNumber, InstanceName, JobId},
    proto::v1,
    reason::{Reason, Refusal},
    secret::{Secret, SecretText},
};

/// Beats that wait for a slow connection. Past it they are left out: the next one says the same.
const BEATS_WAITING: usize = 4;

/// Who we are to the daemon: the member of an attempt, and the secret that proves it beside the SVID.
#[derive(Clone, Debug)]
pub(crate) struct MemberSession {
    pub(crate) job: JobId,
    pub(crate) attempt: AttemptNumber,
    pub(crate) instance: InstanceName,
    /// Made here and kept in memory alone; the daemon has its digest.
    pub(crate) secret: Secret,
    /// From BeginAttempt, for identities that several jobs share.
    pub(crate) ticket: SecretText,
}

impl MemberSession {
    pub(crate) fn session(&self) -> v1::Session {
        v1::Session {
            job: self.job.to_string(),
            attempt: self.attempt.value(),
            instance: self.instance.to_string(),
            secret: self.secret.expose().to_vec(),
        }
    }
}

/// A member, joined and beating.
pub(crate) struct Connected {
    pub(crate) calls: Calls,
    pub(crate) stream: BeatStream,
    pub(crate) offers: Vec<v1::Offer>,
    pub(crate) epoch: u64,
    pub(crate) ends_at_latest: Option<Wall>,
}

/// An open stream. Dropping it without a goodbye is a loss.
pub(crate) struct BeatStream {
    sender: mpsc::Sender<v1::KeepAliveRequest>,
    receiver: Streaming<v1::KeepAliveResponse>,
    beats: u64,
    every: Duration,
    lost_after: u32,
    next_beat: LeaseTime,
    heard: LeaseTime,
    /// How far the daemon's wall clock is ahead of ours, in ms.
    pub(crate) lead_ms: i64,
}

/// Joins, and opens the stream. The same secret is the same member, so this is how one comes back too.
pub(crate) async fn connect(
    calls: Calls,
    member: &MemberSession,
    now: impl Fn() -> Now,
) -> Result<Connected, Refusal> {
    let join = v1::JoinAttemptRequest {
        job: member.job.to_string(),
        attempt: member.attempt.value(),
        instance: member.instance.to_string(),
        session_digest: member.secret.digest().0.to_vec(),
        ticket: member.ticket.expose().to_owned(),
    };
    let joined = calls.answer(calls.members().join_attempt(timed(CALL, join))).await?;
    let (sender, outgoing) = mpsc::channel(BEATS_WAITING);
    // There is room: nothing was sent yet.
    let first = v1::KeepAliveRequest { session: Some(member.session()), beat: 1, goodbye: false };
    let _ = sender.try_send(first);
    let mut receiver = calls.answer(calls.members().keep_alive(ReceiverStream::new(outgoing))).await?;
    let welcome = calls.answer(async { receiver.message().await.map(tonic::Response::new) }).await?;
    let welcome = welcome.ok_or_else(|| Refusal::new(Reason::Unreachable, "the stream ended at once"))?;
    let now = now();
    let every = joined.beat.and_then(|d| Duration::try_from(d).ok()).filter(|d| !d.is_zero()).unwrap_or(BEAT);
    let stream = BeatStream {
        sender,
        receiver,
        beats: 1,
        every,
        lost_after: if joined.lost_after == 0 { LOST_AFTER } else { joined.lost_after },
        next_beat: now.lease.plus(every),
        heard: now.lease,
        lead_ms: welcome.time.map_or(0, |time| lead(wall_of(&time), now.wall)),
    };
    Ok(Connected {
        calls,
        stream,
        offers: joined.offers,
        epoch: joined.epoch,
        ends_at_latest: joined.ends_at_latest.as_ref().map(wall_of),
    })
}

impl BeatStream {
    /// The next message; `Ok(None)` where the daemon closed the stream. Cancel safe.
    pub(crate) async fn message(&mut self) -> Result<Option<v1::KeepAliveResponse>, tonic::Status> {
        self.receiver.message().await
    }

    /// Something was heard.
    pub(crate) fn heard(&mut self, now: LeaseTime) {
        self.heard = now;
    }

    /// When there is something to do: to beat, or to give up a stream on which nothing is heard.
    pub(crate) fn next(&self) -> LeaseTime {
        self.next_beat.min(self.silent_at())
    }

    /// How long a member may be silent before it counts as away, and the daemon as gone.
    pub(crate) fn window(&self) -> Duration {
        self.every.saturating_mul(self.lost_after)
    }

    fn silent_at(&self) -> LeaseTime {
        self.heard.plus(self.window())
    }

    /// Beats where it is time. `false` where nothing was heard for too long.
    pub(crate) fn beat(&mut self, now: LeaseTime) -> bool {
        if now >= self.silent_at() {
            return false;
        }
        if now >= self.next_beat {
            self.beats = self.beats.saturating_add(1);
            self.next_beat = now.plus(self.every);
            let beat = v1::KeepAliveRequest { session: None, beat: self.beats, goodbye: false };
            let _ = self.sender.try_send(beat);
        }
        true
    }

    /// Leaves, and waits until the daemon has taken note of it.
    pub(crate) async fn goodbye(mut self) {
        let bye = v1::KeepAliveRequest { session: None, beat: self.beats.saturating_add(1), goodbye: true };
        if self.sender.send(bye).await.is_ok() {
            while let Ok(Some(_)) = self.receiver.message().await {}
        }
    }
}

/// What the member does about a notice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NoticeEffect {
    /// Access has ended and does not come back in this attempt.
    Over,
    /// Reading ends first, then writing, on the daemon's clock.
    Drain { reading_ends: Option<Wall>, writing_ends: Option<Wall> },
    /// Join again over another connection.
    Reconnect,
    /// Ask for all credentials anew.
    Anew,
    /// A plain beat, or a notice of a newer daemon.
    Nothing,
}

pub(crate) fn act(notice: &v1::Notice) -> NoticeEffect {
    use v1::notice::Kind;
    match Kind::try_from(notice.kind) {
        Ok(Kind::Revoked) => NoticeEffect::Over,
        Ok(Kind::Drain) => NoticeEffect::Drain {
            reading_ends: notice.reading_ends.as_ref().map(wall_of),
            writing_ends: notice.writing_ends.as_ref().map(wall_of),
        },
        Ok(Kind::Reconnect) => NoticeEffect::Reconnect,
        Ok(Kind::Reissue) => NoticeEffect::Anew,
        Ok(Kind::Unspecified) | Err(_) => NoticeEffect::Nothing,
    }
}

pub(crate) fn wall_of(t: &prost_types::Timestamp) -> Wall {
    let ms = u64::try_from(t.seconds).unwrap_or(0).saturating_mul(1_000);
    Wall(ms.saturating_add(u64::try_from(t.nanos).unwrap_or(0) / 1_000_000))
}

fn lead(theirs: Wall, ours: Wall) -> i64 {
    let signed = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
    signed(theirs.0).saturating_sub(signed(ours.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notice(kind: v1::notice::Kind) -> v1::Notice {
        let at = |seconds| Some(prost_types::Timestamp { seconds, nanos: 5_000_000 });
        v1::Notice { kind: kind as i32, reading_ends: at(10), writing_ends: at(30), ..Default::default() }
    }

    #[test]
    fn each_notice_leads_to_one_act() {
        use v1::notice::Kind;
        assert_eq!(act(&notice(Kind::Revoked)), NoticeEffect::Over);
        assert_eq!(act(&notice(Kind::Reconnect)), NoticeEffect::Reconnect);
        assert_eq!(act(&notice(Kind::Reissue)), NoticeEffect::Anew);
        let drain =
            NoticeEffect::Drain { reading_ends: Some(Wall(10_005)), writing_ends: Some(Wall(30_005)) };
        assert_eq!(act(&notice(Kind::Drain)), drain);
        assert_eq!(act(&notice(Kind::Unspecified)), NoticeEffect::Nothing);
        assert_eq!(
            act(&v1::Notice { kind: 99, ..Default::default() }),
            NoticeEffect::Nothing,
            "a newer daemon's"
        );
    }

    #[test]
    fn the_daemons_clock_may_be_ahead_or_behind() {
        assert_eq!(lead(Wall(5_000), Wall(2_000)), 3_000);
        assert_eq!(lead(Wall(2_000), Wall(5_000)), -3_000);
    }
}

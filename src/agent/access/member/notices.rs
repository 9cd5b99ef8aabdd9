//! The reactions of a member to messages on its stream.

use super::live::LiveMember;
use crate::{
    agent::access::{
        access_end::{AccessEnd, AttemptStatus},
        index::DrainNote,
    },
    clock::{LeaseTime, Wall},
    limits::TICK,
    proto::{convert::nearest_wall, v1},
    reason::Reason,
};

/// The effect of a notice.
#[derive(Clone, Debug, PartialEq, Eq)]
enum NoticeEffect {
    /// Access has ended and does not come back in this attempt.
    AccessEnds,
    /// Reading ends first, then writing. Both times are on the daemon's clock.
    Drain { reading_ends: Option<Wall>, writing_ends: Option<Wall> },
    /// The member must join again over another connection.
    Reconnect,
    /// The member must request all credentials again.
    Reissue,
    /// An ordinary beat, or a notice that only a newer version knows.
    Nothing,
}

fn effect_of(notice: &v1::Notice) -> NoticeEffect {
    use v1::notice::Kind;
    match Kind::try_from(notice.kind) {
        Ok(Kind::Revoked) => NoticeEffect::AccessEnds,
        Ok(Kind::Drain) => NoticeEffect::Drain {
            reading_ends: notice.reading_ends.as_ref().map(nearest_wall),
            writing_ends: notice.writing_ends.as_ref().map(nearest_wall),
        },
        Ok(Kind::Reconnect) => NoticeEffect::Reconnect,
        Ok(Kind::Reissue) => NoticeEffect::Reissue,
        Ok(Kind::Unspecified) | Err(_) => NoticeEffect::Nothing,
    }
}

impl LiveMember {
    /// Acts on a message, or on the end of the stream. Returns the end of access if the message reports it.
    pub(super) fn on_message(
        &mut self,
        message: Result<Option<v1::KeepAliveResponse>, tonic::Status>,
    ) -> Option<AccessEnd> {
        let now = self.context.clock.now().lease;
        let response = match message {
            Ok(Some(response)) => response,
            Ok(None) => {
                self.lose_connection(now);
                return None;
            }
            Err(status) => {
                tracing::debug!(%status, "the stream ended");
                self.lose_connection(now);
                return None;
            }
        };
        self.connection.mark_alive(now);
        let notice = response.notice?;
        match effect_of(&notice) {
            NoticeEffect::AccessEnds => return Some(self.access_end(notice, response.time)),
            NoticeEffect::Drain { reading_ends, writing_ends } => {
                self.note_drain(&notice.message, reading_ends, writing_ends);
                let until = |wall: Option<Wall>| wall.map_or_else(String::new, |w| format!(" until {w}"));
                self.context.messages.send(&format!(
                    "{}: reading goes on{}, checkpoint writes{}",
                    notice.message,
                    until(reading_ends),
                    until(writing_ends)
                ));
            }
            NoticeEffect::Reconnect => self.lose_connection(now),
            // A live lease is renewed and an ended one is replaced, so that no credential ever has two leases.
            NoticeEffect::Reissue => {
                self.context.messages.send(&format!("{}; asking for new credentials", notice.message));
                self.credentials.request_now(now);
            }
            NoticeEffect::Nothing => {}
        }
        None
    }

    fn access_end(&self, notice: v1::Notice, time: Option<prost_types::Timestamp>) -> AccessEnd {
        let reason = Reason::parse(&notice.reason).unwrap_or(Reason::Revoked);
        let attempt = match reason {
            Reason::Revoked => AttemptStatus::Ended,
            other => AttemptStatus::from_reason(other),
        };
        let by_time = matches!(reason, Reason::NotJoined | Reason::AttemptEnded | Reason::JobClosed);
        let daemon_now = time.as_ref().map(nearest_wall);
        // The daemon checks its drains at an interval, so it may end a drain up to [`TICK`] before `ends`.
        let is_due = |ends: &Wall| by_time && daemon_now.is_none_or(|n| n.plus(TICK) >= *ends);
        match self.writing_ends.filter(is_due) {
            Some(ends) => AccessEnd {
                reason: Reason::AttemptDraining,
                message: format!("the time to finish is over: it was given until {ends}"),
                attempt,
            },
            None => AccessEnd { reason, message: notice.message, attempt },
        }
    }

    /// Writes the drain to the files before anything else acts on it.
    pub(super) fn note_drain(
        &mut self,
        reason: &str,
        reading_ends: Option<Wall>,
        writing_ends: Option<Wall>,
    ) {
        self.reading_ends = reading_ends.map(|wall| self.to_lease_time(wall));
        self.writing_ends = writing_ends;
        self.credentials.note_drain(DrainNote { reason: reason.to_owned(), reading_ends, writing_ends });
    }

    /// Converts a time of the daemon's clock.
    fn to_lease_time(&self, theirs: Wall) -> LeaseTime {
        let ours = Wall(theirs.0.saturating_add_signed(self.lead_ms.saturating_neg()));
        self.context.clock.now().lease_at(ours)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notice(kind: v1::notice::Kind) -> v1::Notice {
        let at = |seconds| Some(prost_types::Timestamp { seconds, nanos: 5_000_000 });
        v1::Notice { kind: kind as i32, reading_ends: at(10), writing_ends: at(30), ..Default::default() }
    }

    #[test]
    fn each_notice_has_one_effect() {
        use v1::notice::Kind;
        assert_eq!(effect_of(&notice(Kind::Revoked)), NoticeEffect::AccessEnds);
        assert_eq!(effect_of(&notice(Kind::Reconnect)), NoticeEffect::Reconnect);
        assert_eq!(effect_of(&notice(Kind::Reissue)), NoticeEffect::Reissue);
        let drain =
            NoticeEffect::Drain { reading_ends: Some(Wall(10_005)), writing_ends: Some(Wall(30_005)) };
        assert_eq!(effect_of(&notice(Kind::Drain)), drain);
        assert_eq!(effect_of(&notice(Kind::Unspecified)), NoticeEffect::Nothing);
        let newer = v1::Notice { kind: 99, ..Default::default() };
        assert_eq!(effect_of(&newer), NoticeEffect::Nothing, "of a newer daemon");
    }
}

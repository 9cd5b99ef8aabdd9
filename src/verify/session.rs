//! The state machine of one subscription to the fence feed, without a clock, an await or I/O.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use super::fences::{Fences, TooMany};
use crate::{
    clock::{BootTime, Now, Wall},
    fence::Seq,
    limits::{FEED_STALE, FEED_TICKS_MAX, FENCE_RETENTION_MARGIN, LEASE_TTL_MAX},
    link::ConnectError,
    proto::{
        convert::wall,
        v1::{
            FeedLowered, FeedSnapshot, FeedStart, FeedTick, LoweredFence, WatchFencesResponse,
            watch_fences_response::Event,
        },
    },
    token::{FenceTag, KeyError},
};

/// Why a subscription has ended and a new one is needed.
#[derive(Debug, thiserror::Error)]
pub(super) enum FeedError {
    #[error("no connection: {0}")]
    Connect(#[from] ConnectError),
    #[error("the daemon ended the feed: {}: {}", .0.code(), .0.message())]
    Ended(Box<tonic::Status>),
    #[error("the daemon closed the feed")]
    Closed,
    #[error("the daemon sent nothing for more than {} s", .0.as_secs())]
    Silent(Duration),
    #[error("the feed is of epoch {offered}, and epoch {known} was seen before")]
    OlderEpoch { offered: u64, known: u64 },
    #[error("the snapshot is of seq {offered}, and {known} was seen before")]
    OlderSeq { offered: Seq, known: Seq },
    #[error(
        "a lowering is missing: the received lowering follows seq {prev}, but the last known seq is {last}"
    )]
    Gap { prev: Seq, last: Seq },
    #[error("tick {found} was echoed, but {expected:?} was next")]
    TickOrder { found: u64, expected: Option<u64> },
    #[error("the feed is malformed: {0}")]
    Malformed(&'static str),
    #[error(transparent)]
    TooMany(#[from] TooMany),
    #[error("the public keys are of epoch {keys}, and the feed of epoch {feed}")]
    KeysOfAnotherEpoch { keys: u64, feed: u64 },
    #[error("the public keys cannot be read: {0}")]
    PublicKeys(#[from] KeyError),
    #[error("the daemon has {0} public keys")]
    KeyCount(usize),
}

impl From<tonic::Status> for FeedError {
    fn from(status: tonic::Status) -> Self {
        match crate::link::explain(&status) {
            Some(error) => FeedError::Connect(error),
            None => FeedError::Ended(Box::new(status)),
        }
    }
}

impl FeedError {
    /// Whether the known state can no longer be trusted, because a lowering is missing or the daemon contradicts the known
    /// state. The state of a feed that was only lost stays valid until it is stale.
    pub(super) fn voids(&self) -> bool {
        match self {
            FeedError::Connect(_)
            | FeedError::Ended(_)
            | FeedError::Closed
            | FeedError::Silent(_)
            | FeedError::KeysOfAnotherEpoch { .. }
            | FeedError::PublicKeys(_)
            | FeedError::KeyCount(_) => false,
            FeedError::OlderEpoch { .. }
            | FeedError::OlderSeq { .. }
            | FeedError::Gap { .. }
            | FeedError::TickOrder { .. }
            | FeedError::Malformed(_)
            | FeedError::TooMany(_) => true,
        }
    }
}

/// The newest position that was ever seen. A feed whose position is older is refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct FeedPosition {
    pub(super) epoch: Option<u64>,
    pub(super) seq: Seq,
}

/// The result of one message.
pub(super) enum SessionUpdate {
    /// The feed has started, with its epoch and issuer.
    Began { epoch: u64, issuer: Arc<str> },
    /// The snapshot has more parts.
    Incomplete,
    /// The snapshot is complete. Each new lowering follows as a message.
    Complete(Arc<Fences>),
    /// A fence was lowered and has been added.
    Lowered,
    /// A tick was echoed. Contains when the tick was sent, and the time on the daemon's clock.
    Ticked { sent: BootTime, daemon: Wall, ledger_head: String },
    /// The message is an echo before the end of the snapshot, and is ignored.
    Ignored,
}

/// The state of one subscription.
pub(super) struct FeedSession {
    phase: SessionPhase,
    newest: FeedPosition,
    /// The ticks that were not echoed yet, oldest first.
    pending_ticks: VecDeque<(u64, BootTime)>,
    tick_number: u64,
    received: BootTime,
    retention: Duration,
}

enum SessionPhase {
    Opening,
    Snapshot(Arc<Fences>),
    Following(Arc<Fences>),
}

impl FeedSession {
    pub(super) fn new(newest: FeedPosition, now: Now) -> Self {
        FeedSession {
            phase: SessionPhase::Opening,
            newest,
            pending_ticks: VecDeque::new(),
            tick_number: 1,
            received: now.boot,
            retention: Duration::ZERO,
        }
    }

    /// Returns the newest position. The position of the next subscription must not be older.
    pub(super) fn newest(&self) -> FeedPosition {
        self.newest
    }

    /// Returns the time from which the daemon counts as lost. After the snapshot, while an echo is due, only the echo
    /// moves this time. Otherwise, each message moves it.
    pub(super) fn silent_from(&self) -> BootTime {
        let since = match (&self.phase, self.pending_ticks.front()) {
            (SessionPhase::Following(_), Some((_, sent))) => *sent,
            _ => self.received,
        };
        since.plus(FEED_STALE).plus(Duration::from_millis(1))
    }

    /// Returns the tick to send to the daemon now. Call it only after the snapshot is complete: an echo before that
    /// does not show that every lowering has arrived.
    pub(super) fn next_tick(&mut self, now: Now) -> Result<u64, FeedError> {
        if self.pending_ticks.len() >= FEED_TICKS_MAX {
            return Err(FeedError::Silent(FEED_STALE));
        }
        let tick = self.tick_number;
        self.tick_number = tick.saturating_add(1);
        self.pending_ticks.push_back((tick, now.boot));
        Ok(tick)
    }

    /// Processes one message.
    pub(super) fn receive(
        &mut self,
        message: WatchFencesResponse,
        now: Now,
    ) -> Result<SessionUpdate, FeedError> {
        self.received = now.boot;
        match message.event.ok_or(FeedError::Malformed("a message is empty"))? {
            Event::Start(start) => self.start(start),
            Event::Snapshot(part) => self.snapshot(part, now),
            Event::Lowered(lowered) => self.lowered(lowered, now),
            Event::Tick(tick) => self.ticked(tick),
        }
    }

    /// Removes the lowerings that are older than every valid token.
    pub(super) fn prune(&self, now: Now, daemon: Wall) {
        let SessionPhase::Following(fences) = &self.phase else { return };
        let retention = u64::try_from(self.retention.as_millis()).unwrap_or(u64::MAX);
        // Keep each lowering two seconds longer than `retention`. This covers the rounding of `iat` to seconds, and the
        // age of `daemon`, which came with an echo.
        let received_before = BootTime(now.boot.0.saturating_sub(retention).saturating_sub(2_000));
        fences.prune(received_before, Wall(daemon.0.saturating_sub(retention)));
    }

    fn start(&mut self, start: FeedStart) -> Result<SessionUpdate, FeedError> {
        if !matches!(self.phase, SessionPhase::Opening) {
            return Err(FeedError::Malformed("it starts twice"));
        }
        if let Some(known) = self.newest.epoch.filter(|known| start.epoch < *known) {
            return Err(FeedError::OlderEpoch { offered: start.epoch, known });
        }
        if start.issuer.is_empty() {
            return Err(FeedError::Malformed("its start names no issuer"));
        }
        let time = start.time.as_ref().and_then(wall).ok_or(FeedError::Malformed("its start has no time"))?;
        let since = start
            .retained_since
            .as_ref()
            .and_then(wall)
            .ok_or(FeedError::Malformed("its start does not say since when lowerings are retained"))?;
        if self.newest.epoch != Some(start.epoch) {
            // Forget the seq of the old epoch. Lowerings that were not on disk at a restart are lost, so a new epoch
            // may begin at a lower seq.
            self.newest = FeedPosition { epoch: Some(start.epoch), seq: Seq::default() };
        }
        self.retention = time.since(since).max(LEASE_TTL_MAX.saturating_add(FENCE_RETENTION_MARGIN));
        self.phase = SessionPhase::Snapshot(Arc::new(Fences::new(since)));
        Ok(SessionUpdate::Began { epoch: start.epoch, issuer: start.issuer.into() })
    }

    fn snapshot(&mut self, part: FeedSnapshot, now: Now) -> Result<SessionUpdate, FeedError> {
        let SessionPhase::Snapshot(fences) = &self.phase else {
            return Err(FeedError::Malformed("a part of a snapshot arrived out of order"));
        };
        for LoweredFence { fence, seq } in part.fences {
            fences.lower(tag(&fence)?, Seq(seq), now.boot)?;
        }
        if !part.complete {
            return Ok(SessionUpdate::Incomplete);
        }
        let (offered, known) = (Seq(part.seq), self.newest.seq);
        if offered < known {
            return Err(FeedError::OlderSeq { offered, known });
        }
        self.newest.seq = offered;
        let fences = fences.clone();
        self.phase = SessionPhase::Following(fences.clone());
        Ok(SessionUpdate::Complete(fences))
    }

    fn lowered(&mut self, lowered: FeedLowered, now: Now) -> Result<SessionUpdate, FeedError> {
        let SessionPhase::Following(fences) = &self.phase else {
            return Err(FeedError::Malformed("a lowering arrived before the snapshot was complete"));
        };
        let (seq, prev, last) = (Seq(lowered.seq), Seq(lowered.prev), self.newest.seq);
        if prev != last {
            return Err(FeedError::Gap { prev, last });
        }
        if seq <= last {
            return Err(FeedError::Malformed("the seq of a lowering is not above the previous one"));
        }
        fences.lower(tag(&lowered.fence)?, seq, now.boot)?;
        self.newest.seq = seq;
        Ok(SessionUpdate::Lowered)
    }

    fn ticked(&mut self, tick: FeedTick) -> Result<SessionUpdate, FeedError> {
        // The message that opens the subscription has tick 0. Ignore an echo of tick 0.
        if tick.tick == 0 {
            return Ok(SessionUpdate::Ignored);
        }
        let expected = self.pending_ticks.pop_front();
        let Some((_, sent)) = expected.filter(|(expected, _)| *expected == tick.tick) else {
            return Err(FeedError::TickOrder { found: tick.tick, expected: expected.map(|(tick, _)| tick) });
        };
        let daemon = tick.time.as_ref().and_then(wall).ok_or(FeedError::Malformed("a tick has no time"))?;
        Ok(match self.phase {
            SessionPhase::Following(_) => {
                SessionUpdate::Ticked { sent, daemon, ledger_head: tick.ledger_head }
            }
            SessionPhase::Opening | SessionPhase::Snapshot(_) => SessionUpdate::Ignored,
        })
    }
}

fn tag(bytes: &[u8]) -> Result<FenceTag, FeedError> {
    FenceTag::from_bytes(bytes).ok_or(FeedError::Malformed("a fence does not have the length of a tag"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::LeaseTime,
        proto::convert::timestamp,
        verify::testing::{EPOCH, ISSUER, SEQ},
    };

    const T: Wall = Wall(1_795_148_000_000);

    fn at(seconds: u64) -> Now {
        let ms = seconds * 1_000;
        Now { wall: Wall(T.0 + ms), lease: LeaseTime(T.0 + ms), boot: BootTime(5_000_000 + ms) }
    }

    fn job(n: u8) -> FenceTag {
        FenceTag::from_bytes(&[n; 12]).unwrap()
    }

    fn start(epoch: u64) -> Event {
        Event::Start(FeedStart {
            epoch,
            issuer: ISSUER.into(),
            time: Some(timestamp(T)),
            retained_since: Some(timestamp(Wall(T.0 - 60_000))),
        })
    }

    fn snapshot(tags: &[FenceTag], complete: bool) -> Event {
        let fences = tags.iter().map(|t| LoweredFence { fence: t.as_bytes().to_vec(), seq: 1 }).collect();
        Event::Snapshot(FeedSnapshot { fences, complete, seq: SEQ })
    }

    fn lowered(fence: &[u8], prev: u64, seq: u64) -> Event {
        Event::Lowered(FeedLowered { fence: fence.to_vec(), seq, prev })
    }

    fn tick(tick: u64) -> Event {
        Event::Tick(FeedTick { tick, time: Some(timestamp(T)), ledger_head: format!("head {tick}") })
    }

    fn receive(session: &mut FeedSession, event: Event, seconds: u64) -> Result<SessionUpdate, FeedError> {
        session.receive(WatchFencesResponse { event: Some(event) }, at(seconds))
    }

    /// Returns a session after these messages, without an error.
    fn session(events: impl IntoIterator<Item = Event>) -> FeedSession {
        let mut session = FeedSession::new(FeedPosition::default(), at(0));
        for event in events {
            receive(&mut session, event, 0).unwrap();
        }
        session
    }

    fn following() -> FeedSession {
        session([start(EPOCH), snapshot(&[], true)])
    }

    #[test]
    fn a_malformed_or_misplaced_message_voids_what_was_known() {
        let unnamed = || Event::Start(FeedStart { issuer: String::new(), ..began() });
        let timeless = || Event::Start(FeedStart { time: None, ..began() });
        let unretained = || Event::Start(FeedStart { retained_since: None, ..began() });
        fn began() -> FeedStart {
            let Event::Start(start) = start(EPOCH) else { panic!() };
            start
        }
        let job = job(1);
        let cases: Vec<(&str, Vec<Event>, Event)> = vec![
            ("no issuer", vec![], unnamed()),
            ("no time", vec![], timeless()),
            ("no retention", vec![], unretained()),
            ("a second start", vec![start(EPOCH)], start(EPOCH)),
            ("a snapshot first", vec![], snapshot(&[], true)),
            ("a lowering too early", vec![start(EPOCH)], lowered(job.as_bytes(), 0, 1)),
            ("a snapshot too late", vec![start(EPOCH), snapshot(&[], true)], snapshot(&[], true)),
            ("a gap", vec![start(EPOCH), snapshot(&[], true)], lowered(job.as_bytes(), SEQ + 1, SEQ + 2)),
            ("a repetition", vec![start(EPOCH), snapshot(&[], true)], lowered(job.as_bytes(), SEQ, SEQ)),
            ("a short tag", vec![start(EPOCH), snapshot(&[], true)], lowered(&[1; 11], SEQ, SEQ + 1)),
            ("an echo of a tick that was not sent", vec![start(EPOCH), snapshot(&[], true)], tick(1)),
        ];
        for (what, before, event) in cases {
            let error = receive(&mut session(before), event, 0).map(|_| ()).unwrap_err();
            assert!(error.voids(), "{what}: {error}");
        }
        let mut empty = following();
        assert!(empty.receive(WatchFencesResponse { event: None }, at(0)).is_err());
    }

    #[test]
    fn ticks_are_echoed_in_order_and_count_only_when_complete() {
        let mut early = session([start(EPOCH)]);
        assert_eq!(early.next_tick(at(0)).unwrap(), 1);
        assert!(matches!(receive(&mut early, tick(1), 1).unwrap(), SessionUpdate::Ignored));
        let mut session = following();
        assert_eq!((session.next_tick(at(0)).unwrap(), session.next_tick(at(1)).unwrap()), (1, 2));
        assert!(matches!(receive(&mut session, tick(0), 2).unwrap(), SessionUpdate::Ignored));
        let SessionUpdate::Ticked { sent, .. } = receive(&mut session, tick(1), 2).unwrap() else { panic!() };
        assert_eq!(sent, at(0).boot, "the age counts from when it was sent");
        assert!(matches!(
            receive(&mut session, tick(1), 2),
            Err(FeedError::TickOrder { found: 1, expected: Some(2) })
        ));
    }

    #[test]
    fn lowerings_do_not_hide_missing_ticks() {
        let mut session = following();
        session.next_tick(at(0)).unwrap();
        let silent = session.silent_from();
        assert_eq!(silent.since(at(0).boot), FEED_STALE + Duration::from_millis(1));
        receive(&mut session, lowered(job(1).as_bytes(), SEQ, SEQ + 1), 2).unwrap();
        assert_eq!(session.silent_from(), silent);
        for _ in 1..FEED_TICKS_MAX {
            session.next_tick(at(2)).unwrap();
        }
        assert!(matches!(session.next_tick(at(2)), Err(FeedError::Silent(_))));
    }

    #[test]
    fn lowerings_are_forgotten_when_no_token_can_be_that_old() {
        let mut session = session([start(EPOCH), snapshot(&[job(1)], false), snapshot(&[], true)]);
        let SessionPhase::Following(fences) = &session.phase else { panic!() };
        let fences = fences.clone();
        let life = LEASE_TTL_MAX.as_secs() + FENCE_RETENTION_MARGIN.as_secs();
        receive(&mut session, lowered(job(2).as_bytes(), SEQ, SEQ + 1), 100).unwrap();
        session.prune(at(life + 2), at(life + 2).wall);
        assert_eq!(fences.len(), 2, "not yet");
        session.prune(at(life + 3), at(life + 3).wall);
        assert_eq!(fences.len(), 1);
        assert_eq!(fences.complete_since(), at(3).wall);
        assert!(fences.lowered_after(&[job(2)], Seq(SEQ)).is_some());
    }
}

//! The member that a wrapper or a sidecar is: it beats, renews, comes back when it was away, and hears when its access is over.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::sync::{mpsc, watch};

use super::{
    requests::{self, MemberAnswer},
    stream::{BeatStream, Connected, MemberSession, NoticeEffect, act},
};
use crate::{
    agent::{
        access::{
            calls::{Calls, timed},
            credential::Granted,
            credential_dir::{CredentialDir, CredentialError},
            credential_set::{CredentialSet, shown},
            index::DrainNote,
            meaning::{AccessEnd, AttemptStatus, over_by},
        },
        messages::MessageSink,
        retry::Backoff,
    },
    clock::{Clock, LeaseTime, Wall},
    identity::{IdentitySource, Trust},
    limits::{CREDENTIAL_LOOK, RETRY_MAX, TICK},
    name::Half,
    proto::v1,
    reason::{MemberStep, Reason, Refusal},
};

/// What is asked of a member.
#[derive(Debug)]
pub(crate) enum MemberCommand {
    /// The platform has asked the child to end: checkpoints may still be written for the grace.
    Drain { grace: Option<Duration>, reason: String },
    /// The child has ended.
    Finish { outcome: v1::Outcome, detail: String },
    /// Nobody saw how the work ended: access ends, and the attempt waits for who knows.
    Leave,
}

/// What came of telling the daemon how the child ended.
#[derive(Debug)]
pub(crate) enum FinalReport {
    Delivered,
    /// The attempt was over before.
    NotNeeded,
    Failed(Refusal),
}

/// Where a member stands, for the run or the agent that it belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct MemberStatus {
    /// Set once access is over. The files were wiped before.
    pub(crate) over: Option<AccessEnd>,
    /// The daemon has asked it to finish, and the files say until when.
    pub(crate) is_draining: bool,
    /// All credentials that it wants are in their files.
    pub(crate) is_complete: bool,
}

/// The surroundings of a member.
pub(crate) struct MemberContext {
    pub(crate) dir: Arc<CredentialDir>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) identity: Arc<dyn IdentitySource>,
    pub(crate) voice: MessageSink,
    /// How long to go on coming back.
    pub(crate) rejoin: Duration,
}

/// One member with its credentials. All that it does, it does while [`serve`](Self::serve) is polled; dropping it without
/// a report is a loss to the daemon, which ends its leases.
pub(crate) struct LiveMember {
    place: MemberContext,
    who: MemberSession,
    calls: Calls,
    link: Link,
    /// A connection is being made: the way back, or the next one before our SVID ends.
    connecting: bool,
    /// When to change to a connection of our new SVID.
    change_at: Option<LeaseTime>,
    epoch: u64,
    lead_ms: i64,
    window: Duration,
    holdings: CredentialSet,
    reading_ends: Option<LeaseTime>,
    /// When a drain takes the rest, on the daemon's clock, where there is one.
    writing_ends: Option<Wall>,
    /// Set once our access is over.
    over: Option<AttemptStatus>,
    /// When to look at the files next.
    look_at: LeaseTime,
    /// The digest of the certificate that our present connection was made with, or the next one will be.
    svid: Option<[u8; 32]>,
}

enum Link {
    Up(BeatStream),
    Down(Away),
}

struct Away {
    since: LeaseTime,
    retry_at: Option<LeaseTime>,
    waits: Backoff,
    said: bool,
}

type PendingAnswers = FuturesUnordered<requests::PendingAnswer>;

/// How long to wait until the daemon has taken note of a goodbye.
const GOODBYE: Duration = Duration::from_millis(500);

/// Why the first credentials are not there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ObtainError {
    #[error("{0}")]
    Refused(Refusal),
    #[error(transparent)]
    Files(#[from] CredentialError),
}

impl LiveMember {
    /// From a first connection. Nothing is held yet.
    pub(crate) fn new(
        who: MemberSession,
        connected: Connected,
        place: MemberContext,
    ) -> Result<Self, Refusal> {
        let now = place.clock.now().lease;
        let holdings =
            CredentialSet::of_offers(connected.offers, now, place.dir.clone(), place.voice.clone())?;
        Ok(LiveMember {
            who,
            calls: connected.calls,
            connecting: false,
            change_at: None,
            epoch: connected.epoch,
            lead_ms: connected.stream.lead_ms,
            window: connected.stream.window(),
            link: Link::Up(connected.stream),
            holdings,
            reading_ends: None,
            writing_ends: None,
            over: None,
            look_at: now.plus(CREDENTIAL_LOOK),
            svid: svid_of(&place.identity.current()),
            place,
        })
    }

    /// Obtains all that was offered, and writes the files and their index.
    pub(crate) async fn obtain(&mut self, patience: Duration) -> Result<(), ObtainError> {
        for at in 0..self.holdings.len() {
            let Some(request) = self.holdings.get(at).map(|h| h.request(&self.who)) else { continue };
            let calls = self.calls.clone();
            let issue = async |span| {
                calls.within(span, calls.members().issue_credential(timed(span, request.clone()))).await
            };
            let granted = self.calls.persist(patience, issue).await.and_then(Granted::of_issue);
            let granted = granted.map_err(ObtainError::Refused)?;
            self.holdings.put(at, granted, self.place.clock.now(), self.lead_ms)?;
        }
        Ok(self.holdings.write_index(&self.who)?)
    }

    /// What the credentials open.
    pub(crate) fn opens(&self) -> Vec<String> {
        self.holdings.opens()
    }

    /// How long after the last beat the daemon ends the access of a member by itself.
    pub(crate) fn window(&self) -> Duration {
        self.window
    }

    /// Lives until it hears how the child ended, and reports that. Meanwhile it says where it stands.
    pub(crate) async fn serve(
        mut self,
        mut commands: mpsc::Receiver<MemberCommand>,
        standing: watch::Sender<MemberStatus>,
    ) -> FinalReport {
        let mut works = PendingAnswers::new();
        let mut trust = self.place.identity.watch();
        self.identity_changed(&self.place.identity.current());
        loop {
            self.begin_due(&mut works);
            let timer = self.place.clock.sleep_until(self.wake_at());
            let ending = tokio::select! {
                command = commands.recv() => match command {
                    Some(MemberCommand::Finish { outcome, detail }) => return self.finish(outcome, detail).await,
                    Some(MemberCommand::Leave) => return self.leave().await,
                    Some(MemberCommand::Drain { grace, reason }) => {
                        works.push(requests::drain(self.calls.clone(), &self.who, grace, reason));
                        None
                    }
                    // The run is gone, and with it whoever would be told.
                    None => return FinalReport::NotNeeded,
                },
                message = heard(&mut self.link) => self.message(message),
                Some(work) = works.next(), if !works.is_empty() => self.done(work),
                () = changed(&mut trust) => {
                    self.identity_changed(&trust.borrow().clone());
                    None
                }
                () = timer => {
                    self.time_passed();
                    None
                }
            };
            let ending = ending.filter(|_| self.over.is_none()).map(|(over, attempt)| {
                self.over = Some(attempt);
                self.holdings.end();
                over
            });
            self.say_standing(&standing, ending);
        }
    }

    fn say_standing(&self, standing: &watch::Sender<MemberStatus>, over: Option<AccessEnd>) {
        let is_draining = self.writing_ends.is_some();
        let is_complete = self.over.is_none() && self.holdings.is_complete();
        standing.send_if_modified(|s| {
            let over = over.or_else(|| s.over.take());
            let before = std::mem::replace(s, MemberStatus { over, is_draining, is_complete });
            *s != before
        });
    }

    // ---------- what is due ----------

    fn begin_due(&mut self, works: &mut PendingAnswers) {
        if self.over.is_some() {
            return;
        }
        let now = self.place.clock.now().lease;
        let is_due = |at: Option<LeaseTime>| at.is_some_and(|at| at <= now);
        let connect_at = match &self.link {
            Link::Up(_) => self.change_at,
            Link::Down(away) => away.retry_at,
        };
        if !self.connecting && is_due(connect_at) {
            self.connecting = true;
            works.push(requests::join(self.calls.anew(), self.who.clone(), self.place.clock.clone()));
        }
        if matches!(self.link, Link::Down(_)) {
            return;
        }
        for lease in self.holdings.take_spent() {
            works.push(requests::give_back(self.calls.clone(), lease, self.who.session()));
        }
        for (at, held) in self.holdings.due(now) {
            held.schedule.asked();
            works.push(match held.lease {
                Some(lease) => requests::renew(self.calls.clone(), at, lease, self.who.session()),
                None => requests::issue(self.calls.clone(), at, held.request(&self.who)),
            });
        }
    }

    fn wake_at(&self) -> LeaseTime {
        let connects = !self.connecting && self.over.is_none();
        let (beat, connect, due) = match &self.link {
            Link::Up(stream) => (Some(stream.next()), self.change_at, self.holdings.next_due()),
            // Nothing is asked for where nobody would hear it.
            Link::Down(away) => (None, away.retry_at, None),
        };
        let look = Some(self.look_at).filter(|_| self.over.is_none());
        let all =
            [beat, connect.filter(|_| connects), due, self.holdings.next_end(), self.reading_ends, look];
        all.into_iter().flatten().min().unwrap_or(LeaseTime(u64::MAX))
    }

    fn time_passed(&mut self) {
        let now = self.place.clock.now().lease;
        if let Link::Up(stream) = &mut self.link
            && !stream.beat(now)
        {
            self.lost(now);
        }
        if self.reading_ends.is_some_and(|at| at <= now) {
            self.reading_ends = None;
            self.holdings.end_reading();
            self.holdings.refresh_index(&self.who);
        }
        self.remove_expired(now);
        if self.look_at <= now {
            self.look_at = now.plus(CREDENTIAL_LOOK);
            self.holdings.mend();
        }
    }

    fn remove_expired(&mut self, now: LeaseTime) {
        let gone = self.holdings.remove_expired(now);
        if gone.is_empty() {
            return;
        }
        self.holdings.refresh_index(&self.who);
        match self.link {
            Link::Up(_) => gone.iter().for_each(|line| self.place.voice.say(line)),
            Link::Down(_) if self.holdings.last_end().is_none() => self.place.voice.say(
                "the credentials have expired and their files are removed; your program goes on, and they are there again when the daemon is",
            ),
            Link::Down(_) => {}
        }
    }

    // ---------- the stream ----------

    fn message(
        &mut self,
        message: Result<Option<v1::KeepAliveResponse>, tonic::Status>,
    ) -> Option<(AccessEnd, AttemptStatus)> {
        let now = self.place.clock.now().lease;
        let response = match message {
            Ok(Some(response)) => response,
            Ok(None) => {
                self.lost(now);
                return None;
            }
            Err(status) => {
                tracing::debug!(%status, "the stream ended");
                self.lost(now);
                return None;
            }
        };
        if let Link::Up(stream) = &mut self.link {
            stream.heard(now);
        }
        let notice = response.notice?;
        match act(&notice) {
            NoticeEffect::Over => {
                let reason = Reason::parse(&notice.reason).unwrap_or(Reason::Revoked);
                let attempt = match reason {
                    Reason::Revoked => AttemptStatus::Ended,
                    other => AttemptStatus::after(other),
                };
                let by_time = matches!(reason, Reason::NotJoined | Reason::AttemptEnded | Reason::JobClosed);
                let their_now = response.time.as_ref().map(super::stream::wall_of);
                // A second of theirs: its reaper ticks.
                let is_due = |ends: &Wall| by_time && their_now.is_none_or(|n| n.plus(TICK) >= *ends);
                let over = match self.writing_ends.filter(is_due) {
                    Some(ends) => AccessEnd {
                        reason: Reason::AttemptDraining,
                        message: format!("the time to finish is over: it was given until {ends}"),
                    },
                    None => AccessEnd { reason, message: notice.message },
                };
                return Some((over, attempt));
            }
            NoticeEffect::Drain { reading_ends, writing_ends } => {
                self.drained_until(&notice.message, reading_ends, writing_ends);
                let until = |wall: Option<Wall>| wall.map_or_else(String::new, |w| format!(" until {w}"));
                self.place.voice.say(&format!(
                    "{}: reading goes on{}, checkpoint writes{}",
                    notice.message,
                    until(reading_ends),
                    until(writing_ends)
                ));
            }
            NoticeEffect::Reconnect => self.lost(now),
            // What still lives is renewed, and what does not is asked for: no lease is left beside its successor.
            NoticeEffect::Anew => {
                self.place.voice.say(&format!("{}: asking again", notice.message));
                self.holdings.hurry(now);
            }
            NoticeEffect::Nothing => {}
        }
        None
    }

    /// What the daemon says of a drain goes into the files first.
    fn drained_until(&mut self, reason: &str, reading_ends: Option<Wall>, writing_ends: Option<Wall>) {
        self.reading_ends = reading_ends.map(|wall| self.local(wall));
        self.writing_ends = writing_ends;
        self.holdings.note_drain(DrainNote { reason: reason.to_owned(), reading_ends, writing_ends });
    }

    /// The stream is gone: the daemon counts us as away, and ends our leases if it lives.
    fn lost(&mut self, now: LeaseTime) {
        if matches!(self.link, Link::Down(_)) {
            return;
        }
        let mut waits = Backoff::default();
        let retry_at = waits.next().map(|wait| now.plus(wait));
        self.change_at = None;
        self.link = Link::Down(Away { since: now, retry_at, waits, said: false });
    }

    fn identity_changed(&mut self, trust: &Trust) {
        let svid = svid_of(trust);
        if svid.is_some() && svid != self.svid {
            self.svid = svid;
            let now = self.place.clock.now().lease;
            match &mut self.link {
                Link::Up(_) => self.change_at = Some(now),
                Link::Down(away) => away.retry_at = away.retry_at.map(|_| now),
            }
        }
    }

    // ---------- answers ----------

    fn done(&mut self, work: MemberAnswer) -> Option<(AccessEnd, AttemptStatus)> {
        match work {
            MemberAnswer::Issued { at, answer } => {
                let counts = self.holdings.get_mut(at)?.schedule.answered();
                match answer.and_then(Granted::of_issue) {
                    Ok(granted) if counts => self.granted(at, granted),
                    Ok(late) => {
                        self.holdings.give_back(late.lease);
                        None
                    }
                    Err(refusal) => self.refused(at, refusal, counts),
                }
            }
            MemberAnswer::Renewed { at, lease, answer } => {
                let held = self.holdings.get_mut(at)?;
                let counts = held.schedule.answered() && held.lease == Some(lease);
                match answer.and_then(Granted::of_renewal) {
                    Ok(granted) if counts => self.granted(at, granted),
                    Ok(late) => {
                        self.holdings.give_back(late.lease);
                        None
                    }
                    Err(refusal) => self.refused(at, refusal, counts),
                }
            }
            MemberAnswer::GivenBack => None,
            MemberAnswer::Connected(answer) => {
                self.connecting = false;
                match answer {
                    Ok(connected) => {
                        self.connected(connected);
                        None
                    }
                    Err(refusal) => self.not_connected(refusal),
                }
            }
            MemberAnswer::Drained { answer: Ok(answer), reason } => {
                let wall = |time: &Option<_>| time.as_ref().map(super::stream::wall_of);
                let (reading_ends, writing_ends) = (wall(&answer.reading_ends), wall(&answer.writing_ends));
                self.drained_until(&reason, reading_ends, writing_ends);
                None
            }
            MemberAnswer::Drained { answer: Err(refusal), .. } => {
                if self.over.is_none() {
                    self.place.voice.say(&format!(
                        "the daemon could not be told that your program is to end ({}: {refusal}); its access goes on until it has ended",
                        refusal.reason
                    ));
                }
                None
            }
        }
    }

    fn granted(&mut self, at: usize, granted: Granted) -> Option<(AccessEnd, AttemptStatus)> {
        let now = self.place.clock.now();
        match self.holdings.put(at, granted, now, self.lead_ms) {
            // Access has ended meanwhile.
            Err(CredentialError::Wiped) => {}
            Ok(()) => self.holdings.refresh_index(&self.who),
            // What has no space is kept and written when there is some.
            Err(CredentialError::Write { .. }) => {
                self.holdings.refresh_index(&self.who);
                self.holdings.mend();
            }
            Err(error) => {
                self.place.voice.say(&format!("{error}; trying again"));
                self.holdings.get_mut(at)?.schedule.failed(now.lease);
            }
        }
        None
    }

    fn refused(&mut self, at: usize, refusal: Refusal, counts: bool) -> Option<(AccessEnd, AttemptStatus)> {
        let now = self.place.clock.now().lease;
        let held = self.holdings.get_mut(at)?;
        let is_renewal = held.lease.is_some();
        match refusal.reason.member_step() {
            // A lock on one lease keeps out no other: the answer to a new question says what is locked.
            MemberStep::Stop if is_renewal && refusal.reason == Reason::Locked => {
                held.lease = None;
                held.schedule.hurry(now);
            }
            MemberStep::Stop => return Some(over_by(refusal)),
            // What was overtaken is due by itself.
            _ if !counts => {}
            MemberStep::StopHalf if held.half == Half::Reading => {
                self.holdings.end_reading();
                self.holdings.refresh_index(&self.who);
            }
            MemberStep::ReplaceLease if is_renewal => {
                held.lease = None;
                held.schedule.hurry(now);
            }
            MemberStep::Rejoin => {
                held.schedule.failed(now);
                self.lost(now);
            }
            MemberStep::ReplaceLease | MemberStep::TryLater | MemberStep::StopHalf => {
                held.schedule.failed(now)
            }
        }
        None
    }

    fn connected(&mut self, connected: Connected) {
        let now = self.place.clock.now().lease;
        self.change_at = None;
        self.calls = connected.calls;
        self.lead_ms = connected.stream.lead_ms;
        self.window = connected.stream.window();
        self.holdings.reoffer(connected.offers, &self.who, now);
        // The one before is dropped only now: a member that has a stream is never away.
        let before = std::mem::replace(&mut self.link, Link::Up(connected.stream));
        if connected.epoch == self.epoch {
            self.holdings.hurry(now);
        } else {
            self.epoch = connected.epoch;
            self.holdings.ask_anew(now);
        }
        if let Link::Down(Away { said: true, .. }) = before {
            self.place.voice.say("the daemon is back: credentials are obtained anew");
        }
    }

    fn not_connected(&mut self, refusal: Refusal) -> Option<(AccessEnd, AttemptStatus)> {
        let now = self.place.clock.now().lease;
        let is_decided =
            !matches!(refusal.reason.member_step(), MemberStep::TryLater | MemberStep::ReplaceLease);
        let Link::Down(away) = &mut self.link else {
            // The old connection lives: what was decided is told there.
            self.change_at = Some(now.plus(RETRY_MAX));
            return None;
        };
        if is_decided {
            return Some(over_by(refusal));
        }
        if now.since(away.since) >= self.place.rejoin {
            away.retry_at = None;
            self.place.voice.say(&format!(
                "the daemon has been away for {}, longer than a member may be (rejoin): no longer trying to come back; not a fault of your program, which goes on without access: start it again to have some",
                shown(self.place.rejoin)
            ));
            return None;
        }
        away.retry_at = away.waits.next().map(|wait| now.plus(wait));
        if !std::mem::replace(&mut away.said, true) {
            let what = match refusal.reason {
                Reason::Unreachable | Reason::ShuttingDown => "the daemon is away",
                _ => "the way to the daemon is barred",
            };
            let until = self.holdings.last_end().map_or_else(
                || "no credentials are left".to_owned(),
                |at| {
                    format!("credentials are good until {} at the latest", self.place.clock.now().wall_at(at))
                },
            );
            self.place.voice.say(&format!(
                "{what} ({}: {refusal}): {until}; your program goes on, trying to come back",
                refusal.reason
            ));
        }
        None
    }

    /// A moment of the daemon's clock on our timeline.
    fn local(&self, theirs: Wall) -> LeaseTime {
        let ours = Wall(theirs.0.saturating_add_signed(self.lead_ms.saturating_neg()));
        self.place.clock.now().lease_at(ours)
    }

    // ---------- the end ----------

    /// Reports within [`REPORT`](crate::limits::REPORT), and leaves.
    async fn finish(self, outcome: v1::Outcome, detail: String) -> FinalReport {
        if self.over == Some(AttemptStatus::Ended) {
            return FinalReport::NotNeeded;
        }
        let report = match requests::report(&self.calls, &self.who, outcome, detail).await {
            Ok(()) => FinalReport::Delivered,
            Err(refusal) if AttemptStatus::after(refusal.reason) == AttemptStatus::Ended => {
                FinalReport::NotNeeded
            }
            // A lock has ended all access, and no report of a locked identity is taken.
            Err(refusal) if refusal.reason == Reason::Locked => FinalReport::NotNeeded,
            Err(refusal) => FinalReport::Failed(refusal),
        };
        // Where the report was taken this changes nothing; where not, our leases end now.
        self.leave().await;
        report
    }

    /// Says goodbye, where there is somebody to say it to.
    async fn leave(self) -> FinalReport {
        let Link::Up(stream) = self.link else {
            return match self.over {
                Some(_) => FinalReport::NotNeeded,
                None => FinalReport::Failed(Refusal::new(Reason::Unreachable, "the daemon is away")),
            };
        };
        tokio::select! {
            () = stream.goodbye() => {}
            () = self.place.clock.sleep(GOODBYE) => {}
        }
        if self.over.is_some() { FinalReport::NotNeeded } else { FinalReport::Delivered }
    }
}

/// The next message, where there is a stream to hear it on.
async fn heard(link: &mut Link) -> Result<Option<v1::KeepAliveResponse>, tonic::Status> {
    match link {
        Link::Up(stream) => stream.message().await,
        Link::Down(_) => std::future::pending().await,
    }
}

async fn changed(trust: &mut watch::Receiver<Arc<Trust>>) {
    if trust.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn svid_of(trust: &Trust) -> Option<[u8; 32]> {
    trust.svid.as_ref().map(|svid| svid.leaf().x5t_s256)
}

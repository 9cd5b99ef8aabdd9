//! The keep-alive stream of a member: the notices to the member, and the effect of the end of the stream.

use std::sync::Arc;

use tokio::sync::{broadcast::error::RecvError, watch};

use super::{
    caller::Caller,
    joining::membership_over,
    members::MemberUseCases,
    names,
    presence::{MemberKey, Presence},
    refusals::job_not_found,
    session::MemberSession,
};
use crate::{
    fence::{Revision, Stand},
    job::{AttemptState, Change, Drain, JobState, MemberState},
    ledger::Actor,
    name::{FenceKind, FenceName, JobId, Outcome, SpiffeId},
    policy::Rpc,
    reason::{Reason, Refusal},
    secret::SecretDigest,
    state::LockName,
};

/// Something that a member must act on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    pub kind: NoticeKind,
    pub reason: Reason,
    pub message: String,
}

/// The action that a member must take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoticeKind {
    /// Stop: access has ended and does not come back in this attempt.
    Revoked,
    /// Finish the work: the attempt or member drains.
    Drain(Drain),
    /// Connect to the daemon again.
    Reconnect,
    /// Ask for new leases: the old leases have ended.
    Reissue,
}

/// A member's keep-alive stream, as the broker sees it. If the last stream of a member is dropped without
/// [`Attachment::goodbye`], the member is away at once and its leases end.
pub struct Attachment {
    members: MemberUseCases,
    key: MemberKey,
    /// The digest of the session secret when the stream was opened. Another process may have taken over the instance
    /// since then.
    proof: SecretDigest,
    holder: SpiffeId,
    presence: Arc<Presence>,
    names: Vec<FenceName>,
    stand: Stand,
    /// The revision of the rules that determined `names`.
    revision: Revision,
    leases_ended: u64,
    calls: watch::Receiver<u64>,
    drain_sent: Option<Drain>,
    left: bool,
}

impl Attachment {
    /// Counts a heartbeat of the member.
    pub fn beat(&self) {
        self.presence.beat(self.members.context.clock.now().boot);
    }

    /// Ends the membership at the member's request. The member's leases end too. The state of the attempt stays.
    pub fn goodbye(mut self) {
        self.left = true;
        let (job, attempt, instance) = self.key.clone();
        let now = self.members.context.clock.now().lease;
        let by = Actor::Daemon("the member said goodbye".into());
        let done = self.members.context.state.narrow(job, &by, |j| {
            let joined = j
                .running(attempt)
                .ok()
                .and_then(|a| a.members.get(&instance))
                .is_some_and(|m| m.session == self.proof && m.is_present());
            Ok::<_, std::convert::Infallible>(if joined {
                vec![Change::MemberLeft {
                    attempt,
                    instance: instance.clone(),
                    at: now,
                    outcome: Some(Outcome::Unknown),
                    detail: "it said goodbye, but not how its work ended".into(),
                }]
            } else {
                Vec::new()
            })
        });
        if let Ok(done) = done {
            self.members.endings.sweep(&done.lowered, "released");
        }
        // Keep a presence that another process began in the meantime with the same key.
        self.members.context.sessions.forget(&self.key, &self.presence);
        // Any other stream of the member ends too.
        self.presence.call();
    }

    /// Waits for the next notice to the member. `Revoked` is the last notice.
    pub async fn notice(&mut self) -> Notice {
        loop {
            self.calls.mark_unchanged();
            if let Some(notice) = self.job_notice() {
                return notice;
            }
            if let Some(message) = self.leases_over() {
                return Notice { kind: NoticeKind::Reissue, reason: Reason::Revoked, message };
            }
            if self.calls.changed().await.is_err() {
                return Notice {
                    kind: NoticeKind::Reconnect,
                    reason: Reason::ShuttingDown,
                    message: "the daemon is stopping".into(),
                };
            }
        }
    }

    /// Returns the cause if leases of the member ended since the last check and the membership goes on.
    fn leases_over(&mut self) -> Option<String> {
        let revision = self.members.context.fences.revision();
        if self.stand.lowered().is_some() || revision != self.revision {
            // A new catalog may put the leases behind other names. The new stand is taken before the last check of the
            // old stand, so that no lowering is missed between them.
            self.names = self.names_today();
            let next = self.members.context.fences.observe(self.names.iter().cloned());
            let before = std::mem::replace(&mut self.stand, next);
            self.revision = revision;
            if let Some((name, _)) = before.lowered() {
                return Some(self.end_of(name));
            }
        }
        let ended = self.presence.leases_ended();
        (std::mem::replace(&mut self.leases_ended, ended) != ended)
            .then(|| "one lease of this member was ended".to_owned())
    }

    /// Returns a text about the end of access behind a name. It says only what the member may know.
    fn end_of(&self, name: &FenceName) -> String {
        let (access, context) = (&self.members.access, &self.members.context);
        if let Err(locked) = access.check_unlocked(&self.holder, self.names.iter()) {
            return locked_text(&locked);
        }
        let names: Vec<_> = self.names.iter().collect();
        if !access.may_know(&self.holder, &LockName::Name(name.clone()), &names) {
            return match name.kind() {
                FenceKind::Resource(_) => format!("{name} was revoked by its owner"),
                _ => "a name of another tenant on which this job depends was revoked".to_owned(),
            };
        }
        match context.reasons.of(name) {
            Some(reason) => format!("{name} was revoked: {reason}"),
            None => format!("{name} was revoked"),
        }
    }

    fn names_today(&self) -> Vec<FenceName> {
        let (id, attempt, instance) = &self.key;
        match self.members.context.state.job(*id) {
            Some(job) => {
                names::of_member(&self.members.context.rules(), &job, *attempt, instance, &self.holder)
            }
            None => self.names.clone(),
        }
    }

    fn job_notice(&mut self) -> Option<Notice> {
        let (id, attempt, instance) = &self.key;
        let ended =
            |reason: Reason, message: String| Some(Notice { kind: NoticeKind::Revoked, reason, message });
        let Some(job) = self.members.context.state.job(*id) else {
            return ended(Reason::JobClosed, "the job was closed long ago".into());
        };
        let detail = |d: &str| if d.is_empty() { String::new() } else { format!(": {d}") };
        if let JobState::Closed(outcome) = job.state {
            let reason = if outcome == Outcome::Revoked { Reason::Revoked } else { Reason::JobClosed };
            return ended(reason, format!("the job is closed ({outcome}){}", detail(&job.detail)));
        }
        let a = job.attempt(*attempt)?;
        match a.state {
            AttemptState::Ended(Outcome::Superseded) => {
                return ended(
                    Reason::AttemptStale,
                    format!("attempt {attempt} is over{}", detail(&a.detail)),
                );
            }
            AttemptState::Ended(outcome) => {
                let reason = if outcome == Outcome::Revoked { Reason::Revoked } else { Reason::AttemptEnded };
                return ended(reason, format!("attempt {attempt} is over ({outcome}){}", detail(&a.detail)));
            }
            AttemptState::Running | AttemptState::Suspended | AttemptState::Draining(_) => {}
        }
        if let Some(drain) = a.drain_of(instance)
            && self.drain_sent != Some(drain)
        {
            self.drain_sent = Some(drain);
            let message = match a.state {
                AttemptState::Draining(_) => format!("attempt {attempt} is draining{}", detail(&a.detail)),
                _ => "only you are draining; the other members go on".to_owned(),
            };
            return Some(Notice { kind: NoticeKind::Drain(drain), reason: Reason::AttemptDraining, message });
        }
        let member = a.members.get(instance).filter(|m| m.session == self.proof);
        match member.map(|m| m.state) {
            Some(MemberState::Joined) => None,
            Some(MemberState::Away { .. }) => Some(Notice {
                kind: NoticeKind::Reconnect,
                reason: Reason::NotJoined,
                message: "the daemon marked you as away: join again".into(),
            }),
            // If a lock ended the membership, the notice says so.
            Some(MemberState::Left | MemberState::Lost) | None => {
                match self.members.access.check_unlocked(&self.holder, self.names.iter()) {
                    Ok(()) => {
                        let over = member.map(|m| membership_over(&job, *attempt, m));
                        ended(Reason::NotJoined, over.unwrap_or_else(|| "the membership is over".into()))
                    }
                    Err(locked) => ended(locked.reason, locked_text(&locked)),
                }
            }
        }
    }
}

/// Writes the reason of a lock as one line.
fn locked_text(locked: &Refusal) -> String {
    locked.fact("why").map_or_else(|| locked.text.to_string(), |why| format!("{}: {why}", locked.text))
}

impl Drop for Attachment {
    fn drop(&mut self) {
        let was_last = self.presence.close_stream();
        // A stream may end long after its member was lost and came back with another stream.
        if was_last && !self.left && self.members.context.sessions.forget_gone(&self.key, &self.presence) {
            let (job, attempt, instance) = &self.key;
            self.members.mark_away(*job, *attempt, instance, "its connection was lost");
        }
    }
}

impl MemberUseCases {
    /// Opens a member's keep-alive stream.
    pub fn attach(&self, caller: &Caller, session: &MemberSession) -> Result<Attachment, Refusal> {
        let (job, _) = self.access.member(caller, session)?;
        self.access.authorize_job(caller, Rpc::KeepAlive, &job, "")?;
        let revision = self.context.fences.revision();
        let names =
            names::of_member(&self.context.rules(), &job, session.attempt, &session.instance, caller.id());
        // From here on, changes wake the stream. The stream checks the state after this point, so it misses no change.
        let key = (session.job, session.attempt, session.instance.clone());
        let presence = self.context.sessions.open_stream(key.clone(), self.context.clock.now().boot);
        let (calls, leases_ended) = (presence.calls(), presence.leases_ended());
        let stand = self.context.fences.observe(names.iter().cloned());
        let attachment = Attachment {
            members: self.clone(),
            key,
            proof: session.secret.digest(),
            holder: caller.id().clone(),
            presence,
            names,
            stand,
            revision,
            leases_ended,
            calls,
            drain_sent: None,
            left: false,
        };
        // If this refuses, the attachment is dropped like any lost stream.
        self.access.member(caller, session)?;
        Ok(attachment)
    }

    /// Refuses a caller that may not keep the stream of a member of this job open.
    pub fn may_keep_alive(&self, caller: &Caller, job: JobId) -> Result<(), Refusal> {
        let job = self.context.state.job(job).ok_or_else(job_not_found)?;
        self.access.authorize_job(caller, Rpc::KeepAlive, &job, "")
    }

    /// Wakes the streams of the members that a lowering concerns, and no others.
    pub(super) async fn call_members(&self) {
        let mut lowerings = self.context.fences.listen();
        self.context.sessions.call_all();
        loop {
            match lowerings.recv().await {
                Ok(lowering) => self.call_those_behind(&lowering.name),
                // The lowerings that were missed may concern any member.
                Err(RecvError::Lagged(_)) => self.context.sessions.call_all(),
                Err(RecvError::Closed) => return,
            }
        }
    }

    fn call_those_behind(&self, name: &FenceName) {
        match name.kind() {
            FenceKind::Member(job, attempt, instance) | FenceKind::MemberReading(job, attempt, instance) => {
                self.context.sessions.call(&(job, attempt, instance));
            }
            FenceKind::Attempt(job, attempt) | FenceKind::AttemptReading(job, attempt) => {
                if let Some(job) = self.context.state.job(job) {
                    self.context.sessions.call_attempt(&job, attempt);
                }
            }
            FenceKind::Job(job) => {
                if let Some(job) = self.context.state.job(job)
                    && let Some(last) = job.attempts.last().map(|a| a.number)
                {
                    self.context.sessions.call_attempt(&job, last);
                }
            }
            // No member stands behind the name of a lease. The operation that ends a lease wakes the lease's holder.
            FenceKind::Lease(_) => {}
            FenceKind::Epoch
            | FenceKind::Domain(_)
            | FenceKind::Tenant(_)
            | FenceKind::Identity(_)
            | FenceKind::Human(_)
            | FenceKind::Image(_)
            | FenceKind::Resource(_) => self.context.sessions.call_all(),
        }
    }
}

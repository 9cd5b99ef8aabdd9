//! Members: joining an attempt, beating while they live, going.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use dashmap::DashMap;
use tokio::sync::{broadcast::error::RecvError, watch};

use super::{
    Broker, Caller, names,
    refusals::{job_not_found, move_refusal, state_refusal},
};
use crate::{
    catalog::IdentityUse,
    clock::{BootTime, LeaseTime},
    fence::Stand,
    job::{AttemptState, Change, Drain, Job, JobState, Join, Member, MemberState},
    ledger::Actor,
    limits,
    name::{
        AttemptNumber, FenceKind, FenceName, Half, InstanceName, JobId, Outcome, ResourceName, Scope,
        SpiffeId,
    },
    policy::Rpc,
    reason::{Reason, Refusal},
    secret::{Secret, SecretDigest},
    state::{Belongs, Refused},
};

/// Names a member and proves that the caller is it.
#[derive(Clone, Debug)]
pub struct Session {
    pub job: JobId,
    pub attempt: AttemptNumber,
    pub instance: InstanceName,
    pub secret: Secret,
}

/// One credential that may be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    pub half: Half,
    pub audience: SpiffeId,
    pub scopes: Vec<Scope>,
    pub locations: BTreeMap<ResourceName, String>,
}

/// A member, joined.
#[derive(Debug)]
pub struct JoinedMember {
    pub job: Arc<Job>,
    pub member: Member,
    pub offers: Vec<Offer>,
}

/// Something that a member must act on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    pub kind: NoticeKind,
    pub reason: Reason,
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoticeKind {
    /// Access has ended and does not come back in this attempt.
    Revoked,
    /// Finish.
    Drain(Drain),
    /// Connect again.
    Reconnect,
    /// The leases have ended; new ones may be asked for.
    Reissue,
}

type MemberKey = (JobId, AttemptNumber, InstanceName);

/// The connections of joined members. A member is away when it has none.
#[derive(Default)]
pub(super) struct Sessions(DashMap<MemberKey, Arc<Presence>>);

/// One member being there, from a join to its loss.
pub(super) struct Presence {
    streams: AtomicU32,
    last_beat: AtomicU64,
    /// Whether a token of it was bound to a certificate: none that comes later is bound to less.
    pinned: AtomicBool,
    /// Raised to have its streams look at what has become of it.
    calls: watch::Sender<u64>,
}

impl Presence {
    fn new(beat: BootTime) -> Arc<Self> {
        Arc::new(Presence {
            streams: AtomicU32::new(0),
            last_beat: AtomicU64::new(beat.0),
            pinned: AtomicBool::new(false),
            calls: watch::Sender::new(0),
        })
    }

    /// Has its streams look.
    pub(super) fn call(&self) {
        self.calls.send_modify(|n| *n = n.wrapping_add(1));
    }
}

impl Sessions {
    /// Members whose last beat is older than the window.
    pub(super) fn silent(&self, now: BootTime, window: Duration) -> Vec<MemberKey> {
        let is_silent = |p: &Presence| now.since(BootTime(p.last_beat.load(Ordering::Acquire))) > window;
        self.0.iter().filter(|p| is_silent(p)).map(|p| p.key().clone()).collect()
    }

    /// Begins a presence anew: a member that joins, or is back. What is left of an earlier one has no say any more.
    fn begin(&self, key: MemberKey, beat: BootTime) {
        if let Some(before) = self.0.insert(key, Presence::new(beat)) {
            before.call();
        }
    }

    /// Makes sure that there is one.
    fn take_up(&self, key: MemberKey, beat: BootTime) {
        self.0.entry(key).or_insert_with(|| Presence::new(beat));
    }

    /// The present one, with one stream more. Counted while the map's entry is held, so that nobody forgets it in between.
    fn open_stream(&self, key: MemberKey, beat: BootTime) -> Arc<Presence> {
        let held = self.0.entry(key).or_insert_with(|| Presence::new(beat));
        held.streams.fetch_add(1, Ordering::AcqRel);
        held.last_beat.fetch_max(beat.0, Ordering::AcqRel);
        held.clone()
    }

    fn has(&self, key: &MemberKey) -> bool {
        self.0.contains_key(key)
    }

    /// Forgets a member that is still silent. None where it has beaten meanwhile.
    pub(super) fn forget_silent(
        &self,
        key: &MemberKey,
        now: BootTime,
        window: Duration,
    ) -> Option<Arc<Presence>> {
        let silent = |p: &Presence| now.since(BootTime(p.last_beat.load(Ordering::Acquire))) > window;
        self.0.remove_if(key, |_, p| silent(p)).map(|(_, p)| p)
    }

    /// Forgets a member whose last stream this presence saw. False where the member is there by another presence, having come
    /// back since, or by another stream.
    fn forget_gone(&self, key: &MemberKey, presence: &Arc<Presence>) -> bool {
        let gone = |p: &Arc<Presence>| Arc::ptr_eq(p, presence) && p.streams.load(Ordering::Acquire) == 0;
        self.0.remove_if(key, |_, p| gone(p)).is_some()
    }

    /// Forgets a member that has left, by the presence that it was seen by.
    fn forget(&self, key: &MemberKey, presence: &Arc<Presence>) {
        self.0.remove_if(key, |_, p| Arc::ptr_eq(p, presence));
    }

    /// Has one member look.
    fn call(&self, key: &MemberKey) {
        if let Some(presence) = self.0.get(key) {
            presence.call();
        }
    }

    fn call_all(&self) {
        self.0.iter().for_each(|p| p.call());
    }

    /// Whether a token that is issued now is bound to the certificate: where it must be, or where one before it was.
    pub(super) fn pin(&self, key: &MemberKey, must: bool) -> bool {
        self.0.get(key).map_or(must, |p| p.pinned.fetch_or(must, Ordering::AcqRel) || must)
    }
}

impl Broker {
    /// Makes the caller a member of an attempt.
    pub async fn join_attempt(
        &self,
        caller: &Caller,
        id: JobId,
        attempt: AttemptNumber,
        instance: &InstanceName,
        session: SecretDigest,
        ticket: Option<&str>,
    ) -> Result<JoinedMember, Refusal> {
        self.widening()?;
        let named = self.state.job(id).ok_or_else(job_not_found)?;
        let _turn = self.turn_to_join(&named, attempt, instance, caller.id()).await?;
        let revision = self.fences.revision();
        let names = names::of_member(&self.rules(), &named, attempt, instance, caller.id());
        let stand = self.fences.stand(names.iter().cloned());

        let job = self.state.job(id).ok_or_else(job_not_found)?;
        // Who asks is looked up after the revision was read, as everything that is decided by.
        let caller = &self.caller(&caller.peer)?;
        self.authorize_job(caller, Rpc::JoinAttempt, &job, "")?;
        if !job.spec.members.may_join(caller.id()) {
            return Err(Refusal::new(
                Reason::NotAMember,
                "the job does not name your identity in members.join",
            )
            .with("you", caller.id().to_string())
            .fix("add it to members.join in the job file, or run with an identity that is there"));
        }
        self.unlocked(names.iter())?;
        if caller.principal.identity == IdentityUse::Shared {
            let running = job.running(attempt).map_err(move_refusal)?;
            let brought = ticket.and_then(Secret::from_text).map(|t| t.digest());
            if brought != Some(running.ticket) {
                return Err(Refusal::new(
                    Reason::TicketRequired,
                    "several jobs share your identity, so joining needs the ticket of this attempt",
                )
                .fix("hand over by file what BeginAttempt answered as ticket, or use an identity of its own per job"));
            }
        }
        let belongs = match caller.principal.identity {
            IdentityUse::Job => Belongs::ToOneJob,
            IdentityUse::Shared => Belongs::ToAny,
        };
        let now = self.clock.now().lease;
        let window = beat_window(self.settings.beat, self.settings.lost_after);
        let widened = self
            .state
            .admit(id, (caller.id(), belongs), |j| {
                Ok(match j.join(attempt, instance, caller.id(), session, window, now)? {
                    Join::New(change) => Some(change),
                    Join::Same => None,
                })
            })
            .await
            .map_err(|r| {
                if matches!(r, Refused::Bound(_)) {
                    tracing::warn!(identity = %caller.id(), job = %id, why = %r, "an identity of one job asked for another");
                    metrics::counter!("leasehold_identities_in_several_jobs_total", "kind" => "job").increment(1);
                }
                state_refusal(r, move_refusal)
            })?;
        if widened.changed {
            self.report_several(&widened.job, caller.id());
        }
        // The member's own fence may have been lowered when it was lost before; every other lowering since ends the joining.
        let own = crate::name::FenceName::member(id, attempt, instance.clone());
        if let Some(name) = stand.lowered_names().find(|name| **name != own) {
            let refusal = Refusal::new(Reason::Revoked, format!("{name} was revoked while you were joining"));
            self.member_gone(id, attempt, instance, &refusal.text);
            return Err(refusal);
        }
        // Rules or locks on prefixes changed while it was recorded: asked again, by those of today.
        if self.fences.revision() != revision {
            let today = self.caller(&caller.peer).and_then(|caller| {
                self.authorize_job(&caller, Rpc::JoinAttempt, &widened.job, "")?;
                self.unlocked(names.iter())
            });
            if let Err(refusal) = today {
                self.member_gone(id, attempt, instance, &refusal.text);
                return Err(refusal);
            }
        }
        let member = widened
            .job
            .running(attempt)
            .map_err(move_refusal)?
            .members
            .get(instance)
            .cloned()
            .ok_or_else(|| Refusal::new(Reason::NotJoined, "the membership ended meanwhile"))?;
        // Somebody must beat soon, or the member is away again.
        let (key, beat) = ((id, attempt, instance.clone()), self.clock.now().boot);
        match widened.changed {
            true => self.sessions.begin(key, beat),
            false => self.sessions.take_up(key, beat),
        }
        let offers = self.offers(&widened.job);
        Ok(JoinedMember { job: widened.job, member, offers })
    }

    /// Says of an identity that it is in several open jobs now. Once for each job of it, not for each of its members.
    fn report_several(&self, job: &Job, id: &SpiffeId) {
        if job.current().is_none_or(|a| a.members.instances_of(id) > 1) {
            return;
        }
        let others = self.state.open_elsewhere(id, job.id);
        if !others.is_empty() {
            tracing::warn!(identity = %id, job = %job.id, others = others.len(), "an identity is in several open jobs");
            metrics::counter!("leasehold_identities_in_several_jobs_total", "kind" => "shared").increment(1);
        }
    }

    /// What whoever looks at a job should know of its identities.
    pub fn notes_on(&self, job: &Job) -> Vec<String> {
        let note = |(id, jobs): (SpiffeId, Vec<JobId>)| {
            let shown: Vec<String> = jobs.iter().take(3).map(ToString::to_string).collect();
            let more = if jobs.len() > shown.len() {
                format!(" and {} more", jobs.len() - shown.len())
            } else {
                String::new()
            };
            format!("{id} is a member of {}{more} too", shown.join(", "))
        };
        self.state.in_several(job).into_iter().map(note).collect()
    }

    /// The member that a session names, where the caller is it and it is joined. Anything else is one of three answers:
    /// the job is not there for the caller, the attempt is not the current one, or the caller is not that member.
    pub(super) fn member(&self, caller: &Caller, session: &Session) -> Result<(Arc<Job>, Member), Refusal> {
        let job = self.state.job(session.job).ok_or_else(job_not_found)?;
        if caller.relations(&job).is_empty() {
            return Err(job_not_found());
        }
        let a = job.running(session.attempt).map_err(move_refusal)?;
        let m = a
            .members
            .get(&session.instance)
            .filter(|m| m.spiffe_id == *caller.id() && m.session == session.secret.digest())
            .cloned()
            .ok_or_else(|| {
                Refusal::new(
                    Reason::SessionMismatch,
                    format!("you are not the member {} of this attempt", session.instance),
                )
                .fix("join first; a session belongs to one identity, one instance and one secret")
            })?;
        match m.state {
            MemberState::Joined => Ok((job, m)),
            MemberState::Away { .. } => Err(Refusal::new(Reason::NotJoined, "you are away: join again")),
            MemberState::Left | MemberState::Lost => {
                // A lock that ended the membership says more than that it is over.
                let names =
                    names::of_member(&self.rules(), &job, session.attempt, &session.instance, caller.id());
                self.unlocked(names.iter())?;
                Err(Refusal::new(Reason::NotJoined, "you are no longer a member of this attempt"))
            }
        }
    }

    /// Takes up a member's keep-alive stream.
    pub fn attach(self: &Arc<Self>, caller: &Caller, session: &Session) -> Result<Attachment, Refusal> {
        let (job, _) = self.member(caller, session)?;
        self.authorize_job(caller, Rpc::KeepAlive, &job, "")?;
        let names = names::of_member(&self.rules(), &job, session.attempt, &session.instance, caller.id());
        // It is called from here on, and looks at once: nothing falls between the two.
        let key = (session.job, session.attempt, session.instance.clone());
        let presence = self.sessions.open_stream(key.clone(), self.clock.now().boot);
        let calls = presence.calls.subscribe();
        let stand = self.fences.observe(names.iter().cloned());
        let attachment = Attachment {
            broker: self.clone(),
            key,
            proof: session.secret.digest(),
            presence,
            names,
            stand,
            calls,
            drain_told: None,
            left: false,
        };
        // Dropped where it is refused, as any stream that is lost.
        self.member(caller, session)?;
        Ok(attachment)
    }

    /// Calls the members whom a lowering concerns, each alone, for as long as the daemon lives: a lowering of one member costs
    /// the thousands of others nothing.
    pub(super) async fn calling(&self) {
        let mut lowerings = self.fences.listen();
        self.sessions.call_all();
        loop {
            match lowerings.recv().await {
                Ok(lowering) => self.call_those_behind(&lowering.name),
                // What was missed may concern anybody.
                Err(RecvError::Lagged(_)) => self.sessions.call_all(),
                Err(RecvError::Closed) => return,
            }
        }
    }

    fn call_those_behind(&self, name: &FenceName) {
        match name.kind() {
            FenceKind::Member(job, attempt, instance) | FenceKind::MemberReading(job, attempt, instance) => {
                self.sessions.call(&(job, attempt, instance));
            }
            FenceKind::Attempt(job, attempt) | FenceKind::AttemptReading(job, attempt) => {
                if let Some(job) = self.state.job(job) {
                    self.call_attempt(&job, attempt);
                }
            }
            FenceKind::Job(job) => {
                if let Some(job) = self.state.job(job)
                    && let Some(last) = job.attempts.last().map(|a| a.number)
                {
                    self.call_attempt(&job, last);
                }
            }
            // No member stands behind the name of a lease.
            FenceKind::Lease(_) => {}
            FenceKind::Epoch
            | FenceKind::Domain(_)
            | FenceKind::Tenant(_)
            | FenceKind::Identity(_)
            | FenceKind::Human(_)
            | FenceKind::Resource(_) => self.sessions.call_all(),
        }
    }

    /// Has all members of an attempt look.
    pub(super) fn call_attempt(&self, job: &Job, attempt: AttemptNumber) {
        let Some(a) = job.attempt(attempt) else { return };
        for (instance, _) in a.members.iter() {
            self.sessions.call(&(job.id, attempt, instance.clone()));
        }
    }

    /// Takes a member out of sight: its leases end, and it may come back.
    pub(super) fn member_gone(
        &self,
        id: JobId,
        attempt: AttemptNumber,
        instance: &InstanceName,
        detail: &str,
    ) {
        let now = self.clock.now().lease;
        let by = Actor::Daemon(detail.to_owned());
        let done = self.state.narrow(id, &by, |j| {
            Ok::<_, std::convert::Infallible>(j.away(attempt, instance, detail, now).into_iter().collect())
        });
        if let Ok(done) = done
            && !done.lowered.is_empty()
        {
            tracing::info!(job = %id, %attempt, %instance, detail, "member away");
            metrics::counter!("leasehold_members_away_total").increment(1);
            self.sweep(&done.lowered, "member away");
        }
    }

    /// A member that counts as joined though nothing of it is there, and has not joined just now, is away.
    pub(super) fn lose_the_absent(&self, job: &Job, now: LeaseTime, window: Duration) {
        let Some(a) = job.current() else { return };
        for (instance, m) in a.members.iter() {
            let key = (job.id, a.number, instance.clone());
            if m.state == MemberState::Joined && now.since(m.joined) > window && !self.sessions.has(&key) {
                self.member_gone(job.id, a.number, instance, "it is not there");
            }
        }
    }

    /// One credential per half and audience, with what the job does there.
    pub(super) fn offers(&self, job: &Job) -> Vec<Offer> {
        let rules = self.rules();
        let mut offers: BTreeMap<(Half, SpiffeId), Offer> = BTreeMap::new();
        for name in job.spec.read.iter().chain(&job.spec.write) {
            let Some(r) = rules.catalog().resource(name) else { continue };
            let scope = Scope::whole(name.clone());
            let half = scope.half();
            let offer = offers.entry((half, r.audience.clone())).or_insert_with(|| Offer {
                half,
                audience: r.audience.clone(),
                scopes: Vec::new(),
                locations: BTreeMap::new(),
            });
            offer.scopes.push(scope);
            let mut location = r.location.clone();
            if half == Half::Writing {
                location.push_str(&format!("{}/", job.id));
            }
            offer.locations.insert(name.clone(), location);
        }
        offers.into_values().collect()
    }
}

/// A member's keep-alive stream, as the broker sees it. Dropping it without [`Attachment::goodbye`] is a loss: where it was
/// the member's last stream, the member is away at once and its leases are over.
pub struct Attachment {
    broker: Arc<Broker>,
    key: MemberKey,
    /// Of the session that it was taken up with: another process may have taken the instance over since.
    proof: SecretDigest,
    presence: Arc<Presence>,
    names: Vec<crate::name::FenceName>,
    stand: Stand,
    calls: watch::Receiver<u64>,
    drain_told: Option<Drain>,
    left: bool,
}

impl Attachment {
    /// The member lives.
    pub fn beat(&self) {
        let now = self.broker.clock.now().boot;
        self.presence.last_beat.fetch_max(now.0, Ordering::AcqRel);
    }

    /// The member goes by itself. Its leases end with it; the attempt's state stays.
    pub fn goodbye(mut self) {
        self.left = true;
        let (job, attempt, instance) = self.key.clone();
        let now = self.broker.clock.now().lease;
        let by = Actor::Daemon("the member said goodbye".into());
        let done = self.broker.state.narrow(job, &by, |j| {
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
                    detail: "it said goodbye, and not how its work ended".into(),
                }]
            } else {
                Vec::new()
            })
        });
        if let Ok(done) = done {
            self.broker.sweep(&done.lowered, "released");
        }
        // Nor is what another process has begun since, in the same place, forgotten.
        self.broker.sessions.forget(&self.key, &self.presence);
        // Another stream of it, if there is one, is over too.
        self.presence.call();
    }

    /// The next thing that the member must act on. After `Revoked` nothing comes.
    pub async fn notice(&mut self) -> Notice {
        loop {
            self.calls.mark_unchanged();
            if let Some(notice) = self.job_notice() {
                return notice;
            }
            if let Some((name, _)) = self.stand.lowered() {
                let message = format!("{name} was revoked");
                self.stand = self.broker.fences.observe(self.names.iter().cloned());
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

    fn job_notice(&mut self) -> Option<Notice> {
        let (id, attempt, instance) = &self.key;
        let ended =
            |reason: Reason, message: String| Some(Notice { kind: NoticeKind::Revoked, reason, message });
        let Some(job) = self.broker.state.job(*id) else {
            return ended(Reason::JobClosed, "the job is closed, and was long ago".into());
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
            && self.drain_told != Some(drain)
        {
            self.drain_told = Some(drain);
            let message = match a.state {
                AttemptState::Draining(_) => format!("attempt {attempt} is draining{}", detail(&a.detail)),
                _ => "you are draining, alone; the others go on".to_owned(),
            };
            return Some(Notice { kind: NoticeKind::Drain(drain), reason: Reason::AttemptDraining, message });
        }
        match a.members.get(instance).filter(|m| m.session == self.proof).map(|m| m.state) {
            Some(MemberState::Joined) => None,
            Some(MemberState::Away { .. }) => Some(Notice {
                kind: NoticeKind::Reconnect,
                reason: Reason::NotJoined,
                message: "you were taken for lost: join again".into(),
            }),
            // A lock that ended the membership says more than that it is over.
            Some(MemberState::Left | MemberState::Lost) | None => {
                match self.broker.unlocked(self.names.iter()) {
                    Ok(()) => ended(Reason::NotJoined, "the membership is over".into()),
                    Err(locked) => ended(locked.reason, locked_text(&locked)),
                }
            }
        }
    }
}

/// A notice is one line.
fn locked_text(locked: &Refusal) -> String {
    locked.fact("why").map_or_else(|| locked.text.to_string(), |why| format!("{}: {why}", locked.text))
}

impl Drop for Attachment {
    fn drop(&mut self) {
        let was_last = self.presence.streams.fetch_sub(1, Ordering::AcqRel) == 1;
        // A stream may end long after its member was lost and came back by another one.
        if was_last && !self.left && self.broker.sessions.forget_gone(&self.key, &self.presence) {
            let (job, attempt, instance) = &self.key;
            self.broker.member_gone(*job, *attempt, instance, "its connection was lost");
        }
    }
}

/// What a beat window amounts to.
pub(super) fn beat_window(beat: Duration, lost_after: u32) -> Duration {
    beat.saturating_mul(lost_after.max(1)).max(limits::TTL_MIN)
}

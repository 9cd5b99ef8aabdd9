//! What the records say, one after the other, and the same as a text that a ledger segment can begin with.
//!
//! The text is a function of the records alone: whoever reads all of them, and whoever begins with a snapshot on the way,
//! comes to the same bytes. Nothing here reads a clock; what time makes of it is for [`rebuilt`](Recorded::rebuilt).

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{
    Lock, LockName, Locks, Rebuilt, Use,
    identities::uses_of,
    rebuild::{Key, KeyOf, suspend},
    records::{
        change_of, change_record, gate_of, gate_record, input_of, input_record, job_of, seq_of, spec_of,
        spec_record,
    },
};
use crate::{
    clock::LeaseTime,
    fence::Seq,
    job::{Attempt, AttemptState, Change, Drain, Job, JobState, Member, MemberState},
    ledger::{self, Actor, Event, Fold},
    limits,
    name::{
        AttemptNumber, Digest, HumanName, InstanceName, JobId, Outcome, SpiffeId, SpiffePattern, TenantName,
    },
    secret::SecretDigest,
};

/// The version of the text. Raised whenever the same records give other bytes than before: an older text is then not
/// compared, and not begun with.
const FORM: u32 = 2;

/// All that outlives the process, as far as the records were read.
#[derive(Clone, Debug, Default)]
pub struct Recorded {
    jobs: HashMap<JobId, Entry>,
    /// In the order in which they were closed; the oldest beyond the bound are forgotten.
    closed: VecDeque<JobId>,
    /// Closed jobs that are no longer here.
    forgotten: u64,
    /// Idempotency keys of forgotten jobs, while they count.
    keys: BTreeMap<KeyOf, Key>,
    /// Identities of forgotten jobs, while they count.
    identities: BTreeMap<(SpiffeId, JobId), Use>,
    locks: Locks,
    seq: Seq,
    /// Whether the last life said that it ended.
    in_order: bool,
}

/// A job, and what it was before the records that widened it lately: those may be withdrawn, as long as their epoch lasts.
#[derive(Clone, Debug)]
struct Entry {
    job: Arc<Job>,
    /// The index of the record that made it.
    made: u64,
    before: Option<Before>,
}

/// A job before a record that widened it, and all that came from there on, that record first.
#[derive(Clone, Debug)]
struct Before {
    job: Arc<Job>,
    since: VecDeque<(u64, Change)>,
}

/// Changes that are kept to be made again after a withdrawal; past so many the oldest counts.
const SINCE_MAX: usize = limits::MEMBERS_MAX as usize;
/// How long a record that widens may still be withdrawn. It waits for the disk for [`limits::LEDGER_WAIT`]; this is far more.
const OPEN: Duration = limits::LEDGER_WAIT.saturating_mul(12);

impl Entry {
    fn apply(&mut self, index: u64, change: Change) {
        if change.widens() && self.before.is_none() {
            self.before = Some(Before { job: self.job.clone(), since: VecDeque::new() });
        }
        Arc::make_mut(&mut self.job).apply(&change);
        let Some(Before { job, since }) = &mut self.before else { return };
        let now = change.widened_at();
        since.push_back((index, change));
        // What came first and can no longer be withdrawn counts.
        let counts = |c: &Change| match (c.widened_at(), now) {
            (None, _) => true,
            (Some(at), Some(now)) => now.since(at) > OPEN,
            (Some(_), None) => false,
        };
        while let Some((_, first)) = since.front()
            && (since.len() > SINCE_MAX || counts(first))
        {
            Arc::make_mut(job).apply(first);
            since.pop_front();
        }
    }
}

impl Recorded {
    /// Takes one more event.
    pub fn take(&mut self, index: u64, event: Event) -> Result<(), &'static str> {
        self.seq = self.seq.max(seq_of(&event));
        self.in_order = matches!(event, Event::EpochEnded { .. });
        match event {
            Event::JobCreated(created) => {
                let job = job_of(*created)?;
                self.prune(job.created);
                let entry = Entry { job: Arc::new(job), made: index, before: None };
                if self.jobs.insert(entry.job.id, entry).is_some() {
                    return Err("it creates a job that is there already");
                }
            }
            // Nothing of the life before is under way any more.
            Event::EpochBegan(_) => self.jobs.values_mut().for_each(|e| e.before = None),
            Event::Withdrawn { index, job, .. } => self.withdraw(index, job),
            Event::LockSet { name, by, of, reason, at, until, .. } => {
                let name: LockName = name.parse().map_err(|_| "its lock has no valid name")?;
                self.locks.prune(at);
                self.locks.insert(Lock { name, reason, by, of, since: at, until });
            }
            Event::LockLifted { name, .. } => {
                let name: LockName = name.parse().map_err(|_| "its lock has no valid name")?;
                self.locks.remove(&name);
            }
            other => {
                let Some((id, change, _)) = change_of(other) else { return Ok(()) };
                let Some(entry) = self.jobs.get_mut(&id) else {
                    // One that was forgotten is closed, and nothing changes it.
                    return if self.forgotten > 0 {
                        Ok(())
                    } else {
                        Err("it is about a job that is not there")
                    };
                };
                let was_closed = entry.job.is_closed();
                entry.apply(index, change);
                if !was_closed && entry.job.is_closed() {
                    self.remember_closed(id);
                }
            }
        }
        Ok(())
    }

    /// Undoes a record that widened, and makes again what came after it.
    fn withdraw(&mut self, index: u64, id: JobId) {
        let Some(entry) = self.jobs.get_mut(&id) else { return };
        if entry.made == index {
            // Nobody was told of it.
            if entry.job.attempts.is_empty() && !entry.job.is_closed() {
                self.jobs.remove(&id);
            }
            return;
        }
        let Some(Before { job, since }) = &mut entry.before else { return };
        let Ok(place) = since.binary_search_by_key(&index, |(i, _)| *i) else { return };
        since.remove(place);
        let was_closed = entry.job.is_closed();
        entry.job = job.clone();
        let job = Arc::make_mut(&mut entry.job);
        since.iter().for_each(|(_, change)| job.apply(change));
        if !was_closed && entry.job.is_closed() {
            self.remember_closed(id);
        }
    }

    /// What a new life begins with: whoever was joined is away since `now`, and locks whose time is over are gone.
    pub fn rebuilt(&self, now: LeaseTime) -> Rebuilt {
        let mut locks = self.locks.clone();
        locks.prune(now);
        let jobs = self.ordered().map(|job| {
            let mut job = Job::clone(&job.job);
            suspend(&mut job, now);
            job
        });
        Rebuilt {
            jobs: jobs.collect(),
            keys: self.keys.iter().map(|(k, v)| (k.clone(), *v)).collect(),
            identities: self.identities.iter().map(|((id, _), u)| (id.clone(), *u)).collect(),
            locks,
            seq: self.seq,
            in_order: self.in_order,
        }
    }

    /// The closed ones as they were closed, then the open ones by id.
    fn ordered(&self) -> impl Iterator<Item = &Entry> {
        let mut open: Vec<&Entry> = self.jobs.values().filter(|e| !e.job.is_closed()).collect();
        open.sort_unstable_by_key(|e| e.job.id);
        self.closed.iter().filter_map(|id| self.jobs.get(id)).chain(open)
    }

    fn remember_closed(&mut self, id: JobId) {
        self.closed.push_back(id);
        while self.closed.len() > limits::JOBS_CLOSED_MAX {
            let Some(Entry { job, .. }) = self.closed.pop_front().and_then(|old| self.jobs.remove(&old))
            else {
                continue;
            };
            self.forgotten = self.forgotten.saturating_add(1);
            let (key, made) = Key::of(&job);
            self.keys.insert(key, made);
            self.identities.extend(uses_of(&job).into_iter().map(|(id, u)| ((id, job.id), u)));
        }
    }

    fn prune(&mut self, now: LeaseTime) {
        if !self.keys.is_empty() {
            self.keys.retain(|_, k| k.counts(now));
        }
        if !self.identities.is_empty() {
            self.identities.retain(|_, u| u.binds(now));
        }
    }
}

/// The ledger keeps one of these beside what it writes.
impl Fold for Recorded {
    fn form(&self) -> u32 {
        FORM
    }

    fn takes(&self, kind: &str) -> bool {
        !matches!(
            kind,
            "credential.issued"
                | "credential.cancelled"
                | "credential.renewed"
                | "leases.ended"
                | "denied"
                | "catalog.loaded"
                | "job.conflict"
                | "records.coalesced"
                | "snapshot"
        )
    }

    fn apply(&mut self, index: u64, event: Event) -> Result<(), &'static str> {
        self.take(index, event)
    }

    fn len(&self) -> usize {
        let forgotten = self.keys.len().saturating_add(self.identities.len());
        self.jobs.len().saturating_add(self.locks.len()).saturating_add(forgotten)
    }

    fn write(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut out = Vec::new();
        let mut line = |item: &Item| {
            serde_json::to_writer(&mut out, item)?;
            out.push(b'\n');
            Ok::<_, serde_json::Error>(())
        };
        line(&Item::Counts { seq: self.seq.0, forgotten: self.forgotten, in_order: self.in_order })?;
        for Entry { job, made, before } in self.ordered() {
            let by = || Actor::Daemon(String::new());
            let again = |(index, c): &(u64, Change)| SinceItem {
                index: *index,
                event: change_record(job.id, c, by(), None, Default::default()),
            };
            let before = before.as_ref().map(|Before { job, since }| BeforeItem {
                job: JobItem::of(job),
                since: since.iter().map(again).collect(),
            });
            let job = Box::new(JobItem::of(job));
            line(&Item::Job { job, made: *made, before: before.map(Box::new) })?;
        }
        for lock in self.locks.iter() {
            line(&Item::Lock {
                name: lock.name.to_string(),
                reason: lock.reason.clone(),
                by: lock.by.clone(),
                of: lock.of.clone(),
                since: lock.since,
                until: lock.until,
            })?;
        }
        for ((launcher, key), k) in &self.keys {
            let (launcher, key) = (launcher.clone(), key.clone());
            line(&Item::Key { launcher, key, job: k.job, spec: k.spec, at: k.at })?;
        }
        for ((identity, _), Use { job, first, closed }) in &self.identities {
            let identity = identity.clone();
            line(&Item::Identity { identity, job: *job, first: *first, closed: *closed })?;
        }
        Ok(out)
    }

    fn read(&mut self, text: &[u8]) -> Result<(), String> {
        let mut read = Recorded::default();
        for line in text.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
            match serde_json::from_slice(line).map_err(|e| e.to_string())? {
                Item::Counts { seq, forgotten, in_order } => {
                    (read.seq, read.forgotten, read.in_order) = (Seq(seq), forgotten, in_order);
                }
                Item::Job { job, made, before } => {
                    let job = Arc::new(job.job()?);
                    if job.is_closed() {
                        read.closed.push_back(job.id);
                    }
                    let before = match before {
                        None => None,
                        Some(before) => {
                            let change =
                                |s: SinceItem| change_of(s.event).map(|(_, change, _)| (s.index, change));
                            let since = before.since.into_iter().filter_map(change).collect();
                            Some(Before { job: Arc::new(before.job.job()?), since })
                        }
                    };
                    read.jobs.insert(job.id, Entry { job, made, before });
                }
                Item::Lock { name, reason, by, of, since, until } => {
                    let name = name.parse().map_err(|e: crate::name::NameError| e.to_string())?;
                    read.locks.insert(Lock { name, reason, by, of, since, until });
                }
                Item::Key { launcher, key, job, spec, at } => {
                    read.keys.insert((launcher, key), Key { job, spec, at });
                }
                Item::Identity { identity, job, first, closed } => {
                    read.identities.insert((identity, job), Use { job, first, closed });
                }
            }
        }
        *self = read;
        Ok(())
    }
}

/// One line of the text.
#[derive(Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case", deny_unknown_fields)]
enum Item {
    Counts {
        seq: u64,
        forgotten: u64,
        in_order: bool,
    },
    Job {
        job: Box<JobItem>,
        /// The index of the record that made it.
        made: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        before: Option<Box<BeforeItem>>,
    },
    Lock {
        name: String,
        reason: String,
        by: Actor,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        of: Option<TenantName>,
        since: LeaseTime,
        until: Option<LeaseTime>,
    },
    /// Of a job that was forgotten.
    Key {
        launcher: SpiffeId,
        key: String,
        job: JobId,
        spec: Digest,
        at: LeaseTime,
    },
    /// A member of a job that was forgotten.
    Identity {
        identity: SpiffeId,
        job: JobId,
        first: LeaseTime,
        closed: Option<LeaseTime>,
    },
}

/// A job before the records that may still be withdrawn, and these with all that came between them.
#[derive(Serialize, Deserialize)]
struct BeforeItem {
    job: JobItem,
    since: Vec<SinceItem>,
}

#[derive(Serialize, Deserialize)]
struct SinceItem {
    index: u64,
    event: Event,
}

#[derive(Serialize, Deserialize)]
struct JobItem {
    job: JobId,
    launcher: SpiffeId,
    acting_for: Option<HumanName>,
    key: String,
    spec: ledger::JobSpec,
    spec_digest: Digest,
    at: LeaseTime,
    ends: LeaseTime,
    inputs: Vec<ledger::Input>,
    state: JobStateItem,
    waiting_for: Vec<ledger::Gate>,
    attempts: Vec<AttemptItem>,
    closed: Option<LeaseTime>,
    detail: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum JobStateItem {
    AwaitingApproval,
    Ready,
    Running,
    Closed(Outcome),
}

#[derive(Serialize, Deserialize)]
struct AttemptItem {
    attempt: AttemptNumber,
    key: String,
    state: AttemptStateItem,
    at: LeaseTime,
    ended: Option<LeaseTime>,
    /// SHA-256 of the ticket.
    ticket: Digest,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    vouched: Vec<SpiffePattern>,
    detail: String,
    members: BTreeMap<InstanceName, MemberItem>,
    vacant_since: LeaseTime,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum AttemptStateItem {
    Running,
    Suspended,
    Draining(DrainItem),
    Ended(Outcome),
}

#[derive(Clone, Copy, Serialize, Deserialize)]
struct DrainItem {
    reading_ends: LeaseTime,
    writing_ends: LeaseTime,
}

#[derive(Serialize, Deserialize)]
struct MemberItem {
    member: SpiffeId,
    /// SHA-256 of the session secret.
    session: Digest,
    state: MemberStateItem,
    at: LeaseTime,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    drain: Option<DrainItem>,
    outcome: Option<Outcome>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum MemberStateItem {
    Joined,
    Away(LeaseTime),
    Left,
    Lost,
}

impl JobItem {
    fn of(job: &Job) -> Self {
        JobItem {
            job: job.id,
            launcher: job.launcher.clone(),
            acting_for: job.acting_for.clone(),
            key: job.idempotency_key.clone(),
            spec: spec_record(&job.spec),
            spec_digest: job.spec_digest,
            at: job.created,
            ends: job.ends,
            inputs: job.inputs.iter().map(input_record).collect(),
            state: match job.state {
                JobState::AwaitingApproval => JobStateItem::AwaitingApproval,
                JobState::Ready => JobStateItem::Ready,
                JobState::Running => JobStateItem::Running,
                JobState::Closed(outcome) => JobStateItem::Closed(outcome),
            },
            waiting_for: job.waiting_for.iter().map(gate_record).collect(),
            attempts: job.attempts.iter().map(AttemptItem::of).collect(),
            closed: job.closed,
            detail: job.detail.clone(),
        }
    }

    fn job(self) -> Result<Job, &'static str> {
        Ok(Job {
            id: self.job,
            spec: Arc::new(spec_of(self.spec)?),
            spec_digest: self.spec_digest,
            launcher: self.launcher,
            acting_for: self.acting_for,
            idempotency_key: self.key,
            created: self.at,
            ends: self.ends,
            inputs: self.inputs.into_iter().map(input_of).collect(),
            state: match self.state {
                JobStateItem::AwaitingApproval => JobState::AwaitingApproval,
                JobStateItem::Ready => JobState::Ready,
                JobStateItem::Running => JobState::Running,
                JobStateItem::Closed(outcome) => JobState::Closed(outcome),
            },
            waiting_for: self.waiting_for.into_iter().map(gate_of).collect(),
            attempts: self.attempts.into_iter().map(AttemptItem::attempt).collect(),
            closed: self.closed,
            detail: self.detail,
        })
    }
}

impl AttemptItem {
    fn of(a: &Attempt) -> Self {
        let member = |m: &Member| MemberItem {
            member: m.spiffe_id.clone(),
            session: Digest(m.session.0),
            state: match m.state {
                MemberState::Joined => MemberStateItem::Joined,
                MemberState::Away { since } => MemberStateItem::Away(since),
                MemberState::Left => MemberStateItem::Left,
                MemberState::Lost => MemberStateItem::Lost,
            },
            at: m.joined,
            drain: m.drain.map(DrainItem::of),
            outcome: m.outcome,
        };
        AttemptItem {
            attempt: a.number,
            key: a.key.clone(),
            state: match a.state {
                AttemptState::Running => AttemptStateItem::Running,
                AttemptState::Suspended => AttemptStateItem::Suspended,
                AttemptState::Draining(drain) => AttemptStateItem::Draining(DrainItem::of(drain)),
                AttemptState::Ended(outcome) => AttemptStateItem::Ended(outcome),
            },
            at: a.began,
            ended: a.ended,
            ticket: Digest(a.ticket.0),
            vouched: a.vouched.to_vec(),
            detail: a.detail.clone(),
            members: a.members.iter().map(|(i, m)| (i.clone(), member(m))).collect(),
            vacant_since: a.vacant_since,
        }
    }

    fn attempt(self) -> Attempt {
        let member = |m: MemberItem| Member {
            spiffe_id: m.member,
            session: SecretDigest(m.session.0),
            state: match m.state {
                MemberStateItem::Joined => MemberState::Joined,
                MemberStateItem::Away(since) => MemberState::Away { since },
                MemberStateItem::Left => MemberState::Left,
                MemberStateItem::Lost => MemberState::Lost,
            },
            joined: m.at,
            drain: m.drain.map(DrainItem::drain),
            outcome: m.outcome,
        };
        Attempt {
            number: self.attempt,
            key: self.key,
            state: match self.state {
                AttemptStateItem::Running => AttemptState::Running,
                AttemptStateItem::Suspended => AttemptState::Suspended,
                AttemptStateItem::Draining(drain) => AttemptState::Draining(drain.drain()),
                AttemptStateItem::Ended(outcome) => AttemptState::Ended(outcome),
            },
            began: self.at,
            ended: self.ended,
            members: self.members.into_iter().map(|(i, m)| (i, member(m))).collect(),
            ticket: SecretDigest(self.ticket.0),
            vouched: self.vouched.into(),
            detail: self.detail,
            vacant_since: self.vacant_since,
        }
    }
}

impl DrainItem {
    fn of(Drain { reading_ends, writing_ends }: Drain) -> Self {
        DrainItem { reading_ends, writing_ends }
    }

    fn drain(self) -> Drain {
        Drain { reading_ends: self.reading_ends, writing_ends: self.writing_ends }
    }
}

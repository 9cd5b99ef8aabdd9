//! What the records say, one after the other, and the same as a text that a ledger segment can begin with.
//!
//! The text is a function of the records alone: whoever reads all of them, and whoever begins with a snapshot on the way,
//! comes to the same bytes. Nothing here reads a clock; what time makes of it is for [`rebuilt`](Recorded::rebuilt).

use std::{
    collections::{BTreeMap, VecDeque},
    io::{self, BufRead, Write},
    sync::Arc,
    time::Duration,
};

use rpds::RedBlackTreeMapSync;
use serde::{Deserialize, Serialize};

use super::{
    Lock, LockName, Locks, Rebuilt, Use,
    closed::{Closed, Turn},
    identities::uses_of,
    rebuild::{Key, KeyOf, suspend},
    records::{
        change_of, change_record, gate_of, gate_record, input_of, input_record, job_of, seq_of, spec_of,
        spec_record,
    },
    size,
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
const FORM: u32 = 3;

/// All that outlives the process, as far as the records were read. A copy shares what is equal: one is written to a file
/// while the original goes on.
#[derive(Clone, Debug, Default)]
pub struct Recorded {
    jobs: RedBlackTreeMapSync<JobId, Entry>,
    /// In the order in which they were closed; what is past the bounds is forgotten.
    closed: Closed,
    /// Closed jobs that are no longer here.
    forgotten: u64,
    /// Idempotency keys of forgotten jobs, while they count, and these in the order of their times.
    keys: RedBlackTreeMapSync<KeyOf, Key>,
    keys_by_time: RedBlackTreeMapSync<(LeaseTime, KeyOf), ()>,
    /// Identities of forgotten jobs, while they count, and these in the order of the jobs' ends.
    identities: RedBlackTreeMapSync<(SpiffeId, JobId), Use>,
    identities_by_time: RedBlackTreeMapSync<(Option<LeaseTime>, SpiffeId, JobId), ()>,
    locks: Arc<Locks>,
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
    /// What it took when it was created, in bytes.
    creation: usize,
    /// Its place among the closed ones.
    turn: Option<Turn>,
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
    fn new(job: Job, made: u64, before: Option<Before>) -> Self {
        Entry { creation: size::of_creation(&job), job: Arc::new(job), made, turn: None, before }
    }

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
        // It says what the records before it gave, and may come after the end of an epoch.
        if matches!(event, Event::Snapshot(_)) {
            return Ok(());
        }
        self.seq = self.seq.max(seq_of(&event));
        self.in_order = matches!(event, Event::EpochEnded { .. });
        match event {
            Event::JobCreated(created) => {
                let job = job_of(*created)?;
                self.prune(job.created);
                if self.jobs.contains_key(&job.id) {
                    return Err("it creates a job that is there already");
                }
                self.jobs.insert_mut(job.id, Entry::new(job, index, None));
            }
            // Nothing of the life before is under way any more.
            Event::EpochBegan(_) => {
                let under_way = self.jobs.iter().filter(|(_, e)| e.before.is_some());
                for id in under_way.map(|(id, _)| *id).collect::<Vec<_>>() {
                    if let Some(entry) = self.jobs.get_mut(&id) {
                        entry.before = None;
                    }
                }
            }
            Event::Withdrawn { index, job, .. } => self.withdraw(index, job),
            Event::LockSet { name, by, of, reason, at, until, .. } => {
                let name: LockName = name.parse().map_err(|_| "its lock has no valid name")?;
                let locks = Arc::make_mut(&mut self.locks);
                locks.prune(at);
                locks.insert(Lock { name, reason, by, of, since: at, until });
            }
            Event::LockLifted { name, .. } => {
                let name: LockName = name.parse().map_err(|_| "its lock has no valid name")?;
                Arc::make_mut(&mut self.locks).remove(&name);
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
                entry.apply(index, change);
                self.note_size(id);
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
                self.jobs.remove_mut(&id);
            }
            return;
        }
        let Some(Before { job, since }) = &mut entry.before else { return };
        let Ok(place) = since.binary_search_by_key(&index, |(i, _)| *i) else { return };
        since.remove(place);
        entry.job = job.clone();
        let job = Arc::make_mut(&mut entry.job);
        since.iter().for_each(|(_, change)| job.apply(change));
        self.note_size(id);
    }

    /// What a new life begins with: whoever was joined is away since `now`, and locks whose time is over are gone.
    pub fn rebuilt(&self, now: LeaseTime) -> Rebuilt {
        let mut locks = Locks::clone(&self.locks);
        locks.prune(now);
        let jobs = self.ordered().map(|job| {
            let mut job = Job::clone(&job.job);
            suspend(&mut job, now);
            job
        });
        Rebuilt {
            jobs: jobs.collect(),
            keys: self.keys.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
            identities: self.identities.iter().map(|((id, _), u)| (id.clone(), *u)).collect(),
            locks,
            seq: self.seq,
            in_order: self.in_order,
        }
    }

    /// The closed ones as they were closed, then the open ones by id.
    fn ordered(&self) -> impl Iterator<Item = &Entry> {
        let open = self.jobs.values().filter(|e| e.turn.is_none());
        self.closed.iter().filter_map(|id| self.jobs.get(&id)).chain(open)
    }

    /// Keeps the closed ones within their bounds after a job changed.
    fn note_size(&mut self, id: JobId) {
        let Some(entry) = self.jobs.get_mut(&id) else { return };
        let bytes = size::of_job(entry.creation, &entry.job);
        match (entry.turn, entry.job.is_closed()) {
            (Some(turn), true) => return self.closed.weigh(turn, bytes),
            (Some(turn), false) => {
                entry.turn = None;
                return self.closed.remove(turn);
            }
            (None, false) => return,
            (None, true) => entry.turn = Some(self.closed.push(id, &entry.job.spec.tenant, bytes)),
        }
        while let Some(old) = self.closed.give_up() {
            let Some(Entry { job, .. }) = self.jobs.get(&old).cloned() else { continue };
            self.jobs.remove_mut(&old);
            self.forgotten = self.forgotten.saturating_add(1);
            let (key, made) = Key::of(&job);
            self.put_key(key, made);
            uses_of(&job).into_iter().for_each(|(id, of)| self.put_identity(id, of));
        }
    }

    fn put_key(&mut self, of: KeyOf, key: Key) {
        if let Some(before) = self.keys.get(&of) {
            self.keys_by_time.remove_mut(&(before.at, of.clone()));
        }
        self.keys_by_time.insert_mut((key.at, of.clone()), ());
        self.keys.insert_mut(of, key);
    }

    fn put_identity(&mut self, id: SpiffeId, of: Use) {
        let place = (id, of.job);
        if let Some(before) = self.identities.get(&place) {
            self.identities_by_time.remove_mut(&(before.closed, place.0.clone(), place.1));
        }
        self.identities_by_time.insert_mut((of.closed, place.0.clone(), place.1), ());
        self.identities.insert_mut(place, of);
    }

    /// Forgets what counts no more. It costs what is forgotten, however much is kept.
    fn prune(&mut self, now: LeaseTime) {
        while let Some(((at, of), ())) = self.keys_by_time.first()
            && let (at, of) = (*at, of.clone())
            && self.keys.get(&of).is_none_or(|key| !key.counts(now))
        {
            self.keys.remove_mut(&of);
            self.keys_by_time.remove_mut(&(at, of));
        }
        // Jobs without an end, if there were any, would bind for good and come first.
        while let Some(((closed @ Some(_), id, job), ())) = self.identities_by_time.first()
            && let place = (id.clone(), *job)
            && let closed = *closed
            && self.identities.get(&place).is_none_or(|of| !of.binds(now))
        {
            self.identities.remove_mut(&place);
            self.identities_by_time.remove_mut(&(closed, place.0, place.1));
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
        let forgotten = self.keys.size().saturating_add(self.identities.size());
        self.jobs.size().saturating_add(self.locks.len()).saturating_add(forgotten)
    }

    fn share(&self) -> Box<dyn Fold> {
        Box::new(self.clone())
    }

    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut line = |item: &Item| {
            serde_json::to_writer(&mut *out, item)?;
            out.write_all(b"\n")
        };
        line(&Item::Counts { seq: self.seq.0, forgotten: self.forgotten, in_order: self.in_order })?;
        for Entry { job, made, before, .. } in self.ordered() {
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
        for ((launcher, key), k) in self.keys.iter() {
            let (launcher, key) = (launcher.clone(), key.clone());
            let tenant = k.tenant.clone();
            line(&Item::Key { launcher, key, job: k.job, tenant, spec: k.spec, at: k.at })?;
        }
        for ((identity, _), Use { job, first, closed }) in self.identities.iter() {
            let identity = identity.clone();
            line(&Item::Identity { identity, job: *job, first: *first, closed: *closed })?;
        }
        Ok(())
    }

    fn read(&mut self, text: &mut dyn BufRead) -> Result<(), String> {
        let mut read = Recorded::default();
        let mut locks = Locks::default();
        for line in text.split(b'\n') {
            match serde_json::from_slice(&line.map_err(|e| e.to_string())?).map_err(|e| e.to_string())? {
                Item::Counts { seq, forgotten, in_order } => {
                    (read.seq, read.forgotten, read.in_order) = (Seq(seq), forgotten, in_order);
                }
                Item::Job { job, made, before } => {
                    let job = job.job()?;
                    let before = match before {
                        None => None,
                        Some(before) => {
                            let change =
                                |s: SinceItem| change_of(s.event).map(|(_, change, _)| (s.index, change));
                            let since = before.since.into_iter().filter_map(change).collect();
                            Some(Before { job: Arc::new(before.job.job()?), since })
                        }
                    };
                    let mut entry = Entry::new(job, made, before);
                    if entry.job.is_closed() {
                        let bytes = size::of_job(entry.creation, &entry.job);
                        entry.turn = Some(read.closed.push(entry.job.id, &entry.job.spec.tenant, bytes));
                    }
                    read.jobs.insert_mut(entry.job.id, entry);
                }
                Item::Lock { name, reason, by, of, since, until } => {
                    let name = name.parse().map_err(|e: crate::name::NameError| e.to_string())?;
                    locks.insert(Lock { name, reason, by, of, since, until });
                }
                Item::Key { launcher, key, job, tenant, spec, at } => {
                    read.put_key((launcher, key), Key { job, tenant, spec, at });
                }
                Item::Identity { identity, job, first, closed } => {
                    read.put_identity(identity, Use { job, first, closed });
                }
            }
        }
        *self = Recorded { locks: Arc::new(locks), ..read };
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
        tenant: TenantName,
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
    inputs: Vec<ledger::InputRecord>,
    state: JobStateItem,
    waiting_for: Vec<ledger::GateRecord>,
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

//! The text of a snapshot: writes [`Recorded`] as lines of JSON, and reads it.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, Write},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{
    identities::Use,
    locks::{Lock, Locks},
    logins::Logins,
    rebuild::KeyedJob,
    recorded::{BeforeWidening, Recorded, RecordedJob},
    records::{
        approval_of, approval_record, change_of, change_record, counts_of, counts_record, emergency_of,
        emergency_record, gate_of, gate_record, input_of, input_record, lineage_of, lineage_record, login_of,
        login_record, spec_of, spec_record,
    },
    reviews::DueReview,
    size,
};
use crate::{
    clock::LeaseTime,
    fence::Seq,
    job::{
        Attempt, AttemptState, Change, Drain, EndedMembership, Job, JobState, JobUses, Member, MemberState,
        SweepPlace,
    },
    ledger::{self, Actor, Event, Fold, PersonLoggedIn},
    name::{
        AttemptNumber, Digest, FenceName, HumanName, InstanceName, JobId, Object, Outcome, SpiffeId,
        SpiffePattern, TenantName,
    },
    secret::SecretDigest,
};

/// The version of the text. Raise the version if the same records produce other bytes than before. A text of an older
/// version is not compared and not read.
const FORM: u32 = 4;

/// The ledger's writer owns a `Recorded` and applies each record to it.
impl Fold for Recorded {
    fn format_version(&self) -> u32 {
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
                | "policy.applied"
                | "policy.not_applied"
                | "change.proposed"
                | "change.approved"
                | "change.closed"
                | "job.conflict"
                | "use.lost"
                | "records.coalesced"
                | "snapshot"
        )
    }

    fn apply(&mut self, index: u64, event: Event) -> Result<(), &'static str> {
        self.take(index, event)
    }

    fn len(&self) -> usize {
        let forgotten = self.keys.size().saturating_add(self.identities.size());
        let standing = self.locks.len().saturating_add(self.logins.len()).saturating_add(self.reviews.len());
        self.jobs.size().saturating_add(standing).saturating_add(forgotten)
    }

    fn share(&self) -> Box<dyn Fold> {
        Box::new(self.clone())
    }

    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut line = |item: &SnapshotLine| {
            serde_json::to_writer(&mut *out, item)?;
            out.write_all(b"\n")
        };
        line(&SnapshotLine::Counts { seq: self.seq.0, forgotten: self.forgotten, in_order: self.in_order })?;
        for RecordedJob { job, made, before, .. } in self.ordered() {
            let by = || Actor::Daemon(String::new());
            let again = |(index, c): &(u64, Change)| SinceItem {
                index: *index,
                event: change_record(job.id, c, by(), None, Default::default()),
            };
            let before = before.as_ref().map(|BeforeWidening { job, since }| BeforeItem {
                job: JobItem::of(job),
                since: since.iter().map(again).collect(),
            });
            let job = Box::new(JobItem::of(job));
            line(&SnapshotLine::Job { job, made: *made, before: before.map(Box::new) })?;
        }
        for lock in self.locks.iter() {
            line(&SnapshotLine::Lock {
                name: lock.name.to_string(),
                reason: lock.reason.clone(),
                by: lock.by.clone(),
                of: lock.of.clone(),
                since: lock.since,
                until: lock.until,
            })?;
        }
        for login in self.logins.iter() {
            line(&SnapshotLine::Login(Box::new(login_record(login))))?;
        }
        for review in self.reviews.values() {
            line(&SnapshotLine::Review { review: Box::new(review.clone()) })?;
        }
        for ((launcher, key), k) in &self.keys {
            let (launcher, key) = (launcher.clone(), key.clone());
            let tenant = k.tenant.clone();
            line(&SnapshotLine::Key { launcher, key, job: k.job, tenant, spec: k.spec, at: k.at })?;
        }
        for ((identity, _), Use { job, first, closed }) in &self.identities {
            let identity = identity.clone();
            line(&SnapshotLine::Identity { identity, job: *job, first: *first, closed: *closed })?;
        }
        Ok(())
    }

    fn read(&mut self, text: &mut dyn BufRead) -> Result<(), String> {
        let mut read = Recorded::default();
        let (mut locks, mut logins) = (Locks::default(), Logins::default());
        for line in text.split(b'\n') {
            match serde_json::from_slice(&line.map_err(|e| e.to_string())?).map_err(|e| e.to_string())? {
                SnapshotLine::Counts { seq, forgotten, in_order } => {
                    (read.seq, read.forgotten, read.in_order) = (Seq(seq), forgotten, in_order);
                }
                SnapshotLine::Job { job, made, before } => {
                    let job = job.job()?;
                    let before = match before {
                        None => None,
                        Some(before) => {
                            let change =
                                |s: SinceItem| change_of(s.event).map(|(_, change, _)| (s.index, change));
                            let since = before.since.into_iter().filter_map(change).collect();
                            Some(BeforeWidening { job: Arc::new(before.job.job()?), since })
                        }
                    };
                    let mut entry = RecordedJob::new(job, made, before);
                    if entry.job.is_closed() {
                        let bytes = size::of_job(entry.creation, &entry.job);
                        entry.turn = Some(read.closed.push(entry.job.id, &entry.job.spec.tenant, bytes));
                    }
                    read.jobs.insert_mut(entry.job.id, entry);
                }
                SnapshotLine::Lock { name, reason, by, of, since, until } => {
                    let name = name.parse().map_err(|e: crate::name::NameError| e.to_string())?;
                    locks.insert(Lock { name, reason, by, of, since, until });
                }
                SnapshotLine::Login(login) => logins.keep(login_of(*login)),
                SnapshotLine::Review { review } => {
                    Arc::make_mut(&mut read.reviews).insert(review.job, *review);
                }
                SnapshotLine::Key { launcher, key, job, tenant, spec, at } => {
                    read.put_key((launcher, key), KeyedJob { job, tenant, spec, at });
                }
                SnapshotLine::Identity { identity, job, first, closed } => {
                    read.put_identity(identity, Use { job, first, closed });
                }
            }
        }
        *self = Recorded { locks: Arc::new(locks), logins: Arc::new(logins), ..read };
        Ok(())
    }
}

/// One line of the text.
#[derive(Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case", deny_unknown_fields)]
enum SnapshotLine {
    Counts {
        seq: u64,
        forgotten: u64,
        in_order: bool,
    },
    Job {
        job: Box<JobItem>,
        /// The index of the record that created the job.
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
    Login(Box<PersonLoggedIn>),
    /// The key of a job that was dropped.
    Key {
        launcher: SpiffeId,
        key: String,
        job: JobId,
        tenant: TenantName,
        spec: Digest,
        at: LeaseTime,
    },
    /// An emergency without a review.
    Review {
        review: Box<DueReview>,
    },
    /// A member of a job that was dropped.
    Identity {
        identity: SpiffeId,
        job: JobId,
        first: LeaseTime,
        closed: Option<LeaseTime>,
    },
}

/// The job as it was before the first record that may still be withdrawn, and all changes since then.
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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lineage: Option<ledger::LineageRecord>,
    state: JobStateItem,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    gates: Vec<ledger::GateRecord>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    approvals: Vec<ledger::ApprovalRecord>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sweep: Option<SweepPlaceItem>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    emergency: Option<ledger::EmergencyRecord>,
    attempts: Vec<AttemptItem>,
    closed: Option<LeaseTime>,
    detail: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    ended_memberships: Vec<EndedMembershipItem>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    compromised: Option<FenceName>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    used: Vec<UsedItem>,
}

#[derive(Serialize, Deserialize)]
struct UsedItem {
    resource: Object,
    #[serde(flatten)]
    counts: ledger::UseCounts,
}

impl UsedItem {
    fn all_of(job: &Job) -> Vec<Self> {
        let item = |(resource, done): (&Object, _)| UsedItem {
            resource: resource.clone(),
            counts: counts_record(done),
        };
        job.used.iter().map(item).collect()
    }
}

#[derive(Serialize, Deserialize)]
struct SweepPlaceItem {
    request: Digest,
    number: u32,
}

#[derive(Serialize, Deserialize)]
struct EndedMembershipItem {
    attempt: AttemptNumber,
    member: SpiffeId,
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
            lineage: lineage_record(&job.lineage),
            state: match job.state {
                JobState::AwaitingApproval => JobStateItem::AwaitingApproval,
                JobState::Ready => JobStateItem::Ready,
                JobState::Running => JobStateItem::Running,
                JobState::Closed(outcome) => JobStateItem::Closed(outcome),
            },
            gates: job.gates.iter().map(gate_record).collect(),
            approvals: job.approvals.iter().map(approval_record).collect(),
            sweep: job.sweep_place.map(|SweepPlace { request, number }| SweepPlaceItem { request, number }),
            emergency: job.emergency.as_ref().map(emergency_record),
            attempts: job.attempts.iter().map(AttemptItem::of).collect(),
            closed: job.closed,
            detail: job.detail.clone(),
            ended_memberships: job.ended_memberships.iter().map(EndedMembershipItem::of).collect(),
            compromised: job.compromised.clone(),
            used: UsedItem::all_of(job),
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
            lineage: lineage_of(self.lineage),
            state: match self.state {
                JobStateItem::AwaitingApproval => JobState::AwaitingApproval,
                JobStateItem::Ready => JobState::Ready,
                JobStateItem::Running => JobState::Running,
                JobStateItem::Closed(outcome) => JobState::Closed(outcome),
            },
            gates: self.gates.into_iter().map(gate_of).collect(),
            approvals: self.approvals.into_iter().map(approval_of).collect(),
            sweep_place: self.sweep.map(|SweepPlaceItem { request, number }| SweepPlace { request, number }),
            emergency: self.emergency.map(emergency_of),
            attempts: self.attempts.into_iter().map(AttemptItem::attempt).collect(),
            closed: self.closed,
            detail: self.detail,
            ended_memberships: self.ended_memberships.into_iter().map(EndedMembershipItem::ended).collect(),
            compromised: self.compromised,
            used: JobUses::from_parts(self.used.into_iter().map(|u| (u.resource, counts_of(u.counts)))),
        })
    }
}

impl EndedMembershipItem {
    fn of(ended: &EndedMembership) -> Self {
        let EndedMembership { attempt, identity, detail } = ended.clone();
        EndedMembershipItem { attempt, member: identity, detail }
    }

    fn ended(self) -> EndedMembership {
        EndedMembership { attempt: self.attempt, identity: self.member, detail: self.detail }
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

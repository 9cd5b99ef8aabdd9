//! A job, its attempts and their members.

use std::sync::Arc;

use super::{Approval, Emergency, Gate, JobUses, Lineage, Roster, Spec};
use crate::{
    clock::LeaseTime,
    name::{
        AttemptNumber, Digest, FenceName, HumanName, InstanceName, JobId, Outcome, Pin, ResourceName,
        SpiffeId, SpiffePattern,
    },
    secret::SecretDigest,
};

/// The state of a job. `Closed` is final.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobState {
    AwaitingApproval,
    Ready,
    Running,
    Closed(Outcome),
}

impl JobState {
    /// Returns the word for the state, as in the log.
    pub fn word(self) -> &'static str {
        match self {
            JobState::AwaitingApproval => "awaiting-approval",
            JobState::Ready => "ready",
            JobState::Running => "running",
            JobState::Closed(outcome) => outcome.as_str(),
        }
    }
}

/// The state of an attempt. `Ended` is final.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttemptState {
    Running,
    /// No member is joined, so no member has access.
    Suspended,
    /// The reading half ends first, then the writing half and with it the attempt.
    Draining(Drain),
    Ended(Outcome),
}

/// The times at which a draining attempt or member stops reading and then writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drain {
    pub reading_ends: LeaseTime,
    pub writing_ends: LeaseTime,
}

/// The state of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberState {
    Joined,
    Away { since: LeaseTime },
    Left,
    Lost,
}

/// A job: its specification and its progress.
#[derive(Clone, Debug)]
pub struct Job {
    pub id: JobId,
    pub spec: Arc<Spec>,
    pub spec_digest: Digest,
    pub launcher: SpiffeId,
    pub acting_for: Option<HumanName>,
    pub idempotency_key: String,
    pub created: LeaseTime,
    /// The time at which all access ends at the latest. A job with gates waits for approval at most until then. Its
    /// `max_duration` begins with its first attempt, which moves this time.
    pub ends: LeaseTime,
    /// The resources that the job reads, with the facts of the catalog at the job's creation.
    pub inputs: Arc<[Input]>,
    /// The origin of the checkpoints of other jobs that the job reads.
    pub lineage: Arc<Lineage>,
    pub state: JobState,
    /// The rules that required approval when the job was created.
    pub gates: Vec<Gate>,
    /// The approvals in the order in which they came. At most
    /// [`limits::APPROVALS_PER_JOB_MAX`](crate::limits::APPROVALS_PER_JOB_MAX).
    pub approvals: Vec<Approval>,
    /// The place of the job in its parameter sweep.
    pub sweep_place: Option<SweepPlace>,
    /// Set if one person opened the gates in an emergency.
    pub emergency: Option<Emergency>,
    /// The attempts in the order of their numbers. The last attempt is the current one.
    pub attempts: Vec<Attempt>,
    pub closed: Option<LeaseTime>,
    /// The reason for the state of the job, in one line.
    pub detail: String,
    /// The memberships that an operator ended, the oldest first. Only the newest are kept, at most
    /// [`MEMBERSHIPS_ENDED_SHOWN`](crate::limits::MEMBERSHIPS_ENDED_SHOWN).
    pub ended_memberships: Vec<EndedMembership>,
    /// The compromised subject, if the compromise may have tainted the job's outputs.
    pub compromised: Option<FenceName>,
    /// The job's use of resources, as gateways reported it.
    pub used: JobUses,
}

impl Job {
    /// Makes a new job. It acts for the person in its specification, and ends after its duration.
    pub fn new(
        id: JobId,
        spec: Arc<Spec>,
        spec_digest: Digest,
        launcher: SpiffeId,
        idempotency_key: String,
        created: LeaseTime,
        inputs: Vec<Input>,
    ) -> Self {
        Job {
            id,
            acting_for: spec.acting_for.clone(),
            ends: created.plus(spec.max_duration),
            spec,
            spec_digest,
            launcher,
            idempotency_key,
            created,
            inputs: inputs.into(),
            lineage: Arc::default(),
            state: JobState::Ready,
            gates: Vec::new(),
            approvals: Vec::new(),
            sweep_place: None,
            emergency: None,
            attempts: Vec::new(),
            closed: None,
            detail: String::new(),
            ended_memberships: Vec::new(),
            compromised: None,
            used: JobUses::default(),
        }
    }
}

/// The place of a job in a parameter sweep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SweepPlace {
    /// The digest of the request. All jobs of the sweep share it.
    pub request: Digest,
    /// The number of the job. The first job has the number 1.
    pub number: u32,
}

/// The end of all memberships of one identity in an attempt, by a revocation or a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndedMembership {
    pub attempt: AttemptNumber,
    pub identity: SpiffeId,
    /// The cause of the end, who ended the memberships, and the reason, in one line.
    pub detail: String,
}

/// A dataset or model that a job reads, as the catalog listed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    pub resource: ResourceName,
    pub pin: Pin,
    /// The location. Empty if an older record does not have it.
    pub location: String,
    pub classification: Option<String>,
    pub data_classes: Vec<String>,
    pub tier: Option<String>,
}

/// One run of a job.
#[derive(Clone, Debug)]
pub struct Attempt {
    pub number: AttemptNumber,
    pub key: String,
    pub state: AttemptState,
    pub began: LeaseTime,
    pub ended: Option<LeaseTime>,
    pub members: Roster,
    pub ticket: SecretDigest,
    /// Identities that the launcher or a scheduler vouched for at the begin. They may join without the ticket if the
    /// job's `join` covers them.
    pub vouched: Arc<[SpiffePattern]>,
    pub detail: String,
    /// The time from which no member is joined or away. It has no meaning while a member is joined or away.
    pub vacant_since: LeaseTime,
}

/// One participant of an attempt.
#[derive(Clone, Debug)]
pub struct Member {
    pub spiffe_id: SpiffeId,
    pub session: SecretDigest,
    pub state: MemberState,
    pub joined: LeaseTime,
    /// Set if the member drains. Other members may go on.
    pub drain: Option<Drain>,
    /// The outcome that was reported for the member.
    pub outcome: Option<Outcome>,
}

impl Job {
    pub fn is_closed(&self) -> bool {
        matches!(self.state, JobState::Closed(_))
    }

    /// Returns the attempt that is not over, if there is one.
    pub fn current(&self) -> Option<&Attempt> {
        self.attempts.last().filter(|a| !a.is_ended())
    }

    pub fn attempt(&self, number: AttemptNumber) -> Option<&Attempt> {
        self.attempts.iter().find(|a| a.number == number)
    }

    pub(super) fn attempt_mut(&mut self, number: AttemptNumber) -> Option<&mut Attempt> {
        self.attempts.iter_mut().find(|a| a.number == number)
    }

    /// Whether another attempt may begin.
    pub fn attempts_left(&self) -> bool {
        self.attempts.len() < self.spec.members.attempts as usize
    }
}

impl Attempt {
    pub fn is_ended(&self) -> bool {
        matches!(self.state, AttemptState::Ended(_))
    }

    /// Returns the members that are joined or may come back.
    pub fn present(&self) -> impl Iterator<Item = (&InstanceName, &Member)> {
        self.members.iter().filter(|(_, m)| m.is_present())
    }

    /// Returns the times at which this member stops reading and writing. The earlier time of the member's drain and the
    /// attempt's drain counts.
    pub fn drain_of(&self, instance: &InstanceName) -> Option<Drain> {
        let own = self.members.get(instance).and_then(|m| m.drain);
        match (self.state, own) {
            (AttemptState::Draining(all), Some(own)) => Some(Drain {
                reading_ends: all.reading_ends.min(own.reading_ends),
                writing_ends: all.writing_ends.min(own.writing_ends),
            }),
            (AttemptState::Draining(all), None) => Some(all),
            (_, own) => own,
        }
    }
}

impl Member {
    /// Whether the member is joined or may come back.
    pub fn is_present(&self) -> bool {
        matches!(self.state, MemberState::Joined | MemberState::Away { .. })
    }
}

//! The events of the ledger: schema version 1.
//!
//! Each variant is one `type`. Its fields and the fields of the envelope are in one JSON object. New fields are only
//! added, with a default. A change of meaning needs a new `v`. Events contain no secrets: a secret is recorded as its
//! digest, and a token as its `jti` and the digest of its claims.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use super::job_record::{
    ApprovalRecord, ChangeOutcome, ConsentRecord, DecisionRecord, EmergencyRecord, GateRecord, InputRecord,
    JobCreated,
};
use crate::{
    clock::{LeaseTime, Wall},
    name::{
        Action, AttemptNumber, Digest, FenceName, Half, HumanName, ImageDigest, InstanceName, JobId, LeaseId,
        Method, Object, Outcome, ResourceName, Scope, SpiffeId, SpiffePattern, TenantName,
    },
    reason::Reason,
};

/// An event that the ledger records.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type")]
pub enum Event {
    /// A run of the daemon began. Changes of the previous run that were not durable are lost.
    #[serde(rename = "epoch.began")]
    EpochBegan(EpochBegan),
    /// The daemon stopped cleanly.
    #[serde(rename = "epoch.ended")]
    EpochEnded { reason: String },
    #[serde(rename = "catalog.loaded")]
    CatalogLoaded { catalog: Digest, policy: Digest, by: Actor, ended: u64 },

    /// A policy was applied through the daemon, and is in force after this record.
    #[serde(rename = "policy.applied")]
    PolicyApplied {
        policy: Digest,
        before: Digest,
        catalog: Digest,
        by: Actor,
        reason: String,
        /// How many live leases the policy ends, as counted before it was applied. In older records the field is
        /// called `ends`.
        #[serde(alias = "ends")]
        would_end: u64,
        /// The people who proposed and approved the change, if a gate required approval.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        consent: Option<ConsentRecord>,
    },
    /// A policy did not come into force, although its `policy.applied` record was written.
    #[serde(rename = "policy.not_applied")]
    PolicyNotApplied { policy: Digest, why: String },

    /// A caller proposed a change of the rules that people must approve. A restart makes the proposal void.
    #[serde(rename = "change.proposed")]
    ChangeProposed {
        /// The call that carries the change out: `ApplyPolicy` or `ReloadCatalog`.
        call: String,
        /// The digest of the rules in force.
        from: Digest,
        /// The digest of the proposed rules.
        to: Digest,
        by: Actor,
        human: Option<HumanName>,
        reason: String,
        waiting_for: Vec<GateRecord>,
        until: LeaseTime,
    },
    /// One person approved a change that another person had proposed.
    #[serde(rename = "change.approved")]
    ChangeApproved { call: String, from: Digest, to: Digest, approvals: Vec<ApprovalRecord> },
    /// A change that was proposed does not come into force.
    #[serde(rename = "change.closed")]
    ChangeClosed {
        call: String,
        from: Digest,
        to: Digest,
        proposed_by: SpiffeId,
        outcome: ChangeOutcome,
        by: Actor,
        reason: String,
    },

    #[serde(rename = "job.created")]
    JobCreated(Box<JobCreated>),
    #[serde(rename = "job.closed")]
    JobClosed { job: JobId, outcome: Outcome, at: LeaseTime, by: Actor, detail: String, ending: Ending },
    /// One person approved a job at one or more gates.
    #[serde(rename = "job.approved")]
    JobApproved {
        job: JobId,
        /// The digest of the request that was approved.
        request_digest: Digest,
        approvals: Vec<ApprovalRecord>,
    },
    /// One person opened the gates of a job in an emergency. A review is due after it.
    #[serde(rename = "job.glass_broken")]
    JobGlassBroken {
        job: JobId,
        /// The digest of the request that the person saw.
        request_digest: Digest,
        emergency: EmergencyRecord,
    },
    /// A person who was not involved in an emergency reviewed it.
    #[serde(rename = "review.done")]
    ReviewDone { job: JobId, tenant: TenantName, by: Actor, reason: String, at: LeaseTime },
    /// An approval no longer counts: the approver withdrew it, or it expired before the job began.
    #[serde(rename = "job.approval_withdrawn")]
    JobApprovalWithdrawn {
        job: JobId,
        gate: String,
        approver: SpiffeId,
        at: LeaseTime,
        by: Actor,
        detail: String,
        ending: Ending,
    },
    /// Two reports of one end disagreed. The first report remains in force.
    #[serde(rename = "job.conflict")]
    JobConflict {
        job: JobId,
        attempt: Option<AttemptNumber>,
        stands: Outcome,
        reported: Outcome,
        by: Actor,
        detail: String,
    },

    #[serde(rename = "attempt.began")]
    AttemptBegan {
        job: JobId,
        attempt: AttemptNumber,
        key: String,
        at: LeaseTime,
        by: Actor,
        /// SHA-256 of the ticket.
        ticket: Digest,
        /// The identities that may join without the ticket, because the caller who began the attempt vouched for them.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        vouched: Vec<SpiffePattern>,
        decision: DecisionRecord,
    },
    #[serde(rename = "attempt.draining")]
    AttemptDraining {
        job: JobId,
        attempt: AttemptNumber,
        reading_ends: LeaseTime,
        writing_ends: LeaseTime,
        by: Actor,
        detail: String,
    },
    #[serde(rename = "attempt.ended")]
    AttemptEnded {
        job: JobId,
        attempt: AttemptNumber,
        outcome: Outcome,
        at: LeaseTime,
        by: Actor,
        detail: String,
        ending: Ending,
    },

    #[serde(rename = "member.joined")]
    MemberJoined {
        job: JobId,
        attempt: AttemptNumber,
        instance: InstanceName,
        member: SpiffeId,
        /// SHA-256 of the session secret.
        session: Digest,
        at: LeaseTime,
    },
    /// One member is draining. Other members go on.
    #[serde(rename = "member.draining")]
    MemberDraining {
        job: JobId,
        attempt: AttemptNumber,
        instance: InstanceName,
        reading_ends: LeaseTime,
        writing_ends: LeaseTime,
        by: Actor,
        detail: String,
    },
    #[serde(rename = "member.away")]
    MemberAway {
        job: JobId,
        attempt: AttemptNumber,
        instance: InstanceName,
        at: LeaseTime,
        detail: String,
        ending: Ending,
    },
    #[serde(rename = "member.left")]
    MemberLeft {
        job: JobId,
        attempt: AttemptNumber,
        instance: InstanceName,
        at: LeaseTime,
        outcome: Option<Outcome>,
        detail: String,
        ending: Ending,
    },
    #[serde(rename = "member.lost")]
    MemberLost {
        job: JobId,
        attempt: AttemptNumber,
        instance: InstanceName,
        at: LeaseTime,
        detail: String,
        ending: Ending,
    },

    /// A credential will be handed out. This record is written first.
    #[serde(rename = "credential.issued")]
    CredentialIssued(Box<CredentialIssued>),
    /// A credential was not handed out, although its record was written.
    #[serde(rename = "credential.cancelled")]
    CredentialCancelled { lease: LeaseId, job: JobId, reason: Reason },
    #[serde(rename = "credential.renewed")]
    CredentialRenewed {
        lease: LeaseId,
        job: JobId,
        attempt: AttemptNumber,
        generation: u32,
        expires: LeaseTime,
        decision: DecisionRecord,
        credential: Credential,
    },
    /// Leases ended for one cause. More than [`LEASES_PER_RECORD`] leases are split into several records.
    #[serde(rename = "leases.ended")]
    LeasesEnded { cause: Cause, leases: Vec<LeaseId>, by: Option<Actor> },

    /// The record at this index would have given access, but it did not take effect: a later event overtook it, or it was not
    /// known in time whether the record is on disk. A rebuild of the state leaves it out.
    #[serde(rename = "withdrawn")]
    Withdrawn { index: u64, job: JobId, why: String },
    /// A fence was lowered as the consequence of another record.
    #[serde(rename = "lowered")]
    Lowered { name: FenceName, because: String, ending: Ending },
    /// All access behind a name was ended.
    #[serde(rename = "revoked")]
    Revoked { name: FenceName, by: Actor, reason: String, ending: Ending },
    #[serde(rename = "lock.set")]
    LockSet {
        name: String,
        by: Actor,
        /// The tenant whose operators may lift the lock. If it is absent, only an operator who may act for every tenant may
        /// lift it. The records of older daemons have none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        of: Option<TenantName>,
        reason: String,
        at: LeaseTime,
        until: Option<LeaseTime>,
        ending: Ending,
    },
    /// One or all versions of a dataset were recalled. No job may read the data now.
    #[serde(rename = "dataset.recalled")]
    DatasetRecalled { name: ResourceName, by: Actor, reason: String, at: LeaseTime, ending: Ending },
    #[serde(rename = "dataset.unrecalled")]
    DatasetUnrecalled { name: ResourceName, by: Actor, reason: String },
    /// The outputs of these jobs are quarantined, because they come from a recalled dataset or were written during a
    /// compromise. More than [`JOBS_PER_RECORD`] jobs are split into several records.
    #[serde(rename = "outputs.quarantined")]
    OutputsQuarantined { because: FenceName, jobs: Vec<JobId> },
    /// A gateway reported the use of a job's leases since the previous report.
    #[serde(rename = "job.used")]
    JobUsed { job: JobId, audience: SpiffeId, by: Actor, uses: Vec<UseRecord> },
    /// A gateway no longer knows the leases of some transfers, or stopped without its last report.
    #[serde(rename = "use.lost")]
    UseLost {
        audience: SpiffeId,
        by: Actor,
        /// The number of these transfers. Absent if the gateway stopped.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        transfers: Option<u64>,
    },
    #[serde(rename = "lock.lifted")]
    LockLifted { name: String, by: Actor, reason: String },

    /// A person logged in, and got a certificate.
    #[serde(rename = "person.logged_in")]
    PersonLoggedIn(Box<PersonLoggedIn>),
    /// A person ended a login before it expired.
    #[serde(rename = "person.logged_out")]
    PersonLoggedOut {
        person: SpiffeId,
        human: HumanName,
        certificate: Digest,
        serial: String,
        by: Actor,
        at: LeaseTime,
    },

    /// Requests that were refused. The first refusal of a kind in a minute has its own record. Further refusals share
    /// one record with a count.
    #[serde(rename = "denied")]
    Denied { by: String, rpc: String, reason: Reason, text: String, rules: Vec<String>, count: u64 },

    /// A separate file has the state after all records before this segment.
    #[serde(rename = "snapshot")]
    Snapshot(Snapshot),

    /// A summary of endings that took effect while the disk failed and that memory could not keep one by one.
    #[serde(rename = "records.coalesced")]
    Coalesced(Coalesced),
}

/// A snapshot: the state after all records before the segment that has this record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The index of the first record of that segment. It is 0 in older ledgers, in which the snapshot's record is itself
    /// the first record of its segment.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub before: u64,
    /// The version of the snapshot's text.
    pub form: u32,
    /// SHA-256 of the snapshot's text.
    pub digest: Digest,
    pub bytes: u64,
    /// The latest time in the records before that segment.
    pub latest: Wall,
}

impl Event {
    /// Returns the size of the recorded event in bytes, without the envelope.
    pub fn bytes(&self) -> usize {
        json_bytes(self)
    }
}

/// Returns the size in bytes of a value in a record. A value that cannot be written counts as a record of the largest size.
pub fn json_bytes(value: &impl Serialize) -> usize {
    let mut counted = ByteCounter(0);
    serde_json::to_writer(&mut counted, value).map_or(crate::limits::LEDGER_RECORD_BYTES_MAX, |()| counted.0)
}

struct ByteCounter(usize);

impl std::io::Write for ByteCounter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 = self.0.saturating_add(bytes.len());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Snapshot {
    /// Returns the index of the first record that the snapshot does not cover. `own` is the index of the snapshot's record.
    pub(super) fn begins(&self, own: u64) -> u64 {
        if self.before == 0 { own } else { self.before }
    }
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// A summary of records that could not be kept one by one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Coalesced {
    pub records: u64,
    /// The number of records by `type`.
    pub types: BTreeMap<String, u64>,
    /// The time of the last of these records. The record itself has the time of the first.
    pub last: Wall,
    /// A chain of SHA-256 digests over these records. Each digest covers the previous digest and the fields of a
    /// record.
    pub digest: Digest,
}

/// The use of one resource by one lease since the previous report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UseRecord {
    pub lease: LeaseId,
    pub resource: Object,
    #[serde(flatten)]
    pub counts: UseCounts,
}

/// Counts of objects, transfers and bytes, with the times of the first and the last use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UseCounts {
    pub objects: u64,
    pub reads: u64,
    pub read_bytes: u64,
    pub writes: u64,
    pub written_bytes: u64,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub cut: u64,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub refused: u64,
    pub first: Wall,
    pub last: Wall,
}

/// The highest number of leases in one `leases.ended` record. So the record stays well below its byte limit.
pub const LEASES_PER_RECORD: usize = 4_000;

/// The highest number of jobs in one `outputs.quarantined` record.
pub const JOBS_PER_RECORD: usize = 4_000;

/// The login of a person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PersonLoggedIn {
    pub person: SpiffeId,
    pub human: HumanName,
    /// The issuer of the ID token. The token itself is not recorded.
    pub issuer: String,
    pub sub: String,
    /// The groups of the person that the configuration knows.
    pub groups: Vec<String>,
    /// The authentication methods of the person (`amr`).
    pub amr: Vec<String>,
    /// The digest of the configuration that admitted the login: the provider, the client, and the provider's name for
    /// the group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terms: Option<Digest>,
    /// SHA-256 of the certificate that the person got.
    pub certificate: Digest,
    pub serial: String,
    pub at: LeaseTime,
    pub until: LeaseTime,
}

/// The begin of a run of the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochBegan {
    /// Random bits that distinguish two runs with the same epoch.
    pub nonce: String,
    pub version: String,
    pub catalog: Digest,
    pub policy: Digest,
    /// The count of lowerings at the begin of this run.
    pub seq: u64,
    /// The key with which this run signs heads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_key: Option<Digest>,
    /// The last known record of a lost ledger that an operator replaced by this ledger.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaces: Option<super::Head>,
}

/// The originator of an event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Actor {
    /// The daemon itself. The text is the reason, such as a deadline or a lost member.
    Daemon(String),
    /// A caller.
    #[serde(untagged)]
    Caller {
        /// The SPIFFE ID of its SVID.
        spiffe_id: SpiffeId,
        /// The person whom the catalog names for this identity, if it names one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        human: Option<HumanName>,
    },
}

impl Actor {
    /// Returns the caller's SPIFFE ID. `None` if the daemon itself is the originator.
    pub const fn spiffe_id(&self) -> Option<&SpiffeId> {
        match self {
            Actor::Caller { spiffe_id, .. } => Some(spiffe_id),
            Actor::Daemon(_) => None,
        }
    }
}

/// A caller that is not a person.
impl From<SpiffeId> for Actor {
    fn from(spiffe_id: SpiffeId) -> Self {
        Actor::Caller { spiffe_id, human: None }
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Actor::Caller { spiffe_id, .. } => spiffe_id.fmt(f),
            Actor::Daemon(why) => write!(f, "the daemon: {why}"),
        }
    }
}

/// The effect of an ending.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// The count of lowerings after the ending. 0 if no fence was lowered.
    pub seq: u64,
    /// The number of live leases that ended.
    pub behind: u64,
}

/// A credential, with everything that an auditor needs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CredentialIssued {
    pub lease: LeaseId,
    pub job: JobId,
    pub attempt: AttemptNumber,
    pub tenant: TenantName,
    pub instance: InstanceName,
    pub member: SpiffeId,
    /// SHA-256 of the SVID of the caller.
    pub svid_sha256: Digest,
    pub launcher: SpiffeId,
    pub acting_for: Option<HumanName>,
    pub purpose: String,
    pub why: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub ticket: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback_to: Option<ResourceName>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub prompt_alternative: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageDigest>,
    pub half: Half,
    pub audience: SpiffeId,
    pub scopes: Vec<Scope>,
    pub inputs: Vec<InputRecord>,
    pub outputs: Vec<ResourceName>,
    pub method: Option<Method>,
    pub params_digest: Option<Digest>,
    pub prompt_lineage: Vec<String>,
    /// The approvals with which the job passed its gates.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub approvals: Vec<ApprovalRecord>,
    /// The emergency in which the gates of the job were opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub emergency: Option<EmergencyRecord>,
    pub decision: DecisionRecord,
    pub stood_at: u64,
    pub issued: LeaseTime,
    pub expires: LeaseTime,
    pub expires_at_latest: LeaseTime,
    pub credential: Credential,
}

/// The identifiers of a token, without the token itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credential {
    pub jti: String,
    pub kid: String,
    pub claims_sha256: Digest,
    /// The expiry of the token, in Unix seconds.
    pub expires: u64,
    pub binding: String,
    /// The access key for S3 clients, if there is one. The secret of this key is in no record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub s3_access_key: Option<String>,
}

/// The cause for which leases ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The deadline of the leases has passed.
    Expired,
    /// The holder released the leases.
    Released,
    /// A fence was lowered.
    Lowered { name: FenceName, seq: u64 },
    /// A new decision no longer allows the leases.
    NoLongerAllowed { actions: Vec<Action> },
}

//! What the ledger records: schema version 1.
//!
//! Each variant is one `type`; its fields and those of the envelope are in one JSON object. Fields are only ever added, with
//! a default; a change of meaning is a new `v`. Nothing here is a secret: a secret is recorded as its digest, and a token as
//! its `jti` and the digest of its claims.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use super::job_record::{
    ApprovalRecord, ConsentRecord, DecisionRecord, EmergencyRecord, GateRecord, InputRecord, JobCreated,
};
use crate::{
    clock::{LeaseTime, Wall},
    name::{
        Action, AttemptNumber, Digest, FenceName, Half, HumanName, ImageDigest, InstanceName, JobId, LeaseId,
        Method, Outcome, ResourceName, Scope, SpiffeId, SpiffePattern, TenantName,
    },
    reason::Reason,
};

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type")]
pub enum Event {
    /// A run of the daemon began. Everything of the previous run that was not durable is over.
    #[serde(rename = "epoch.began")]
    EpochBegan(EpochBegan),
    /// A clean stop.
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
        /// How many live leases the policy ends, as counted before it was applied.
        ends: u64,
        /// Who proposed and approved it, if a gate asked for people.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        consent: Option<ConsentRecord>,
    },
    /// A policy whose record was written did not come into force.
    #[serde(rename = "policy.not_applied")]
    PolicyNotApplied { policy: Digest, why: String },

    /// Someone proposed a change of the rules that people must approve. A restart voids it.
    #[serde(rename = "change.proposed")]
    ChangeProposed {
        /// The call that carries it out: `ApplyPolicy` or `ReloadCatalog`.
        call: String,
        /// What was in force, and what it puts in force.
        from: Digest,
        to: Digest,
        by: Actor,
        human: Option<HumanName>,
        reason: String,
        waiting_for: Vec<GateRecord>,
        until: LeaseTime,
    },
    /// One person approved a change that another one had proposed.
    #[serde(rename = "change.approved")]
    ChangeApproved { call: String, from: Digest, to: Digest, approvals: Vec<ApprovalRecord> },

    #[serde(rename = "job.created")]
    JobCreated(Box<JobCreated>),
    #[serde(rename = "job.closed")]
    JobClosed { job: JobId, outcome: Outcome, at: LeaseTime, by: Actor, detail: String, ending: Ending },
    /// One person approved a job, at one gate or several.
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
    /// Someone who had no part in an emergency reviewed that emergency.
    #[serde(rename = "review.done")]
    ReviewDone { job: JobId, tenant: TenantName, by: Actor, reason: String, at: LeaseTime },
    /// An approval no longer counts: its giver took it back, or it became too old before the job began.
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
    /// Two reports of one end disagreed. The first remains in force.
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
        /// Who joins without the ticket, because the caller who began the attempt vouched for them.
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
    /// One member is draining; the others go on.
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

    /// A credential is about to be handed out: its record comes first.
    #[serde(rename = "credential.issued")]
    CredentialIssued(Box<CredentialIssued>),
    /// A credential whose record was written was not handed out after all.
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
    /// Leases that one cause ended. More than [`LEASES_PER_RECORD`] leases are split into several records.
    #[serde(rename = "leases.ended")]
    LeasesEnded { cause: Cause, leases: Vec<LeaseId>, by: Option<Actor> },

    /// The record at this index would have widened access, but did not take effect: a later event overtook it, or it was not known
    /// in time whether the record is on disk. A rebuild of the state leaves it out.
    #[serde(rename = "withdrawn")]
    Withdrawn { index: u64, job: JobId, why: String },
    /// A fence was lowered as the consequence of something recorded elsewhere.
    #[serde(rename = "lowered")]
    Lowered { name: FenceName, because: String, ending: Ending },
    /// Everything behind a name was ended.
    #[serde(rename = "revoked")]
    Revoked { name: FenceName, by: Actor, reason: String, ending: Ending },
    #[serde(rename = "lock.set")]
    LockSet {
        name: String,
        by: Actor,
        /// The tenant whose operators may lift the lock. If it is absent, only operators of all tenants may. The records of older
        /// daemons have none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        of: Option<TenantName>,
        reason: String,
        at: LeaseTime,
        until: Option<LeaseTime>,
        ending: Ending,
    },
    /// A dataset was recalled, one version or all: no job reads it now.
    #[serde(rename = "dataset.recalled")]
    DatasetRecalled { name: ResourceName, by: Actor, reason: String, at: LeaseTime, ending: Ending },
    #[serde(rename = "dataset.unrecalled")]
    DatasetUnrecalled { name: ResourceName, by: Actor, reason: String },
    /// The outputs of these jobs come from a dataset that was recalled, or were written while something was compromised. More than
    /// [`JOBS_PER_RECORD`] jobs are split into several records.
    #[serde(rename = "outputs.quarantined")]
    OutputsQuarantined { because: FenceName, jobs: Vec<JobId> },
    /// A gateway reported what leases of a job were used for since the report before.
    #[serde(rename = "job.used")]
    JobUsed { job: JobId, audience: SpiffeId, by: Actor, uses: Vec<UseRecord> },
    /// A gateway cannot say any more whose some transfers were, or stopped without its last report.
    #[serde(rename = "use.lost")]
    UseLost {
        audience: SpiffeId,
        by: Actor,
        /// How many transfers it counted. Absent if it stopped.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        transfers: Option<u64>,
    },
    #[serde(rename = "lock.lifted")]
    LockLifted { name: String, by: Actor, reason: String },

    /// A person logged in, and got a certificate.
    #[serde(rename = "person.logged_in")]
    PersonLoggedIn(Box<PersonLoggedIn>),
    /// A login is over before its time: the person ended it.
    #[serde(rename = "person.logged_out")]
    PersonLoggedOut {
        person: SpiffeId,
        human: HumanName,
        certificate: Digest,
        serial: String,
        by: Actor,
        at: LeaseTime,
    },

    /// Requests that were refused. The first of a kind in a minute has its own record, the rest share one with a count.
    #[serde(rename = "denied")]
    Denied { by: String, rpc: String, reason: Reason, text: String, rules: Vec<String>, count: u64 },

    /// The state after all records before this segment is in a file beside the segment.
    #[serde(rename = "snapshot")]
    Snapshot(Snapshot),

    /// Endings that took effect while the disk was away, beyond what memory could keep one by one.
    #[serde(rename = "records.coalesced")]
    Coalesced(Coalesced),
}

/// The state after all records before the segment that holds this record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The index of the first record of that segment. It is 0 in older ledgers, where the snapshot's record is the first.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub before: u64,
    /// The version of its text.
    pub form: u32,
    /// SHA-256 of its text.
    pub digest: Digest,
    pub bytes: u64,
    /// The latest time of any record before that segment.
    pub latest: Wall,
}

impl Event {
    /// Returns its size in bytes as it is recorded, without the envelope.
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
    /// The first record that is not in the state. `own` is the index of the snapshot's record.
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
    /// When the last of them happened; the record's own time is that of the first.
    pub last: Wall,
    /// A chain of SHA-256 digests over these records. Each digest is over the one before it and the fields of a record.
    pub digest: Digest,
}

/// What one lease was used for at one resource, since the report before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UseRecord {
    pub lease: LeaseId,
    pub resource: ResourceName,
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

/// Leases in one `leases.ended` record at most: a record stays well under its byte limit.
pub const LEASES_PER_RECORD: usize = 4_000;

/// Jobs in one `outputs.quarantined` record at most.
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
    /// How the person proved who they are.
    pub amr: Vec<String>,
    /// The digest of what the login was admitted on: the provider, the client, what the provider calls the group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terms: Option<Digest>,
    /// SHA-256 of the certificate that the person got.
    pub certificate: Digest,
    pub serial: String,
    pub at: LeaseTime,
    pub until: LeaseTime,
}

/// One run of the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochBegan {
    /// Random bits that distinguish two runs with the same epoch.
    pub nonce: String,
    pub version: String,
    pub catalog: Digest,
    pub policy: Digest,
    /// The count of lowerings that this run begins with.
    pub seq: u64,
    /// The key that this run signs heads with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_key: Option<Digest>,
    /// The last known record of a lost ledger that an operator replaced by this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaces: Option<super::Head>,
}

/// Who did it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Actor {
    /// A caller, by the SPIFFE ID of its SVID.
    SpiffeId(SpiffeId),
    /// The daemon itself, for this reason: a deadline, a lost member.
    Daemon(String),
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Actor::SpiffeId(id) => id.fmt(f),
            Actor::Daemon(why) => write!(f, "the daemon: {why}"),
        }
    }
}

/// What an ending lowered and ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// The count of lowerings after it; 0 if nothing was lowered.
    pub seq: u64,
    /// Live leases that ended with it.
    pub behind: u64,
}

/// A credential, and all that an auditor will ask about it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CredentialIssued {
    pub lease: LeaseId,
    pub job: JobId,
    pub attempt: AttemptNumber,
    pub tenant: TenantName,
    pub instance: InstanceName,
    pub member: SpiffeId,
    /// SHA-256 of the SVID that asked.
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
    /// Who let the job pass its gates.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub approvals: Vec<ApprovalRecord>,
    /// Who opened its gates in an emergency.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub emergency: Option<EmergencyRecord>,
    pub decision: DecisionRecord,
    pub stood_at: u64,
    pub issued: LeaseTime,
    pub expires: LeaseTime,
    pub expires_at_latest: LeaseTime,
    pub credential: Credential,
}

/// What identifies a token, without the token itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credential {
    pub jti: String,
    pub kid: String,
    pub claims_sha256: Digest,
    /// Unix seconds.
    pub expires: u64,
    pub binding: String,
}

/// Why leases ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Their deadline has passed.
    Expired,
    /// The holder released the leases.
    Released,
    /// A fence was lowered.
    Lowered { name: FenceName, seq: u64 },
    /// A fresh decision no longer allows them.
    NoLongerAllowed { actions: Vec<Action> },
}

//! The records about a job: its specification, its gates and approvals, and the decision.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    clock::LeaseTime,
    name::{
        Digest, HumanName, ImageDigest, JobId, Method, Object, Pin, ResourceName, SpiffeId, SpiffePattern,
        TenantName,
    },
};

/// A new job, with its specification and decision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobCreated {
    pub job: JobId,
    pub launcher: SpiffeId,
    pub acting_for: Option<HumanName>,
    pub idempotency_key: String,
    pub spec: JobSpec,
    pub spec_digest: Digest,
    /// The digest of the whole request, which approvals name. Absent in records of older daemons.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_digest: Option<Digest>,
    pub at: LeaseTime,
    pub ends: LeaseTime,
    /// The inputs of the job, with the facts of the catalog.
    pub inputs: Vec<InputRecord>,
    /// The origin of the checkpoints that the job reads. Absent if the job reads no checkpoints of other jobs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lineage: Option<LineageRecord>,
    pub outputs: Vec<ResourceName>,
    pub decision: DecisionRecord,
    /// Gates that lack approval. Empty if the job is ready.
    pub waiting_for: Vec<GateRecord>,
    /// The number of the job in its parameter sweep, counted from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sweep_number: Option<u32>,
    /// The approvals that the job has from its creation on, because open jobs of its parameter sweep have them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub approvals: Vec<ApprovalRecord>,
}

/// A gate of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GateRecord {
    pub id: String,
    pub explanation: String,
    pub approver_group: String,
    pub approvals_needed: u32,
    #[serde(default = "approval_ttl_of_old_records")]
    pub approval_ttl_ms: u64,
}

/// Returns the lifetime of approvals for records of older daemons, which do not have it: an hour.
fn approval_ttl_of_old_records() -> u64 {
    3_600_000
}

/// The approval of one person at one gate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApprovalRecord {
    pub gate: String,
    pub group: String,
    pub by: SpiffeId,
    pub human: Option<HumanName>,
    pub at: LeaseTime,
    pub reason: String,
}

/// The people behind a change of the rules.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsentRecord {
    pub proposed_by: SpiffeId,
    pub human: Option<HumanName>,
    pub reason: String,
    pub approvals: Vec<ApprovalRecord>,
}

/// What became of a change of the rules that was proposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeOutcome {
    /// It is in force. Its record is `policy.applied`, or `catalog.loaded` for a reload.
    Applied,
    /// Its proposer took it back.
    Withdrawn,
    /// An approver refused it.
    Rejected,
    /// Its time is over, other rules came into force, or its proposer may no longer propose.
    Voided,
}

impl ChangeOutcome {
    /// The word for the outcome.
    pub const fn as_str(self) -> &'static str {
        match self {
            ChangeOutcome::Applied => "applied",
            ChangeOutcome::Withdrawn => "withdrawn",
            ChangeOutcome::Rejected => "rejected",
            ChangeOutcome::Voided => "voided",
        }
    }
}

/// The gates that one person opened in an emergency.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EmergencyRecord {
    pub by: SpiffeId,
    pub human: Option<HumanName>,
    pub gates: Vec<String>,
    pub reason: String,
    pub at: LeaseTime,
    /// The end of all access of the job.
    pub until: LeaseTime,
}

/// A job's specification, normalised. Its digest is SHA-256 over its canonical JSON (RFC 8785).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSpec {
    /// The version of this normal form.
    pub v: u32,
    pub name: String,
    pub tenant: TenantName,
    pub purpose: String,
    pub why: String,
    pub max_duration_ms: u64,
    pub method: Option<Method>,
    pub params_digest: Option<Digest>,
    pub free_params: Vec<String>,
    pub prompt_lineage: Vec<String>,
    pub read: Vec<ResourceName>,
    /// The folders of other jobs. Left out if there are none, so that the digests of older jobs stay the same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub read_checkpoints: Vec<Object>,
    pub write: Vec<ResourceName>,
    pub pins: BTreeMap<ResourceName, Pin>,
    pub start: Vec<SpiffePattern>,
    pub join: Vec<SpiffePattern>,
    pub expect: u32,
    pub max: u32,
    pub attempts: u32,
    pub done_when: String,
    pub acting_for: Option<HumanName>,
    pub credential_ttl_ms: Option<u64>,
    pub drain_ms: Option<u64>,
    // The change ticket. It is left out if it is empty, so that the digests of older jobs stay the same.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub ticket: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback_to: Option<ResourceName>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub prompt_alternative: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageDigest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sweep: Option<SweepRecord>,
}

/// The origin of the checkpoints that a job reads: the jobs that wrote them, and the data that those jobs read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LineageRecord {
    pub jobs: Vec<JobId>,
    pub resources: Vec<ResourceName>,
}

/// A parameter sweep. The digest of a request leaves out the values.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SweepRecord {
    pub jobs: u32,
    pub values: BTreeMap<String, String>,
}

/// A dataset or model that a job reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputRecord {
    pub resource: ResourceName,
    pub pin: Pin,
    /// The URL of the resource's folder. Absent in older records.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub location: String,
    /// The classification. Only datasets have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classification: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub data_classes: Vec<String>,
    /// The tier. Only models have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tier: Option<String>,
}

/// A decision, and the policy that made it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecisionRecord {
    /// `allow` or `wait`. Denials have their own record.
    pub result: String,
    /// The rules that decided, by action and resource.
    pub rules: Vec<String>,
    pub policy: Digest,
    pub catalog: Digest,
    /// The approved gates. Absent in records of older daemons, and if there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub approved: Vec<String>,
    /// The risk of the job.
    #[serde(default, skip_serializing_if = "RiskRecord::is_none")]
    pub risk: RiskRecord,
}

/// The risk of a job at the time of the decision.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RiskRecord {
    pub score: u32,
    /// The reasons: sorted words of a closed set.
    pub reasons: Vec<String>,
}

impl RiskRecord {
    fn is_none(&self) -> bool {
        *self == RiskRecord::default()
    }
}

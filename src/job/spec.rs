//! The checked specification of a job, with all defaults filled in.

use std::{collections::BTreeMap, fmt, str::FromStr, time::Duration};

use crate::name::{
    Digest, HumanName, ImageDigest, InstanceName, Method, Object, Pin, ResourceName, Scope, SpiffeId,
    SpiffePattern, TenantName,
};

/// A job's specification. The server that read it has checked all bounds of `limits`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    pub name: String,
    pub tenant: TenantName,
    pub purpose: String,
    pub why: String,
    /// The change ticket of the job. Empty if the job names none.
    pub ticket: String,
    /// The model version to which a rollback returns if the tuned model is bad.
    pub rollback_to: Option<ResourceName>,
    /// The reason for which a better prompt is not enough. Empty if the job gives none.
    pub prompt_alternative: String,
    /// The container image that the launcher says the job runs. Nothing attests it.
    pub image: Option<ImageDigest>,
    /// Set if the job is one of several jobs that differ only in free parameters.
    pub sweep: Option<ParamSweep>,
    pub max_duration: Duration,
    pub tune: Option<Tuning>,
    /// Datasets and models, each with its version.
    pub read: Vec<ResourceName>,
    /// The folders of other jobs in checkpoint lines, which the job only reads. Each object is a folder.
    pub read_checkpoints: Vec<Object>,
    /// Checkpoint lines.
    pub write: Vec<ResourceName>,
    /// Pins that the launcher relies on.
    pub pins: BTreeMap<ResourceName, Pin>,
    pub members: Members,
    pub acting_for: Option<HumanName>,
    /// The requested life of each lease. `None` means the daemon's default.
    pub credential_ttl: Option<Duration>,
    /// Time for checkpoint writes after a drain began. `None` means the daemon's default.
    pub drain: Option<Duration>,
}

impl Spec {
    /// Returns the resources that the job opens: those that it reads, and the checkpoint lines.
    pub fn resources(&self) -> impl Iterator<Item = &ResourceName> {
        self.read.iter().chain(&self.write).chain(self.read_checkpoints.iter().map(Object::resource))
    }

    /// Returns the whole scope of each resource and folder that the job opens.
    pub fn scopes(&self) -> impl Iterator<Item = Scope> {
        let own = self.read.iter().chain(&self.write).cloned().map(Scope::whole);
        own.chain(self.read_checkpoints.iter().map(Scope::of))
    }
}

/// The planned change of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tuning {
    pub method: Method,
    pub params_digest: Option<Digest>,
    pub free_params: Vec<String>,
    /// Prompt versions that the tuning uses.
    pub prompts: Vec<String>,
}

/// A parameter sweep: several jobs with different values of free parameters. One approval covers all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParamSweep {
    /// The number of jobs in the sweep. At least 2.
    pub jobs: u32,
    /// The values of this job, by the name of the parameter. Approvals do not cover the values.
    pub values: BTreeMap<String, String>,
}

/// The identities that may take part, and their number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Members {
    /// The identities that may begin an attempt, in addition to the launcher.
    pub start: Vec<SpiffePattern>,
    /// The identities that may join an attempt. Never empty: the launcher is the default.
    pub join: Vec<SpiffePattern>,
    /// The number of members that make the attempt complete. At least 1.
    pub expect: u32,
    /// The highest number of members that may be joined at once. At least `expect`.
    pub max: u32,
    /// The highest number of attempts. At least 1.
    pub attempts: u32,
    pub done_when: DoneWhen,
}

impl Members {
    pub fn may_join(&self, id: &SpiffeId) -> bool {
        self.join.iter().any(|p| p.matches(id))
    }

    /// Whether `join` names exactly this identity. A pattern that matches other identities too is not enough.
    pub fn names_to_join(&self, id: &SpiffeId) -> bool {
        self.join.iter().any(|p| p.exact().is_some_and(|named| named == *id))
    }

    /// Whether `start` names exactly this identity.
    pub fn names_to_start(&self, id: &SpiffeId) -> bool {
        self.start.iter().any(|p| p.exact().is_some_and(|named| named == *id))
    }

    pub fn may_start(&self, id: &SpiffeId) -> bool {
        self.start.iter().any(|p| p.matches(id))
    }
}

/// The rule by which the ends of members end their attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DoneWhen {
    /// The attempt ends when all expected members have completed.
    All,
    /// The attempt ends when one member has completed.
    Any,
    /// The attempt ends when this member has completed.
    Instance(InstanceName),
}

impl fmt::Display for DoneWhen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DoneWhen::All => f.write_str("all"),
            DoneWhen::Any => f.write_str("any"),
            DoneWhen::Instance(i) => write!(f, "instance:{i}"),
        }
    }
}

impl FromStr for DoneWhen {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "" | "all" => Ok(DoneWhen::All),
            "any" => Ok(DoneWhen::Any),
            _ => text
                .strip_prefix("instance:")
                .and_then(|i| i.parse().ok())
                .map(DoneWhen::Instance)
                .ok_or("it must be `all`, `any` or `instance:NAME`"),
        }
    }
}

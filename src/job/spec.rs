//! What a job will do, as its launcher described it: checked, with all defaults filled in.

use std::{collections::BTreeMap, fmt, str::FromStr, time::Duration};

use crate::name::{
    Digest, HumanName, ImageDigest, InstanceName, Method, Pin, ResourceName, SpiffeId, SpiffePattern,
    TenantName,
};

/// A job's specification. The edge that read it has checked every bound of `limits`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    pub name: String,
    pub tenant: TenantName,
    pub purpose: String,
    pub why: String,
    /// The change ticket that the job belongs to; empty if it names none.
    pub ticket: String,
    /// The model version to go back to if the tuned one is bad.
    pub rollback_to: Option<ResourceName>,
    /// Why a better prompt is not enough; empty if it does not say.
    pub prompt_alternative: String,
    /// The container image that the launcher says the job runs. Nothing attests it.
    pub image: Option<ImageDigest>,
    /// Set if it is one of several jobs that differ only in free parameters.
    pub sweep: Option<ParamSweep>,
    pub max_duration: Duration,
    pub tune: Option<Tuning>,
    /// Datasets and models, each with its version.
    pub read: Vec<ResourceName>,
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

/// How the model will be changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tuning {
    pub method: Method,
    pub params_digest: Option<Digest>,
    pub free_params: Vec<String>,
    /// Prompt versions that the tuning draws on.
    pub prompts: Vec<String>,
}

/// A sweep over the free parameters of a tuning: several jobs that one approval covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParamSweep {
    /// How many jobs it has; at least 2.
    pub jobs: u32,
    /// The values of this job, by the name of the parameter. Not a part of what is approved.
    pub values: BTreeMap<String, String>,
}

/// Who may take part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Members {
    /// Who may begin an attempt, in addition to the launcher.
    pub start: Vec<SpiffePattern>,
    /// Who may join one. Never empty: the edge fills in the launcher.
    pub join: Vec<SpiffePattern>,
    /// How many members make the attempt whole; at least 1.
    pub expect: u32,
    /// How many may be joined at once; at least `expect`.
    pub max: u32,
    /// How many attempts the job may have; at least 1.
    pub attempts: u32,
    pub done_when: DoneWhen,
}

impl Members {
    pub fn may_join(&self, id: &SpiffeId) -> bool {
        self.join.iter().any(|p| p.matches(id))
    }

    /// Whether `join` names exactly this identity, not only by a pattern that others match too.
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

/// When the ends of members end their attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DoneWhen {
    /// All of the expected members have completed.
    All,
    /// One member has completed.
    Any,
    /// This member has completed.
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
                .ok_or("it is `all`, `any` or `instance:NAME`"),
        }
    }
}

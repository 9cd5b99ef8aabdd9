//! The questions to the engine.

use std::{collections::BTreeSet, fmt, time::Duration};

use super::{JobRisk, Relation, Rpc, entities::ALL_TENANTS};
use crate::{
    catalog::Principal,
    clock::Wall,
    job::Spec,
    name::{
        Action, HumanName, ImageDigest, Method, NameError, Object, ResourceKind, ResourceName, SpiffeId,
        TenantName,
    },
    plain,
    written::nearest,
};

/// The caller in a question. The engine finds the caller's entry in the engine's catalog.
#[derive(Clone, Copy, Debug)]
pub enum Asker<'a> {
    /// An attested caller.
    Identity(&'a SpiffeId),
    /// Any identity that this entry matches. For jobs that are being created, and for sweeps.
    Entry(&'a Principal),
}

/// A question about all actions that a job requests at once. If policy denies one action, it denies the whole bundle.
#[derive(Clone, Debug)]
pub struct Bundle<'a> {
    /// The id of the job.
    pub job: &'a str,
    /// The tenant of the job.
    pub tenant: &'a TenantName,
    /// The number of the attempt. 0 before the first attempt.
    pub attempt: u64,
    /// The phase of the job.
    pub phase: Phase,
    /// The purpose that the job names.
    pub purpose: &'a str,
    /// Further facts from the job's specification.
    pub facts: RequestFacts<'a>,
    /// The risk of the job, by the catalog.
    pub risk: &'a JobRisk,
    /// The method that the job names, if it changes a model.
    pub method: Option<Method>,
    /// The requested lifetime of the credential.
    pub ttl: Duration,
    /// The time for rules that read the time.
    pub now: Wall,
    /// Ids of the gates that have enough approvals for exactly this request.
    pub approved: &'a BTreeSet<String>,
    /// Whether the checkpoints to read or delete belong to this job. If an action names a folder, it is always about the
    /// checkpoints of another job.
    pub own_checkpoint: bool,
    /// What the credential is bound to: `subject`, `certificate` or `bearer`. Empty if the question is not about one credential.
    pub binding: &'a str,
    /// The actions, each with its resource, or with the folder of another job. Never empty.
    pub parts: &'a [(Action, Object)],
}

/// Facts from a job's specification, beside its purpose and method. Rules can require each of them.
#[derive(Clone, Copy, Debug, Default)]
pub struct RequestFacts<'a> {
    /// The reason for which the job runs now.
    pub why: &'a str,
    /// The change ticket of the job.
    pub ticket: &'a str,
    /// The model version to which a rollback returns.
    pub rollback_to: Option<&'a ResourceName>,
    /// The reason for which a better prompt is not enough.
    pub prompt_alternative: &'a str,
    /// The container image that the launcher says it runs.
    pub image: Option<&'a ImageDigest>,
    /// The person for whom the job acts.
    pub acting_for: Option<&'a HumanName>,
}

impl<'a> RequestFacts<'a> {
    /// Returns the facts of a job that fills in every field, for questions before a job exists.
    pub fn assumed(on: &'a ResourceName) -> Self {
        let said = "assumed";
        RequestFacts {
            why: said,
            ticket: said,
            rollback_to: (on.kind() == ResourceKind::Model).then_some(on),
            prompt_alternative: said,
            image: None,
            acting_for: None,
        }
    }

    /// Returns the facts of a specification.
    pub fn of(spec: &'a Spec) -> Self {
        RequestFacts {
            why: &spec.why,
            ticket: &spec.ticket,
            rollback_to: spec.rollback_to.as_ref(),
            prompt_alternative: &spec.prompt_alternative,
            image: spec.image.as_ref(),
            acting_for: spec.acting_for.as_ref(),
        }
    }
}

/// The phase of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The job is being created: no attempt has begun.
    Creating,
    /// An attempt runs.
    Running,
    /// The attempt ends soon.
    Draining,
}

impl Phase {
    /// Returns the word that the context of a rule has.
    pub const fn as_str(self) -> &'static str {
        match self {
            Phase::Creating => "creating",
            Phase::Running => "running",
            Phase::Draining => "draining",
        }
    }
}

/// One act, as a person names it: an action of a job, or a call about a tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AskedAct {
    /// An action on a resource. If the object is a folder, it belongs to another job.
    Access(Action, Object),
    /// A call about a tenant. `None` stands for all tenants at once.
    Call(Rpc, Option<TenantName>),
}

impl AskedAct {
    /// Reads an action and its object. A call without a tenant is about the tenant `own`.
    ///
    /// # Errors
    /// The name of the wrong field, `action` or `resource`, and the mistake in it.
    pub fn parse(
        action: &str,
        resource: &str,
        own: Option<&TenantName>,
    ) -> Result<Self, (&'static str, String)> {
        let of_resource = |why: NameError| ("resource", why.to_string());
        if let Ok(action) = action.parse::<Action>() {
            return resource.parse().map(|on| AskedAct::Access(action, on)).map_err(of_resource);
        }
        let Some(rpc) = Rpc::parse(action) else {
            let known = Action::ALL.iter().map(|a| a.as_str()).chain(Rpc::ALL.iter().map(|r| r.as_str()));
            let what = match nearest(action, known.clone()) {
                Some(near) => format!("`{}` is not an action: write `{near}`?", plain::value(action)),
                None => {
                    let known: Vec<_> = known.collect();
                    format!("`{}` is not an action: write one of {}", plain::value(action), known.join(", "))
                }
            };
            return Err(("action", what));
        };
        match resource {
            ALL_TENANTS => Ok(AskedAct::Call(rpc, None)),
            "" if own.is_some() => Ok(AskedAct::Call(rpc, own.cloned())),
            tenant => tenant.parse().map(|t| AskedAct::Call(rpc, Some(t))).map_err(of_resource),
        }
    }
}

impl fmt::Display for AskedAct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AskedAct::Access(action, resource) => write!(f, "{action} {resource}"),
            AskedAct::Call(rpc, tenant) => {
                write!(f, "{rpc} {}", tenant.as_ref().map_or(ALL_TENANTS, |t| t.as_str()))
            }
        }
    }
}

/// One call of the API.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    pub caller: &'a SpiffeId,
    pub rpc: Rpc,
    /// The tenant that owns the object of the call. `None` if the object belongs to no tenant, or if the call is about
    /// all tenants at once.
    pub tenant: Option<&'a TenantName>,
    pub relations: &'a [Relation],
    pub now: Wall,
    /// The reason that the caller gave; empty if the call has none.
    pub reason: &'a str,
    /// The authentication methods of the caller's login (`amr`, RFC 8176). Empty for callers that did not log in.
    pub amr: &'a [String],
}

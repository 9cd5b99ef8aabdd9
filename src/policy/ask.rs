//! What is asked of the engine.

use std::{collections::BTreeSet, time::Duration};

use super::{Relation, Rpc};
use crate::{
    catalog::Principal,
    clock::Wall,
    name::{Action, Method, ResourceName, SpiffeId, TenantName},
};

/// Who asks. The engine looks the entry up in the catalog that it was made with.
#[derive(Clone, Copy, Debug)]
pub enum Asker<'a> {
    /// An attested caller.
    Identity(&'a SpiffeId),
    /// Whoever may come under this entry: for jobs that are being created, and for sweeps.
    Entry(&'a Principal),
}

/// Everything that a job wants at once. All of it is decided, and one denial denies all.
#[derive(Clone, Debug)]
pub struct Bundle<'a> {
    pub job: &'a str,
    pub tenant: &'a TenantName,
    /// 0 before the first.
    pub attempt: u64,
    pub phase: Phase,
    pub purpose: &'a str,
    pub method: Option<Method>,
    /// The life asked for a credential.
    pub ttl: Duration,
    pub now: Wall,
    /// Ids of the gates that were found satisfied for exactly this request.
    pub approved: &'a BTreeSet<String>,
    /// The checkpoints to read or delete are those of this job.
    pub own_checkpoint: bool,
    /// What is asked. Never empty.
    pub parts: &'a [(Action, ResourceName)],
}

/// Where a job is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Creating,
    Running,
    Draining,
}

impl Phase {
    pub const fn as_str(self) -> &'static str {
        match self {
            Phase::Creating => "creating",
            Phase::Running => "running",
            Phase::Draining => "draining",
        }
    }
}

/// One call of the API.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    pub caller: &'a SpiffeId,
    pub rpc: Rpc,
    /// The tenant of what is called upon; `None` for what belongs to no tenant, and for all tenants at once.
    pub tenant: Option<&'a TenantName>,
    pub relations: &'a [Relation],
    pub now: Wall,
    /// What the caller gave as its reason; empty where the call has none.
    pub reason: &'a str,
}

//! The questions to the engine.

use std::{collections::BTreeSet, time::Duration};

use super::{Relation, Rpc};
use crate::{
    catalog::Principal,
    clock::Wall,
    name::{Action, Method, ResourceName, SpiffeId, TenantName},
};

/// The caller that a question is about. The engine finds its entry in its own catalog.
#[derive(Clone, Copy, Debug)]
pub enum Asker<'a> {
    /// An attested caller.
    Identity(&'a SpiffeId),
    /// Any identity that this entry matches: for jobs that are being created, and for sweeps.
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

/// The phase of a job.
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
    /// The tenant of the object of the call; `None` if it belongs to no tenant, or for all tenants at once.
    pub tenant: Option<&'a TenantName>,
    pub relations: &'a [Relation],
    pub now: Wall,
    /// The reason that the caller gave; empty if the call has none.
    pub reason: &'a str,
}

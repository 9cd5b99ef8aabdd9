//! The caller of a request: a peer, and its entry in the catalog.

use std::sync::Arc;

use super::rules::Rules;
use crate::{
    catalog::Principal,
    identity::Peer,
    job::Job,
    ledger::Actor,
    name::{SpiffeId, SpiffePattern, TenantName},
    people::person_id,
    policy::Relation,
    state::Login,
};

/// A peer that has an entry in the catalog, and the rules with that catalog.
#[derive(Clone)]
pub struct Caller {
    /// The other side of the connection.
    pub peer: Peer,
    /// The caller's entry in the catalog.
    pub principal: Arc<Principal>,
    pub(super) rules: Arc<Rules>,
    /// The login, if the caller is a person who logged in.
    pub login: Option<Arc<Login>>,
}

impl Caller {
    /// Returns the SPIFFE ID of the peer.
    pub fn id(&self) -> &SpiffeId {
        self.peer.spiffe_id()
    }

    /// Returns the name under which the limits for connections and request rates are counted. A person has one identity
    /// for each group. All of them are counted as one.
    pub fn counted_as(&self) -> SpiffeId {
        let person = self.login.as_ref().map(|login| {
            let domain = login.id.trust_domain();
            person_id(&domain, &login.human, None)
        });
        person.and_then(Result::ok).unwrap_or_else(|| self.id().clone())
    }

    /// Returns the tenant of the caller. The catalog file of this tenant contains the caller's entry.
    pub fn tenant(&self) -> &TenantName {
        &self.principal.tenant
    }

    /// Returns the authentication methods of the person's login (`amr`). Empty for callers that did not log in.
    pub(super) fn amr(&self) -> &[String] {
        self.login.as_ref().map_or(&[], |login| login.amr.as_slice())
    }

    /// Whether the caller's tenant is the only one in the catalog.
    pub(super) fn is_only_tenant(&self) -> bool {
        self.rules.catalog().tenants().all(|tenant| tenant == self.tenant())
    }

    pub(super) fn actor(&self) -> Actor {
        Actor::Caller { spiffe_id: self.id().clone(), human: self.principal.human(self.id()) }
    }

    /// Returns the caller's relations to a job. Empty if there are none.
    ///
    /// An identity of another tenant may start or join a job only if the job names its full ID. A pattern is not
    /// enough.
    pub(super) fn relations(&self, job: &Job) -> Vec<Relation> {
        let mut all = relations(self.id(), job);
        if *self.tenant() != job.spec.tenant {
            let members = &job.spec.members;
            let is_named = |patterns: &[SpiffePattern]| {
                patterns.iter().any(|p| p.exact().is_some_and(|id| id == *self.id()))
            };
            all.retain(|relation| match relation {
                Relation::Start => is_named(&members.start),
                Relation::Join => is_named(&members.join),
                _ => true,
            });
        }
        all
    }
}

/// Returns the relations of an identity to a job. Empty if there are none.
pub(super) fn relations(id: &SpiffeId, job: &Job) -> Vec<Relation> {
    let mut all = Vec::new();
    if job.launcher == *id {
        all.push(Relation::Launcher);
    }
    if job.spec.members.may_start(id) {
        all.push(Relation::Start);
    }
    if job.spec.members.may_join(id) {
        all.push(Relation::Join);
    }
    if job.attempts.iter().any(|a| a.members.has(id)) {
        all.push(Relation::Member);
    }
    all
}

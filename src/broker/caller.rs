//! The caller of a request: a peer, and its entry in the catalog.

use std::sync::Arc;

use super::{context::Broker, refusals::job_not_found, rules::Rules};
use crate::{
    catalog::Principal,
    clock::LeaseTime,
    identity::Peer,
    job::Job,
    ledger::Actor,
    limits,
    name::{FenceName, PrincipalKind, SpiffeId, SpiffePattern, TenantName},
    policy::{Call, Relation, Rpc},
    reason::{Reason, Refusal},
    state::LockName,
};

/// A peer that the catalog knows, with the rules that it was looked up in.
#[derive(Clone)]
pub struct Caller {
    pub peer: Peer,
    pub principal: Arc<Principal>,
    pub(super) rules: Arc<Rules>,
}

impl Caller {
    pub fn id(&self) -> &SpiffeId {
        self.peer.spiffe_id()
    }

    pub fn tenant(&self) -> &TenantName {
        &self.principal.tenant
    }

    /// Whether the daemon has no other tenant that the caller could harm or learn about.
    pub(super) fn is_only_tenant(&self) -> bool {
        self.rules.catalog().tenants().all(|tenant| tenant == self.tenant())
    }

    pub(super) fn actor(&self) -> Actor {
        Actor::SpiffeId(self.id().clone())
    }

    /// Returns its relations to a job: none for a stranger.
    ///
    /// An identity of another tenant has a part in it only if the job names it in full: a pattern of one tenant does not reach
    /// the identities of the others.
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

/// Returns the relations of an identity to a job: none for a stranger.
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

/// Whether a caller that a lock shuts out may still make a call: to ask who it is, and to give back its own lease.
fn is_open_to_the_locked(rpc: Rpc) -> bool {
    matches!(rpc, Rpc::WhoAmI | Rpc::ReleaseLease)
}

impl Broker {
    /// Admits a caller to a call: the catalog must know it, and no lock may shut it out. Open streams ask again.
    pub fn admit(&self, peer: &Peer, rpc: Rpc) -> Result<Caller, Refusal> {
        let caller = self.caller(peer)?;
        let breaks_glass = matches!(rpc, Rpc::Unlock | Rpc::ListLocks) && self.breaks_glass(caller.id());
        if !is_open_to_the_locked(rpc) && !breaks_glass {
            let names =
                [FenceName::identity(caller.id().clone()), FenceName::domain(caller.id().trust_domain())];
            self.check_unlocked(names.iter())?;
        }
        Ok(caller)
    }

    /// Waits until a caller may no longer make a call that goes on, and returns why. Decides again after each lock and each
    /// reload, and within [`limits::REAUTHORIZE`] for rules that read the time.
    pub async fn until_refused(
        &self,
        peer: &Peer,
        rpc: Rpc,
        may: impl Fn(&Caller) -> Result<(), Refusal> + Send,
    ) -> Refusal {
        let mut changes = self.changes();
        loop {
            if let Err(refusal) = self.admit(peer, rpc).and_then(|caller| may(&caller)) {
                return refusal;
            }
            tokio::select! {
                _ = changes.changed() => {}
                () = self.clock.sleep(limits::REAUTHORIZE) => {}
            }
        }
    }

    /// Whether the daemon's configuration lets an identity lift every lock.
    pub(super) fn breaks_glass(&self, id: &SpiffeId) -> bool {
        self.settings.break_glass.contains(id)
    }

    /// Finds the caller in the catalog. Refuses a peer that no entry matches, except the break-glass identity.
    pub fn caller(&self, peer: &Peer) -> Result<Caller, Refusal> {
        let rules = self.rules();
        let id = peer.spiffe_id();
        let entry = rules.catalog().principal(id).cloned();
        let entry = entry.or_else(|| self.breaks_glass(id).then(|| Arc::new(Principal::break_glass(id))));
        let principal = entry.ok_or_else(|| {
            Refusal::new(Reason::PrincipalUnknown, "no catalog entry matches your SPIFFE ID")
                .with("you", peer.spiffe_id().to_string())
                .fix("have a [[principal]] whose match covers this ID added to your tenant's catalog file")
        })?;
        Ok(Caller { peer: peer.clone(), principal, rules })
    }

    /// Refuses a call that policy does not allow on a tenant's things. `None` stands for all tenants.
    pub(super) fn authorize(
        &self,
        caller: &Caller,
        rpc: Rpc,
        tenant: Option<&TenantName>,
        relations: &[Relation],
        reason: &str,
    ) -> Result<(), Refusal> {
        self.rules().engine.authorize(&Call {
            caller: caller.id(),
            rpc,
            tenant,
            relations,
            now: self.clock.now().wall,
            reason,
        })
    }

    /// Whether policy allows a call for all tenants. Refuses it if it does not even for the caller's tenant.
    pub(super) fn is_for_all_tenants(&self, caller: &Caller, rpc: Rpc) -> Result<bool, Refusal> {
        match self.authorize(caller, rpc, None, &[], "") {
            Ok(()) => Ok(true),
            Err(_) => self.authorize(caller, rpc, Some(caller.tenant()), &[], "").map(|()| false),
        }
    }

    /// Refuses a call about a job that policy does not allow. A stranger gets the answer for an absent job.
    pub(super) fn authorize_job(
        &self,
        caller: &Caller,
        rpc: Rpc,
        job: &Job,
        reason: &str,
    ) -> Result<(), Refusal> {
        self.authorize_job_as(caller, rpc, job, caller.relations(job), reason)
    }

    /// Refuses a call about a job that policy does not allow to a caller with these relations.
    pub(super) fn authorize_job_as(
        &self,
        caller: &Caller,
        rpc: Rpc,
        job: &Job,
        relations: Vec<Relation>,
        reason: &str,
    ) -> Result<(), Refusal> {
        self.authorize(caller, rpc, Some(&job.spec.tenant), &relations, reason).map_err(|refusal| {
            let oversees = matches!(caller.principal.kind, PrincipalKind::Operator | PrincipalKind::Auditor)
                && self.sees(caller, &job.spec.tenant);
            if relations.is_empty() && !oversees { job_not_found() } else { refusal }
        })
    }

    /// Whether the caller may know that a tenant's things exist.
    pub(super) fn sees(&self, caller: &Caller, tenant: &TenantName) -> bool {
        caller.tenant() == tenant || self.authorize(caller, Rpc::GetJob, Some(tenant), &[], "").is_ok()
    }

    /// Refuses if one of the names is locked.
    pub(super) fn check_unlocked<'a>(
        &self,
        names: impl Iterator<Item = &'a FenceName>,
    ) -> Result<(), Refusal> {
        match self.state.lock_on(names) {
            None => Ok(()),
            Some(lock) => {
                let what = match &lock.name {
                    LockName::Name(n) => n.to_string(),
                    LockName::Prefix(p) => p.clone(),
                };
                let refusal = Refusal::new(Reason::Locked, format!("{what} is locked"))
                    .with("why", lock.reason.clone())
                    .with("since", self.wall_text(lock.since));
                let refusal = match lock.until {
                    Some(until) => refusal.with("until", self.wall_text(until)),
                    None => refusal,
                };
                Err(refusal.fix(format!("ask an operator to lift it: leasehold unlock {}", lock.name)))
            }
        }
    }

    pub(super) fn wall_text(&self, at: LeaseTime) -> String {
        self.clock.now().wall_at(at).to_string()
    }
}

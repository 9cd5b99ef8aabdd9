//! Decides which callers may make which calls, by the catalog, the policy and the locks.

use std::sync::Arc;

use super::{
    caller::Caller,
    context::BrokerContext,
    joining::membership_over,
    names,
    refusals::{job_not_found, move_refusal},
    session::MemberSession,
};
use crate::{
    catalog::Principal,
    clock::LeaseTime,
    identity::Peer,
    job::{Job, Member, MemberState},
    limits,
    name::{Digest, FenceName, PrincipalKind, SpiffeId, TenantName},
    people::PERSON_SEGMENT,
    policy::{Call, Relation, Rpc},
    reason::{Reason, Refusal},
    state::{Lock, Login},
};

/// Finds callers in the catalog, and refuses calls that they may not make.
#[derive(Clone)]
pub struct AccessControl {
    pub(super) context: Arc<BrokerContext>,
}

impl AccessControl {
    /// Admits a caller to a call: the catalog must have an entry for the caller, and no lock may shut the caller out.
    /// Open streams are checked again.
    pub fn admit(&self, peer: &Peer, rpc: Rpc) -> Result<Caller, Refusal> {
        let caller = self.caller(peer)?;
        let breaks_glass = matches!(rpc, Rpc::Unlock | Rpc::ListLocks) && self.breaks_glass(caller.id());
        if !is_open_to_the_locked(rpc) && !breaks_glass {
            let lock = self.lock_on_identity(caller.id());
            lock.map_or(Ok(()), |lock| Err(self.context.locked(&lock)))?;
        }
        Ok(caller)
    }

    /// Returns the lock that shuts an identity out, if there is one. The lock can be on the SPIFFE ID, its trust
    /// domain, a prefix, or the person who uses the identity. Such an identity may make only the calls of
    /// `is_open_to_the_locked`, and its approvals do not count.
    pub(super) fn lock_on_identity(&self, id: &SpiffeId) -> Option<Lock> {
        if !self.context.state.has_locks() {
            return None;
        }
        self.context.state.lock_on(names::of_identity(&self.context.rules(), id).iter())
    }

    /// Says which lock shuts an identity out, and why. `None` if none does.
    pub fn locked_because(&self, id: &SpiffeId) -> Option<String> {
        let refusal = self.context.locked(&self.lock_on_identity(id)?);
        let facts = refusal.facts.iter().filter(|(label, _)| label != "fix");
        let facts: Vec<String> = facts.map(|(label, value)| format!("{label}: {value}")).collect();
        Some(format!("{}; {}", refusal.text, facts.join("; ")))
    }

    /// Waits until the caller of an open stream may no longer make this call, and returns why. Decides again after each
    /// lock and each reload. Also decides again every [`limits::REAUTHORIZE`], because rules may read the time.
    pub async fn until_refused(
        &self,
        peer: &Peer,
        rpc: Rpc,
        may: impl Fn(&Caller) -> Result<(), Refusal> + Send,
    ) -> Refusal {
        let mut changes = self.context.changes();
        loop {
            if let Err(refusal) = self.admit(peer, rpc).and_then(|caller| may(&caller)) {
                return refusal;
            }
            tokio::select! {
                _ = changes.changed() => {}
                () = self.context.clock.sleep(limits::REAUTHORIZE) => {}
            }
        }
    }

    /// Whether the daemon's configuration lets an identity lift every lock.
    pub(super) fn breaks_glass(&self, id: &SpiffeId) -> bool {
        self.context.settings.break_glass.contains(id)
    }

    /// Finds the caller in the catalog. Refuses a peer that no entry matches, except the break-glass identity.
    pub fn caller(&self, peer: &Peer) -> Result<Caller, Refusal> {
        let rules = self.context.rules();
        let id = peer.spiffe_id();
        let entry = rules.catalog().principal(id).cloned();
        let entry = entry.or_else(|| self.breaks_glass(id).then(|| Arc::new(Principal::break_glass(id))));
        let principal = entry.ok_or_else(|| {
            Refusal::new(Reason::PrincipalUnknown, "no catalog entry matches your SPIFFE ID")
                .with("you", peer.spiffe_id().to_string())
                .fix("ask the owner of your tenant's catalog file to add a [[principal]] whose match covers this ID")
        })?;
        let login = self.login(peer)?;
        if let Some(login) = &login
            && principal.human(id).as_ref() != Some(&login.human)
        {
            let text = "your catalog entry does not name you as the person who logged in";
            return Err(names_no_person(Reason::PrincipalUnknown, text, id, &principal));
        }
        Ok(Caller { peer: peer.clone(), principal, rules, login })
    }

    /// Returns the login of a person. The SVID of a person is valid only during the login. Returns `None` for peers of
    /// all other trust domains.
    fn login(&self, peer: &Peer) -> Result<Option<Arc<Login>>, Refusal> {
        let people = self.context.settings.people.as_ref();
        let Some(people) = people.filter(|people| people.domain == peer.spiffe_id().trust_domain()) else {
            return Ok(None);
        };
        let login = self.context.state.login(&Digest(*peer.x5t_s256()));
        // The configuration may have changed since the login: another provider, fewer groups, a second factor.
        let now = self.context.clock.now().lease;
        let login = login.filter(|login| {
            let group = login.id.segments().nth(PERSON_SEGMENT);
            people.still_admits(login.terms, group, &login.amr, now.since(login.at))
        });
        login.map(Some).ok_or_else(|| {
            Refusal::new(
                Reason::LoginRequired,
                "your login is over: it was ended, the configuration would no longer admit it, or this daemon does not know it",
            )
            .with("you", peer.spiffe_id().to_string())
            .fix("leasehold login")
        })
    }

    /// Refuses a call that policy does not allow for a tenant. `None` stands for all tenants.
    pub(super) fn authorize(
        &self,
        caller: &Caller,
        rpc: Rpc,
        tenant: Option<&TenantName>,
        relations: &[Relation],
        reason: &str,
    ) -> Result<(), Refusal> {
        self.context.rules().engine.authorize(&Call {
            caller: caller.id(),
            rpc,
            tenant,
            relations,
            now: self.context.clock.now().wall,
            reason,
            amr: caller.amr(),
        })
    }

    /// Whether policy allows a call for all tenants. If policy does not even allow it for the caller's tenant, refuses the
    /// call.
    pub(super) fn is_for_all_tenants(&self, caller: &Caller, rpc: Rpc) -> Result<bool, Refusal> {
        match self.authorize(caller, rpc, None, &[], "") {
            Ok(()) => Ok(true),
            Err(_) => self.authorize(caller, rpc, Some(caller.tenant()), &[], "").map(|()| false),
        }
    }

    /// Refuses a call about a job if policy does not allow the call. A caller that may not see the job gets the answer for
    /// an absent job.
    pub(super) fn authorize_job(
        &self,
        caller: &Caller,
        rpc: Rpc,
        job: &Job,
        reason: &str,
    ) -> Result<(), Refusal> {
        self.authorize_job_as(caller, rpc, job, caller.relations(job), reason)
    }

    /// Refuses a call about a job if policy does not allow the call to a caller with these relations.
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

    /// Refuses a call about a job that does not exist. Asks policy first, as it does for a job of another tenant, so that
    /// the time of the answer does not show whether a job exists.
    pub(super) fn absent_job(&self, caller: &Caller, rpc: Rpc) -> Refusal {
        drop(self.authorize(caller, rpc, None, &[], ""));
        job_not_found()
    }

    /// Whether the caller may know the jobs and resources of a tenant.
    pub(super) fn sees(&self, caller: &Caller, tenant: &TenantName) -> bool {
        caller.tenant() == tenant || self.authorize(caller, Rpc::GetJob, Some(tenant), &[], "").is_ok()
    }

    /// Returns the joined member that a session names, and its job.
    pub(super) fn member(
        &self,
        caller: &Caller,
        session: &MemberSession,
    ) -> Result<(Arc<Job>, Member), Refusal> {
        let job = self.context.state.job(session.job).ok_or_else(job_not_found)?;
        if caller.relations(&job).is_empty() {
            return Err(job_not_found());
        }
        let a = job.running(session.attempt).map_err(move_refusal)?;
        let m = a
            .members
            .get(&session.instance)
            .filter(|m| m.spiffe_id == *caller.id() && m.session == session.secret.digest())
            .cloned()
            .ok_or_else(|| {
                Refusal::new(
                    Reason::SessionMismatch,
                    format!("you are not the member {} of this attempt", session.instance),
                )
                .fix("join first; a session belongs to one identity, one instance and one secret")
            })?;
        match m.state {
            MemberState::Joined => Ok((job, m)),
            MemberState::Away { .. } => Err(Refusal::new(Reason::NotJoined, "you are away: join again")),
            MemberState::Left | MemberState::Lost => {
                // If a lock ended the membership, the refusal names the lock.
                let names = names::of_member(
                    &self.context.rules(),
                    &job,
                    session.attempt,
                    &session.instance,
                    caller.id(),
                );
                self.check_unlocked(caller.id(), names.iter())?;
                Err(Refusal::new(Reason::NotJoined, membership_over(&job, session.attempt, &m)))
            }
        }
    }

    /// Returns the job of a session whose member was checked before. If the job has changed since then, checks the
    /// member again.
    pub(super) fn member_still(
        &self,
        caller: &Caller,
        session: &MemberSession,
        before: Arc<Job>,
    ) -> Result<Arc<Job>, Refusal> {
        match self.context.state.job(session.job) {
            // A job is never changed in place, so the earlier check is still valid.
            Some(now) if Arc::ptr_eq(&now, &before) => Ok(now),
            _ => self.member(caller, session).map(|(job, _)| job),
        }
    }

    /// Counts a call of a tenant's operator. Operators of the platform are not counted, because they must be able to
    /// end access at any time.
    pub(super) fn charge_operator(&self, caller: &Caller, rpc: Rpc) -> Result<(), Refusal> {
        let is_of_all = self.breaks_glass(caller.id()) || self.authorize(caller, rpc, None, &[], "").is_ok();
        if is_of_all { Ok(()) } else { self.context.rates.charge_call(caller) }
    }

    /// Refuses if one of the names is locked. The refusal says only what `viewer` may know about the lock.
    pub(super) fn check_unlocked<'a>(
        &self,
        viewer: &SpiffeId,
        names: impl Iterator<Item = &'a FenceName>,
    ) -> Result<(), Refusal> {
        if !self.context.state.has_locks() {
            return Ok(());
        }
        let names: Vec<_> = names.collect();
        let lock = self.context.state.lock_on(names.iter().copied());
        lock.map_or(Ok(()), |lock| Err(self.locked_for(viewer, &lock, &names)))
    }

    pub(super) fn wall_text(&self, at: LeaseTime) -> String {
        self.context.clock.now().wall_at(at).to_string()
    }
}

/// Returns the refusal for a person whose catalog entry does not name the person. Approvals, separation of duties and
/// locks on people need this name.
pub(super) fn names_no_person(
    reason: Reason,
    text: &'static str,
    id: &SpiffeId,
    entry: &Principal,
) -> Refusal {
    Refusal::new(reason, text)
        .with("you", id.to_string())
        .with("entry", entry.pattern.to_string())
        .fix(format!("have human = \"segment:{PERSON_SEGMENT}\" written into this entry of the catalog"))
}

/// Whether a locked caller may still make a call. It may ask for its own identity, log out, and give back its own
/// lease.
fn is_open_to_the_locked(rpc: Rpc) -> bool {
    matches!(rpc, Rpc::WhoAmI | Rpc::LogOut | Rpc::ReleaseLease)
}

//! Taking a new catalog and policy: all of it, or nothing; then a sweep of what they no longer allow.

use std::sync::{Arc, PoisonError};

use super::{
    caller::{Caller, relations},
    context::Broker,
    decide::{WorkQuestion, unchanged, work_of},
    renew::stands_behind_todays_names,
    rules::Rules,
};
use crate::{
    job::{Job, MemberState},
    ledger::{Actor, Event},
    name::{Digest, FenceName, InstanceName, Scope, SpiffeId},
    policy::{Asker, Call, Phase, Rpc, Verdict},
    reason::{Reason, Refusal},
};

/// What a reload came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RulesReloaded {
    pub catalog: Digest,
    pub policy: Digest,
    /// Leases of members that the new rules no longer allow.
    pub ended: u64,
}

impl Broker {
    /// Whether the caller may have the catalog read again. A reload puts the files of all tenants in force and tells what is
    /// wrong with them, so it is for those who may do it for all.
    pub fn may_reload(&self, caller: &Caller) -> Result<(), Refusal> {
        if self.authorize(caller, Rpc::ReloadCatalog, None, &[], "").is_ok() {
            return Ok(());
        }
        self.authorize(caller, Rpc::ReloadCatalog, Some(caller.tenant()), &[], "")?;
        if self.is_only_tenant(caller) {
            return Ok(());
        }
        Err(Refusal::new(
            Reason::KindNotAllowed,
            "a reload reads the files of every tenant, and you are an operator of one",
        )
        .fix("ask a platform operator, or have the daemon get SIGHUP when your file has changed"))
    }

    /// Reads rules anew and puts them in force: one at a time, so that what was read later is in force later. Blocking.
    pub fn reload(
        &self,
        read: impl FnOnce(&Rules) -> Result<Rules, Refusal>,
        by: Actor,
        dry_run: bool,
    ) -> Result<(Arc<Rules>, RulesReloaded), Refusal> {
        let _one = self.reloading.lock().unwrap_or_else(PoisonError::into_inner);
        let rules = Arc::new(read(&self.rules())?);
        if dry_run {
            let (catalog, policy) = (rules.catalog().digest(), rules.engine.digest());
            let ended = self.no_longer_allowed(&rules).iter().map(|(name, _)| self.fences.behind(name)).sum();
            return Ok((rules, RulesReloaded { catalog, policy, ended }));
        }
        let reloaded = self.replace_rules(rules.clone(), by);
        Ok((rules, reloaded))
    }

    /// Puts new rules in force. The revision is raised after they are in place and before the sweep: a request that read
    /// the old ones looks at the revision once more before it hands anything out.
    fn replace_rules(&self, rules: Arc<Rules>, by: Actor) -> RulesReloaded {
        self.reach.widen(rules.catalog());
        self.rules.store(rules.clone());
        self.fences.raise_revision();
        let mut ended = 0u64;
        for (name, why) in self.no_longer_allowed(&rules) {
            let why = format!("catalog or policy no longer allow it: {why}");
            let lowered = self.state.lower(&name, &why);
            ended = ended.saturating_add(lowered.ending.behind);
            self.sweep(&[name], &why);
        }
        // Members stand behind the names of today from here on.
        self.sessions.call_all();
        self.decide_again();
        let (catalog, policy) = (rules.catalog().digest(), rules.engine.digest());
        self.ledger.defer(&Event::CatalogLoaded { catalog, policy, by, ended });
        tracing::info!(%catalog, %policy, ended, "catalog and policy in force");
        RulesReloaded { catalog, policy, ended }
    }

    /// The members whose access these rules do not allow, by the names that their leases stand behind, and why: by which rule.
    fn no_longer_allowed(&self, rules: &Rules) -> Vec<(FenceName, String)> {
        let mut names = Vec::new();
        for job in self.state.open_jobs() {
            let Some(a) = job.current() else { continue };
            let launched = self.launcher_stands(rules, &job).map_err(|r| why(&r));
            for (instance, id) in joined(&job) {
                let name = FenceName::member(job.id, a.number, instance);
                let allowed = launched
                    .clone()
                    .and_then(|()| self.still_allowed(rules, &job, &id).map_err(|r| why(&r)))
                    .and_then(|()| match self.stand_behind_todays_names(rules, &job, &name) {
                        true => Ok(()),
                        false => Err("the catalog has another entry for what the job uses".to_owned()),
                    });
                if let Err(why) = allowed {
                    names.push((name, why));
                }
            }
        }
        names
    }

    /// Whether the catalog still says of a member's leases that they depend on what they stand behind.
    fn stand_behind_todays_names(&self, rules: &Rules, job: &Job, member: &FenceName) -> bool {
        let mut leases = self.table.live(Some(member));
        // Those that share their facts share their place, and one answer.
        leases.sort_unstable_by_key(|l| Arc::as_ptr(&l.facts));
        leases.dedup_by_key(|l| Arc::as_ptr(&l.facts));
        leases.iter().all(|l| stands_behind_todays_names(rules, job, l))
    }

    fn still_allowed(&self, rules: &Rules, job: &Job, id: &SpiffeId) -> Result<(), Refusal> {
        let parts = work_of(rules, &job.spec.read, &job.spec.write);
        let question = WorkQuestion {
            rules,
            asker: Asker::Identity(id),
            job,
            attempt: job.attempts.len() as u64,
            phase: Phase::Running,
            ttl: self.ttl_of(job),
            parts: &parts,
        };
        let scopes: Vec<Scope> =
            job.spec.read.iter().chain(&job.spec.write).cloned().map(Scope::whole).collect();
        let call = Call {
            caller: id,
            rpc: Rpc::IssueCredential,
            tenant: Some(&job.spec.tenant),
            relations: &relations(id, job),
            now: self.clock.now().wall,
            reason: "",
        };
        unchanged(rules, job, &scopes)?;
        rules.engine.authorize(&call)?;
        match self.judge(question) {
            Verdict::Allow { .. } => Ok(()),
            Verdict::Wait { gates, .. } => {
                let gate = gates.first().map(|gate| gate.id.clone()).unwrap_or_default();
                Err(Refusal::new(Reason::ApprovalRequired, "people must approve it").with("rule", gate))
            }
            Verdict::Deny { refusal, .. } => Err(refusal),
        }
    }
}

/// The rule that refuses, or else what it says.
fn why(refusal: &Refusal) -> String {
    refusal.fact("rule").map_or_else(|| refusal.text.to_string(), str::to_owned)
}

fn joined(job: &Job) -> Vec<(InstanceName, SpiffeId)> {
    job.current().map_or_else(Vec::new, |a| {
        a.members
            .iter()
            .filter(|(_, m)| m.state == MemberState::Joined)
            .map(|(i, m)| (i.clone(), m.spiffe_id.clone()))
            .collect()
    })
}

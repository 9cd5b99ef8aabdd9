//! The sweep: decides the access of open jobs again, and ends access that is no longer allowed.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    caller::relations,
    context::BrokerContext,
    decide::{Decisions, WorkQuestion, check_inputs, work_of, work_of_scopes},
    draft::Binding,
    endings::Endings,
    renew::stands_behind_todays_names,
    rules::Rules,
};
use crate::{
    catalog::Presenter,
    job::{Job, MemberState},
    name::{FenceKind, FenceName, InstanceName, LeaseId, Scope, SpiffeId},
    policy::{Asker, Call, Phase, Rpc, Verdict},
    reason::{Reason, Refusal},
};

/// Ends access that the rules, or the approvals that count, no longer allow.
#[derive(Clone)]
pub(super) struct Sweeps {
    pub(super) context: Arc<BrokerContext>,
    pub(super) decisions: Decisions,
    pub(super) endings: Endings,
}

impl Sweeps {
    /// Decides again about the members of these jobs, and ends the access of each member that the rules no longer allow. Returns
    /// the number of ended leases.
    pub(super) fn end_no_longer_allowed(&self, rules: &Rules, jobs: &[Arc<Job>], because: &str) -> u64 {
        let mut ended = 0u64;
        for (name, why) in self.no_longer_allowed(rules, jobs) {
            let why = format!("{because}: {why}");
            ended = ended.saturating_add(match name.kind() {
                FenceKind::Lease(id) => self.end_lease(id, &why),
                _ => {
                    let lowered = self.context.state.lower(&name, &why);
                    self.endings.sweep(&[name], &why);
                    lowered.ending.behind
                }
            });
        }
        ended
    }

    /// Ends one lease. No lease stands behind its own name: the name is only for verifiers.
    fn end_lease(&self, id: LeaseId, why: &str) -> u64 {
        let behind = self.endings.end_lease(id, why);
        self.context.state.lower_lease(id, behind, why);
        if behind > 0 {
            self.endings.call_holder(id);
        }
        behind
    }

    /// Ends the leases on resources that the catalog has moved. Returns the number of ended leases.
    pub(super) fn end_moved(&self, moved: &[FenceName]) -> u64 {
        const BECAUSE: &str = "the catalog has another location or audience for it";
        let mut ended = 0u64;
        for name in moved.iter().filter(|name| self.context.fences.behind(name) > 0) {
            let lowered = self.context.state.lower(name, BECAUSE);
            ended = ended.saturating_add(lowered.ending.behind);
            self.endings.sweep(std::slice::from_ref(name), BECAUSE);
        }
        ended
    }

    /// Counts the live leases behind some names. Each lease counts once.
    pub(super) fn count_behind<'n>(&self, names: impl Iterator<Item = &'n FenceName>) -> u64 {
        let now = self.context.clock.now().lease;
        let mut found = BTreeSet::new();
        for name in names {
            let live = self.context.table.live(Some(name)).into_iter().filter(|l| l.check(now).is_ok());
            found.extend(live.map(|l| l.id));
        }
        u64::try_from(found.len()).unwrap_or(u64::MAX)
    }

    /// If approvals of open jobs no longer count, ends the access that depends on them. The lock or the rules that caused this must
    /// already be in force. Returns the number of ended leases.
    pub(super) fn end_unapproved(&self, because: &str, concerns: impl Fn(&Job) -> bool) -> u64 {
        let concerned = || {
            let mut jobs = self.context.state.open_jobs();
            jobs.retain(|job| {
                let is_opened = !job.approvals.is_empty() || job.emergency.is_some();
                is_opened && job.has_begun() && concerns(job)
            });
            jobs
        };
        if concerned().is_empty() {
            return 0;
        }
        // A request that counted such an approval checks the revision before it answers, and starts over.
        self.context.fences.raise_revision();
        self.end_no_longer_allowed(&self.context.rules(), &concerned(), because)
    }

    /// Returns the fence of each member of these jobs that the rules no longer allow, with the reason.
    pub(super) fn no_longer_allowed(&self, rules: &Rules, jobs: &[Arc<Job>]) -> Vec<(FenceName, String)> {
        let mut names = Vec::new();
        for job in jobs {
            let Some(a) = job.current() else { continue };
            let launched = self.decisions.check_launcher(rules, job).map_err(|r| why(&r));
            for (instance, id) in joined(job) {
                let name = FenceName::member(job.id, a.number, instance);
                let allowed = launched
                    .clone()
                    .and_then(|()| self.still_allowed(rules, job, &id, None).map_err(|r| why(&r)))
                    .and_then(|()| match self.stand_behind_todays_names(rules, job, &name) {
                        true => Ok(()),
                        false => {
                            Err("the catalog entry of something that the job uses has changed".to_owned())
                        }
                    });
                match allowed {
                    Err(why) => names.push((name, why)),
                    Ok(()) => names.extend(self.bearers_no_longer_allowed(rules, job, &name, &id)),
                }
            }
        }
        names
    }

    /// Some leases can be used by anyone who has the credential: they have an S3 key, or tokens for a server that does not see who
    /// presents them. Returns the name of each such lease of a member that the rules no longer allow, with the reason.
    fn bearers_no_longer_allowed(
        &self,
        rules: &Rules,
        job: &Job,
        member: &FenceName,
        id: &SpiffeId,
    ) -> Vec<(FenceName, String)> {
        let mut leases = self.context.table.live(Some(member));
        leases.retain(|lease| {
            let audience = rules.catalog().audience(&lease.facts.audience);
            lease.s3_secret.is_some() || audience.is_some_and(|a| a.presenter == Presenter::None)
        });
        // One decision for all leases with the same facts.
        leases.sort_unstable_by_key(|lease| Arc::as_ptr(&lease.facts));
        let mut denied = Vec::new();
        for alike in leases.chunk_by(|a, b| Arc::ptr_eq(&a.facts, &b.facts)) {
            let scopes = alike.first().map(|lease| &*lease.facts.scopes);
            if let Err(refusal) = self.still_allowed(rules, job, id, scopes) {
                let why = why(&refusal);
                denied.extend(alike.iter().map(|lease| (FenceName::lease(lease.id), why.clone())));
            }
        }
        denied
    }

    /// Whether each lease of this member would have the same fences if it were issued by these rules.
    fn stand_behind_todays_names(&self, rules: &Rules, job: &Job, member: &FenceName) -> bool {
        let mut leases = self.context.table.live(Some(member));
        // Leases with the same facts have the same fences, so it is enough to check one of them.
        leases.sort_unstable_by_key(|l| Arc::as_ptr(&l.facts));
        leases.dedup_by_key(|l| Arc::as_ptr(&l.facts));
        leases.iter().all(|l| stands_behind_todays_names(rules, job, l))
    }

    /// Decides again whether a member may do the work of its job. If `bearer` has scopes, also decides whether the member may
    /// hold a bearer credential for these scopes.
    fn still_allowed(
        &self,
        rules: &Rules,
        job: &Job,
        id: &SpiffeId,
        bearer: Option<&[Scope]>,
    ) -> Result<(), Refusal> {
        let (parts, binding) = match bearer {
            None => (work_of(rules, &job.spec), ""),
            Some(scopes) => (work_of_scopes(rules, job, scopes), Binding::Bearer.as_str()),
        };
        let question = WorkQuestion {
            rules,
            asker: Asker::Identity(id),
            job,
            attempt: job.attempts.len() as u64,
            phase: Phase::Running,
            ttl: self.decisions.ttl_of(job),
            parts: &parts,
            risk: None,
            binding,
        };
        let scopes: Vec<Scope> = job.spec.scopes().collect();
        let call = Call {
            caller: id,
            rpc: Rpc::IssueCredential,
            tenant: Some(&job.spec.tenant),
            relations: &relations(id, job),
            now: self.context.clock.now().wall,
            reason: "",
            amr: &[],
        };
        check_inputs(rules, job, &scopes)?;
        self.context.check_checkpoints(rules, job)?;
        rules.engine.authorize(&call)?;
        match self.decisions.judge(question) {
            Verdict::Allow { .. } => Ok(()),
            Verdict::Wait { gates, .. } => {
                let gate = gates.first().map(|gate| gate.id.clone()).unwrap_or_default();
                Err(Refusal::new(Reason::ApprovalRequired, "people must approve it").with("rule", gate))
            }
            Verdict::Deny { refusal, .. } => Err(refusal),
        }
    }
}

/// Returns the rule that refuses, or else the text of the refusal.
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

//! Decides which gates of a job are open now. An approval counts if the rules and locks that are in force now allow it.
//! The rules at the time of the approval do not matter.

use std::{collections::BTreeSet, sync::Arc};

use super::{decide::Decisions, lockout::locked_human, rules::Rules};
use crate::{
    catalog::Principal,
    job::{Approval, Gate, Job, count_people},
    name::{FenceName, HumanName, PrincipalKind, SpiffeId, SpiffePattern, TenantName},
    reason::{Reason, Refusal},
    state::Lock,
};

impl Decisions {
    /// Returns the gates at which enough people approved a job. Only people who may still approve the job count.
    ///
    /// `holder` is the identity that asks for access: an approval does not count for the access of the person who gave it.
    pub(super) fn approved_gates(
        &self,
        rules: &Rules,
        job: &Job,
        holder: Option<&SpiffeId>,
    ) -> BTreeSet<String> {
        let opened = job.emergency.iter().flat_map(|e| &e.gates);
        let named: BTreeSet<&str> =
            job.approvals.iter().map(|a| &a.gate).chain(opened).map(String::as_str).collect();
        let is_open = |gate: &&str| self.missing_people(rules, job, gate, holder) == 0;
        named.into_iter().filter(is_open).map(str::to_owned).collect()
    }

    /// Returns the gates of an open job at which approvals are missing now.
    pub(super) fn gates_waiting<'a>(&self, job: &'a Job) -> Vec<&'a Gate> {
        let rules = self.context.rules();
        let lacks = |gate: &&Gate| self.missing_people(&rules, job, &gate.id, None) > 0;
        if job.is_closed() { Vec::new() } else { job.gates.iter().filter(lacks).collect() }
    }

    /// Returns the number of approvals that are missing at a gate. Reads the gate from the present policy, or from the
    /// copy in the job if the policy no longer has the gate.
    pub(super) fn missing_people(
        &self,
        rules: &Rules,
        job: &Job,
        gate: &str,
        holder: Option<&SpiffeId>,
    ) -> u32 {
        self.missing_people_of(rules, job, gate, holder, None)
    }

    /// Whether a lock that is not in force yet would leave a gate of this job with too few people.
    pub(super) fn would_lose_gate(&self, rules: &Rules, job: &Job, lock: &Lock) -> bool {
        let loses = |gate: &Gate| {
            self.missing_people(rules, job, &gate.id, None) == 0
                && self.missing_people_of(rules, job, &gate.id, None, Some(lock)) > 0
        };
        job.gates.iter().any(loses)
    }

    /// Returns the number of people that a gate lacks if `lock` is in force too.
    fn missing_people_of(
        &self,
        rules: &Rules,
        job: &Job,
        gate: &str,
        holder: Option<&SpiffeId>,
        without: Option<&Lock>,
    ) -> u32 {
        let is_breaker = |lock: &Lock| {
            job.emergency.as_ref().is_some_and(|e| {
                let human = locked_human(lock);
                lock.shuts_out(&e.by)
                    || human.is_some() && (e.human == human || human_of(rules, &e.by) == human)
            })
        };
        if self.emergency_opens(rules, job, gate) && !without.is_some_and(is_breaker) {
            return 0;
        }
        let Some(rule) = gate_now(rules, job, gate) else { return 0 };
        let counts = |approval: &Approval, live: Option<&HumanName>| {
            without.is_none_or(|lock| {
                let human = locked_human(lock);
                let is_human = human.is_some() && (live == human.as_ref() || approval.human == human);
                !is_human && !lock.shuts_out(&approval.by)
            })
        };
        let now = self.context.clock.now().lease;
        let holder = holder.and_then(|id| human_of(rules, id));
        let mut counted = Vec::new();
        for a in job.approvals_at(gate, rule.approval_ttl, now) {
            let live = human_of(rules, &a.by);
            let is_holder = holder.is_some() && (live == holder || a.human == holder);
            if !is_holder
                && counts(a, live.as_ref())
                && self.check_approver(rules, job, &a.by, a.human.as_ref(), &rule.approver_group).is_ok()
            {
                counted.push((&a.by, live, a.human.as_ref()));
            }
        }
        let people = count_people(counted.iter().map(|(id, live, then)| {
            let humans = live.iter().chain(*then).collect();
            (*id, humans)
        }));
        rule.approvals_needed.saturating_sub(u32::try_from(people).unwrap_or(u32::MAX))
    }

    /// Returns the reason if an approval does not count now.
    pub(super) fn void_because(&self, job: &Job, approval: &Approval) -> Option<String> {
        let rules = self.context.rules();
        let gate = gate_now(&rules, job, &approval.gate)?;
        let now = self.context.clock.now().lease;
        if !job.approvals_at(&approval.gate, gate.approval_ttl, now).any(|a| a.by == approval.by) {
            return Some("it is older than the gate's approval_ttl".to_owned());
        }
        let human = approval.human.as_ref();
        let checked = self.check_approver(&rules, job, &approval.by, human, &gate.approver_group);
        checked.err().map(|refusal| refusal.text.into_owned())
    }

    /// Refuses an identity that may not approve a job for this group. It must be an operator of the job's tenant or of
    /// the platform, in the group, not locked, and not involved in the job. `human` is the person who used the identity
    /// at the time of the approval.
    pub(super) fn check_approver(
        &self,
        rules: &Rules,
        job: &Job,
        id: &SpiffeId,
        human: Option<&HumanName>,
        group: &str,
    ) -> Result<(), Refusal> {
        let no = |text: String| Refusal::new(Reason::NotAnApprover, text);
        let principal: &Arc<Principal> = (rules.catalog().principal(id))
            .filter(|p| p.kind == PrincipalKind::Operator && !p.disabled)
            .ok_or_else(|| no(format!("the catalog has no operator {id}, or has it disabled")))?;
        if principal.tenant != job.spec.tenant && principal.tenant != TenantName::platform() {
            return Err(no(format!("{id} is not an operator of {}", job.spec.tenant)));
        }
        if !principal.groups.contains(group) {
            return Err(no(format!("{id} is not in the group {group}")));
        }
        let humans: BTreeSet<HumanName> = principal.human(id).into_iter().chain(human.cloned()).collect();
        let names = [FenceName::identity(id.clone()), FenceName::domain(id.trust_domain())];
        let humans_names = humans.iter().cloned().map(FenceName::human);
        let names: Vec<FenceName> = names.into_iter().chain(humans_names).collect();
        if let Some(lock) = self.context.state.lock_on(names.iter()) {
            return Err(
                Refusal::new(Reason::Locked, format!("{} is locked", lock.name)).with("why", lock.reason)
            );
        }
        check_uninvolved(rules, job, id, &humans)
    }
}

/// Returns a gate as the policy has it now. If the policy no longer has the gate, returns the copy in the job.
pub(super) fn gate_now(rules: &Rules, job: &Job, gate: &str) -> Option<Gate> {
    let rule = rules.engine.gate(gate).cloned();
    rule.or_else(|| job.gates.iter().find(|g| g.id == gate).cloned())
}

/// Returns the person who uses an identity, according to the catalog.
pub(super) fn human_of(rules: &Rules, id: &SpiffeId) -> Option<HumanName> {
    rules.catalog().principal(id)?.human(id)
}

/// Refuses an approver who is involved in the job, with this identity or with another identity of this person.
pub(super) fn check_uninvolved(
    rules: &Rules,
    job: &Job,
    id: &SpiffeId,
    humans: &BTreeSet<HumanName>,
) -> Result<(), Refusal> {
    let members = &job.spec.members;
    let part = if job.launcher == *id {
        Some(format!("{id} launched the job"))
    } else if members.may_start(id) {
        Some(format!("the job names {id} in members.start"))
    } else if members.may_join(id) || job.attempts.iter().any(|a| a.members.has(id)) {
        Some(format!("{id} is a member of the job"))
    } else {
        None
    };
    let part = part.or_else(|| {
        humans.iter().find_map(|human| {
            let is_same = |other: &SpiffeId| human_of(rules, other).as_ref() == Some(human);
            if job.acting_for.as_ref() == Some(human) {
                return Some(format!("the job is for human:{human}"));
            }
            if is_same(&job.launcher) {
                return Some(format!("human:{human} launched the job, as {}", job.launcher));
            }
            let named = members.start.iter().chain(&members.join).filter_map(SpiffePattern::exact);
            if let Some(other) = named.into_iter().find(|other| is_same(other)) {
                return Some(format!("human:{human} is involved in the job, as {other}"));
            }
            // A pattern in the job does not name a person. The identities that joined by the pattern are members.
            let came = job.attempts.iter().flat_map(|a| a.members.identities()).find(|other| is_same(other));
            came.map(|other| format!("human:{human} is involved in the job, as {other}"))
        })
    });
    match part {
        None => Ok(()),
        Some(text) => Err(Refusal::new(Reason::ApproverInvolved, text)
            .fix("a person who is not involved in the job must approve it")),
    }
}

//! People let a job pass its gates, reject the job, or take an approval back.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    access::AccessControl,
    access_request::{AccessRequest, Overtaken},
    approved::{check_uninvolved, gate_now, human_of},
    caller::Caller,
    context::BrokerContext,
    decide::Decisions,
    endings::{EndAnswer, Endings},
    refusals::{job_not_found, move_refusal, state_refusal},
    rules::Rules,
    sweeps::Sweeps,
};
use crate::{
    clock::LeaseTime,
    job::{Approval, Approver, Change, Close, End, Gate, Illegal, Job},
    ledger::Actor,
    limits,
    name::{Digest, FenceName, HumanName, JobId, PrincipalKind, TenantName},
    policy::Rpc,
    reason::{Reason, Refusal},
    state::request_digest,
};

/// The size of an approval's record without its reason, in bytes.
const APPROVAL_RECORD_BYTES: usize = 1_024;

/// A person's order to approve a job.
#[derive(Clone, Copy, Debug)]
pub struct ApproveOrder<'a> {
    pub job: JobId,
    /// The digest of the request that the person saw.
    pub request: Digest,
    /// The gates to approve. If it is empty, all gates that a group of the caller may approve.
    pub gates: &'a [String],
    pub reason: &'a str,
}

/// The answer to an approval.
#[derive(Debug)]
pub struct Approved {
    pub job: Arc<Job>,
    /// The gates at which the caller has approved, now or before.
    pub gates: Vec<String>,
    pub changed: bool,
}

/// The answer to a withdrawal.
#[derive(Debug)]
pub struct Withdrawal {
    pub end: EndAnswer,
    /// The gates at which an approval was taken back.
    pub gates: Vec<String>,
}

/// A job that waits for people.
#[derive(Debug)]
pub struct WaitingJob {
    pub job: Arc<Job>,
    pub gates: Vec<WaitingGate>,
}

/// A gate at which approvals are missing.
#[derive(Debug)]
pub struct WaitingGate {
    pub gate: Gate,
    pub missing: u32,
    /// The operators of the gate's group that the caller may see, as patterns of the catalog.
    pub operators: Vec<String>,
    /// Whether the caller can approve here.
    pub needs_me: bool,
}

/// The use cases of approvers: let jobs pass the gates of the policy, reject jobs, and take approvals back.
pub struct ApprovalUseCases {
    pub(super) context: Arc<BrokerContext>,
    pub(super) access: AccessControl,
    pub(super) decisions: Decisions,
    pub(super) endings: Endings,
    pub(super) sweeps: Sweeps,
}

impl ApprovalUseCases {
    /// Approves a job. Resolves when the approval is on disk.
    pub async fn approve(&self, caller: &Caller, order: &ApproveOrder<'_>) -> Result<Approved, Refusal> {
        self.context.refuse_if_held()?;
        self.context.state.job(order.job).ok_or_else(job_not_found)?;
        let request = self.access.access_request(&caller.peer, Rpc::Approve)?;
        let id = request.caller.id();
        let human = request.caller.principal.human(id);
        let mut names = vec![
            FenceName::job(order.job),
            FenceName::identity(id.clone()),
            FenceName::domain(id.trust_domain()),
        ];
        names.extend(human.clone().map(FenceName::human));
        let standing = request.stand(&names);
        let AccessRequest { rules, caller, .. } = &standing.request;

        // Everything below is read after the stand was taken.
        let job = self.context.state.job(order.job).ok_or_else(job_not_found)?;
        let gates = self.may_approve(rules, caller, &job, order)?;
        self.access.charge_operator(caller, Rpc::Approve)?;
        // An approval of a parameter sweep is recorded in each job of the sweep.
        let records = self.context.state.open_in_sweep(&job).len().saturating_add(1);
        let bytes = APPROVAL_RECORD_BYTES.saturating_add(order.reason.len()).saturating_mul(records);
        self.context.rates.charge_bytes(caller, bytes)?;
        let now = self.context.clock.now().lease;
        let approver = Approver { by: caller.id(), human: human.as_ref(), reason: order.reason };
        let decide = |job: &Job| job.approve(approver, &gates, order.request, now);
        let widened = self.context.state.widen(order.job, caller.actor(), None, decide).await;
        let widened = widened.map_err(|r| state_refusal(r, move_refusal))?;
        let others = self.context.state.open_in_sweep(&widened.job);
        for other in &others {
            // A job of the sweep that ended meanwhile needs no approval.
            let _ = self.context.state.widen(other.id, caller.actor(), None, decide).await;
        }
        if widened.changed {
            let again = standing.look_again("it was being approved", None, |changed| match changed {
                None => Ok(()),
                Some((rules, caller)) => self.may_approve(rules, caller, &widened.job, order).map(drop),
            });
            if let Err(Overtaken { refusal, detail }) = again {
                let by = Actor::Daemon(detail.clone());
                let jobs = others.iter().map(|job| job.id).chain([order.job]);
                for (id, gate) in jobs.flat_map(|id| gates.iter().map(move |gate| (id, gate))) {
                    let withdraw = |job: &Job| {
                        job.withdraw_approval(caller.id(), Some(gate), &detail, now).map(End::Now)
                    };
                    // If the job is closed meanwhile, there is nothing to take back.
                    let _ = self.endings.end_work(id, &by, "an approval was withdrawn", withdraw);
                }
                return Err(refusal);
            }
            metrics::counter!("leasehold_approvals_total").increment(1);
            if self.context.rates.may_log(caller.id()) {
                tracing::info!(job = %order.job, by = %caller.id(), gates = gates.join(", "), "approved");
            }
        }
        Ok(Approved { job: widened.job, gates, changed: widened.changed })
    }

    /// Checks every rule for an approval. Returns the gates of the approval.
    fn may_approve(
        &self,
        rules: &Rules,
        caller: &Caller,
        job: &Job,
        order: &ApproveOrder<'_>,
    ) -> Result<Vec<String>, Refusal> {
        let allowed = self.access.authorize_job(caller, Rpc::Approve, job, order.reason);
        allowed.map_err(|refusal| self.naming_groups(rules, caller, job, order.gates, refusal))?;
        let gates = self.gates_of(rules, caller, job, order.gates)?;
        let request = request_digest(job)
            .map_err(|_| Refusal::new(Reason::Internal, "the request has no canonical form"))?;
        if request != order.request {
            let text = "the request that you approve is not the request of the job";
            return Err(Refusal::new(Reason::RequestMismatch, text)
                .with("yours", order.request.to_string())
                .with("job", request.to_string())
                .fix(format!("look at it again: leasehold job show {}", job.id)));
        }
        let human = caller.principal.human(caller.id());
        for gate in &gates {
            self.decisions.check_approver(rules, job, caller.id(), human.as_ref(), &gate.approver_group)?;
        }
        Ok(gates.into_iter().map(|gate| gate.id).collect())
    }

    /// Adds to a refusal the groups that may approve, if the operator sees the job but is in none of these groups.
    fn naming_groups(
        &self,
        rules: &Rules,
        caller: &Caller,
        job: &Job,
        wanted: &[String],
        refusal: Refusal,
    ) -> Refusal {
        let sees = refusal.reason == Reason::PolicyDenied
            && caller.principal.kind == PrincipalKind::Operator
            && self.access.authorize_job(caller, Rpc::GetJob, job, "").is_ok();
        match self.gates_of(rules, caller, job, wanted) {
            Err(named) if sees && named.reason == Reason::NotAnApprover => named,
            _ => refusal,
        }
    }

    /// Returns the gates of a job that a group of the caller may approve. If `wanted` is not empty, returns only the
    /// gates in `wanted`.
    fn gates_of(
        &self,
        rules: &Rules,
        caller: &Caller,
        job: &Job,
        wanted: &[String],
    ) -> Result<Vec<Gate>, Refusal> {
        if job.gates.is_empty() {
            return Err(move_refusal(Illegal::NoGates));
        }
        if let Some(unknown) = wanted.iter().find(|w| !job.gates.iter().any(|g| g.id == **w)) {
            let names: Vec<&str> = job.gates.iter().map(|g| g.id.as_str()).collect();
            return Err(move_refusal(Illegal::NoGate(unknown.clone())).with("gates", names.join(", ")));
        }
        let asked = job.gates.iter().filter(|g| wanted.is_empty() || wanted.contains(&g.id));
        let asked: Vec<Gate> = asked.filter_map(|g| gate_now(rules, job, &g.id)).collect();
        let groups = &caller.principal.groups;
        let (mine, others): (Vec<Gate>, Vec<Gate>) =
            asked.into_iter().partition(|g| groups.contains(&g.approver_group));
        if mine.is_empty() || (!wanted.is_empty() && !others.is_empty()) {
            let refusal =
                Refusal::new(Reason::NotAnApprover, "you are in none of the groups that may approve");
            let refusal = others
                .iter()
                .fold(refusal, |refusal, g| refusal.with("asks", format!("{} ({})", g.approver_group, g.id)));
            return Err(refusal.fix("ask a person of these groups to decide: leasehold approvals"));
        }
        Ok(mine)
    }

    /// Closes a job that has not begun, because an approver rejects it. The end is in force when this returns.
    pub fn reject(&self, caller: &Caller, id: JobId, reason: &str) -> Result<EndAnswer, Refusal> {
        let job = self.context.state.job(id).ok_or_else(job_not_found)?;
        let rules = self.context.rules();
        let allowed = self.access.authorize_job(caller, Rpc::Reject, &job, reason);
        allowed.map_err(|refusal| self.naming_groups(&rules, caller, &job, &[], refusal))?;
        self.gates_of(&rules, caller, &job, &[])?;
        let humans: BTreeSet<HumanName> = human_of(&rules, caller.id()).into_iter().collect();
        check_uninvolved(&rules, &job, caller.id(), &humans)?;
        self.access.charge_operator(caller, Rpc::Reject)?;
        let now = self.context.clock.now().lease;
        let ended = self.endings.end_work(id, &caller.actor(), "rejected", |job| {
            job.reject(reason, now).map(|close| match close {
                Close::Now(change) => End::Now(vec![change]),
                Close::Already => End::Already,
                Close::Conflict(stands) => End::Conflict(stands),
            })
        });
        let ended = ended.map_err(|r| state_refusal(r, move_refusal))?;
        for other in self.context.state.open_in_sweep(&job) {
            // A job that has begun is not rejected and goes on, but its approval can be taken back.
            let _ = self.endings.end_work(other.id, &caller.actor(), "its sweep was rejected", |job| {
                job.reject(reason, now).map(|close| match close {
                    Close::Now(change) => End::Now(vec![change]),
                    Close::Already => End::Already,
                    Close::Conflict(stands) => End::Conflict(stands),
                })
            });
        }
        if self.context.rates.may_log(caller.id()) {
            tracing::info!(job = %id, by = %caller.id(), reason, "rejected");
        }
        Ok(self.endings.end_answer(ended))
    }

    /// Takes the caller's approvals of a job back. The withdrawal is in force when this returns.
    pub fn withdraw_approval(
        &self,
        caller: &Caller,
        id: JobId,
        gate: Option<&str>,
        reason: &str,
    ) -> Result<Withdrawal, Refusal> {
        let job = self.context.state.job(id).ok_or_else(job_not_found)?;
        self.access.authorize_job(caller, Rpc::WithdrawApproval, &job, reason)?;
        self.access.charge_operator(caller, Rpc::WithdrawApproval)?;
        let now = self.context.clock.now().lease;
        let mut gates = Vec::new();
        let ended = self.endings.end_work(id, &caller.actor(), "its approval was withdrawn", |job| {
            let changes = job.withdraw_approval(caller.id(), gate, reason, now)?;
            gates = changes
                .iter()
                .filter_map(|change| match change {
                    Change::ApprovalWithdrawn { gate, .. } => Some(gate.clone()),
                    _ => None,
                })
                .collect();
            Ok(if changes.is_empty() { End::Already } else { End::Now(changes) })
        });
        let mut ended = ended.map_err(|r| state_refusal(r, move_refusal))?;
        for other in self.context.state.open_in_sweep(&job) {
            let by = caller.actor();
            let withdrawn =
                self.endings.end_work(other.id, &by, "the approval of its sweep was withdrawn", |job| {
                    let changes = job.withdraw_approval(caller.id(), gate, reason, now)?;
                    Ok::<_, Illegal>(if changes.is_empty() { End::Already } else { End::Now(changes) })
                });
            // If the job was closed meanwhile, there is nothing to take back.
            if let Ok(withdrawn) = withdrawn {
                let behind = withdrawn.done.ending.behind;
                ended.done.ending.behind = ended.done.ending.behind.saturating_add(behind);
            }
        }
        if !gates.is_empty() {
            if self.context.rates.may_log(caller.id()) {
                tracing::warn!(job = %id, by = %caller.id(), gates = gates.join(", "), reason, "approval withdrawn");
            }
            // Other approvers may have left their group since they approved. In that case the gate is closed again, and
            // access that needs the gate ends.
            let place = job.sweep_place.map(|place| place.request);
            let concerns = |other: &Job| {
                other.id == id || place.is_some() && place == other.sweep_place.map(|place| place.request)
            };
            let behind = self.sweeps.end_unapproved("an approval was withdrawn", concerns);
            ended.done.ending.behind = ended.done.ending.behind.saturating_add(behind);
        }
        Ok(Withdrawal { end: self.endings.end_answer(ended), gates })
    }

    /// Returns the gates of an open job at which approvals are missing now.
    pub fn gates_waiting<'a>(&self, job: &'a Job) -> Vec<&'a Gate> {
        self.decisions.gates_waiting(job)
    }

    /// Returns the reason if an approval does not count now.
    pub fn void_because(&self, job: &Job, approval: &Approval) -> Option<String> {
        self.decisions.void_because(job, approval)
    }

    /// Lists the open jobs that wait for people and that the caller may see. The newest job is first. The list begins
    /// after a given position.
    pub fn list_approvals(
        &self,
        caller: &Caller,
        needs_me: bool,
        below: Option<(LeaseTime, JobId)>,
        max: usize,
    ) -> Result<Vec<WaitingJob>, Refusal> {
        let everything = self.access.is_for_all_tenants(caller, Rpc::ListApprovals)?;
        let rules = self.context.rules();
        let waiting = |job: &Job| -> Vec<WaitingGate> {
            if job.is_closed() || !(everything || job.spec.tenant == *caller.tenant()) {
                return Vec::new();
            }
            let gates = job.gates.iter().filter_map(|gate| {
                let missing = self.decisions.missing_people(&rules, job, &gate.id, None);
                let gate = gate_now(&rules, job, &gate.id).filter(|_| missing > 0)?;
                let operators = operators_of(&rules, caller, job, &gate, everything);
                let needs_me = self.can_approve(&rules, caller, job, &gate);
                Some(WaitingGate { gate, missing, operators, needs_me })
            });
            gates.collect()
        };
        let is_shown = |gates: &[WaitingGate]| match needs_me {
            true => gates.iter().any(|gate| gate.needs_me),
            false => !gates.is_empty(),
        };
        let jobs = self.context.state.list(below, max, |job| is_shown(&waiting(job)));
        Ok(jobs.into_iter().map(|job| WaitingJob { gates: waiting(&job), job }).collect())
    }

    /// Whether the caller can approve a job at a gate and has not approved yet.
    fn can_approve(&self, rules: &Rules, caller: &Caller, job: &Job, gate: &Gate) -> bool {
        let human = caller.principal.human(caller.id());
        let approver = Approver { by: caller.id(), human: human.as_ref(), reason: "" };
        let gates = std::slice::from_ref(&gate.id);
        let is_new = job.approve(approver, gates, Digest::ZERO, self.context.clock.now().lease);
        matches!(is_new, Ok(Some(_)))
            && self
                .decisions
                .check_approver(rules, job, caller.id(), human.as_ref(), &gate.approver_group)
                .is_ok()
            && self.access.authorize(caller, Rpc::Approve, Some(&job.spec.tenant), &[], "").is_ok()
    }
}

/// Returns the operators who may approve at a gate and whom the caller may see: the operators of the caller's tenant,
/// or all.
fn operators_of(rules: &Rules, caller: &Caller, job: &Job, gate: &Gate, everything: bool) -> Vec<String> {
    let platform = TenantName::platform();
    let may = rules.catalog().principals().filter(|p| {
        p.kind == PrincipalKind::Operator
            && !p.disabled
            && p.groups.contains(&gate.approver_group)
            && (p.tenant == job.spec.tenant || p.tenant == platform)
            && (everything || p.tenant == *caller.tenant())
    });
    may.take(limits::APPROVERS_SHOWN_MAX).map(|p| p.pattern.to_string()).collect()
}

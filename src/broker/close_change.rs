//! How people close a proposed change: its proposer withdraws it, an approver rejects it.

use std::sync::{Arc, PoisonError};

use super::{
    caller::Caller,
    changes::{WaitingChange, closed_meanwhile, is_proposer},
    proposals::{ProposedChange, change_closed},
    reload::RuleUseCases,
};
use crate::{
    ledger::ChangeOutcome,
    name::Digest,
    policy::Rpc,
    reason::{Reason, Refusal},
};

/// How a person closes a proposed change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeClosing {
    /// The proposer takes it back.
    Withdraw,
    /// An approver refuses it.
    Reject,
}

impl ChangeClosing {
    const fn outcome(self) -> ChangeOutcome {
        match self {
            ChangeClosing::Withdraw => ChangeOutcome::Withdrawn,
            ChangeClosing::Reject => ChangeOutcome::Rejected,
        }
    }
}

impl RuleUseCases {
    /// Withdraws or rejects the change that would put `to` in force, and returns what waited. Blocks until it is on disk.
    pub fn close_change(
        &self,
        caller: &Caller,
        to: Digest,
        closing: ChangeClosing,
        reason: &str,
        dry_run: bool,
    ) -> Result<WaitingChange, Refusal> {
        let text = "the rules are for all tenants, and you are an operator of only one";
        let may = |rpc| self.may_propose(caller, rpc, text, "ask a platform operator");
        let found = self.access.proposed_changes().into_iter().find(|change| change.to == to);
        if may(found.as_ref().map_or(Rpc::ApplyPolicy, |change| change.rpc))?.is_some() {
            self.context.rates.charge_call(caller)?;
        }
        let _one = self.reloading.lock().unwrap_or_else(PoisonError::into_inner);
        let found = found.filter(|change| self.context.proposals.is_open(change));
        let change =
            found.ok_or_else(|| not_proposed("`leasehold policy history` lists the changes that wait"))?;
        match closing {
            ChangeClosing::Withdraw => check_withdraws(&change, caller)?,
            ChangeClosing::Reject => check_rejects(&change, caller)?,
        }
        let waiting = self.waiting(Some(change.clone()), &change.gates);
        if dry_run {
            return Ok(waiting);
        }
        let outcome = closing.outcome();
        self.record_before(caller, &change_closed(&change, outcome, caller.actor(), reason))?;
        let at = self.context.clock.now().wall;
        if !self.context.proposals.close(&change, outcome, caller.actor(), reason, at) {
            return Err(closed_meanwhile());
        }
        if self.context.rates.may_log(caller.id()) {
            tracing::info!(call = change.rpc.as_str(), %to, by = %caller.id(), reason, "a proposed change was closed");
        }
        Ok(waiting)
    }

    /// Refuses to approve a policy that no one proposed, or that the caller proposed.
    pub(super) fn check_approves(&self, caller: &Caller, to: Digest) -> Result<(), Refusal> {
        let from = self.context.rules().engine.digest();
        let change = self.find_proposed(Rpc::ApplyPolicy, from, to).ok_or_else(|| {
            not_proposed(
                "`leasehold policy history` lists the changes that wait; to approve a reload, run `leasehold catalog reload` yourself",
            )
        })?;
        if !is_proposer(&change, caller) {
            return Ok(());
        }
        let text = "you proposed this change, so your approval of it does not count";
        let refusal = Refusal::new(Reason::ApproverInvolved, text);
        let waiting = self.waiting(Some(change.clone()), &change.gates);
        let refusal = waiting.gates.iter().fold(refusal, |refusal, (open, _)| {
            let who = match open.approvers.is_empty() {
                true => "no one is in this group".to_owned(),
                false => open.approvers.join(", "),
            };
            refusal.with("asks", format!("{} ({}): {who}", open.gate.approver_group, open.gate.id))
        });
        let to = change.to;
        Err(refusal
            .fix(format!("have someone else of these run: leasehold policy approve {to} --reason TEXT")))
    }
}

fn check_withdraws(change: &ProposedChange, caller: &Caller) -> Result<(), Refusal> {
    if is_proposer(change, caller) {
        return Ok(());
    }
    let text = format!("{} proposed this change, and only its proposer can withdraw it", change.by);
    let fix = format!("an approver can reject it: leasehold policy reject {} --reason TEXT", change.to);
    Err(Refusal::new(Reason::PolicyDenied, text).fix(fix))
}

fn check_rejects(change: &Arc<ProposedChange>, caller: &Caller) -> Result<(), Refusal> {
    if is_proposer(change, caller) {
        let text = "you proposed this change, so you cannot reject it";
        let fix = format!("withdraw it: leasehold policy withdraw {} --reason TEXT", change.to);
        return Err(Refusal::new(Reason::ApproverInvolved, text).fix(fix));
    }
    if change.gates.iter().any(|gate| caller.principal.groups.contains(&gate.approver_group)) {
        return Ok(());
    }
    let refusal =
        Refusal::new(Reason::NotAnApprover, "you are in none of the groups that may reject this change");
    let named = |r: Refusal, gate: &crate::job::Gate| {
        r.with("asks", format!("{} ({})", gate.approver_group, gate.id))
    };
    Err(change.gates.iter().fold(refusal, named).fix("have someone of these groups reject it"))
}

fn not_proposed(fix: &'static str) -> Refusal {
    Refusal::new(Reason::StateConflict, "no one has proposed this change, or the proposal is void").fix(fix)
}

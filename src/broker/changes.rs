//! Changes of the policy and the catalog that people must approve first, because the policy has a gate for them.
//!
//! A change is bound to the rules in force and to the rules that it would put in force. The first person who requests a change
//! proposes it. Others request the same change, and so approve it. If no further approval is needed, the request of the last
//! person carries the change out. The proposer may withdraw a change, and an approver may reject it (`close_change`).

use std::sync::Arc;

use tokio::runtime::Handle;

use super::{
    approved::human_of,
    caller::Caller,
    evaluate::GateToApprove,
    proposals::{ProposedChange, is_of_proposer},
    refusals::ledger_unavailable,
    reload::RuleUseCases,
    rules::Rules,
};
use crate::{
    job::{Approval, Gate, count_people},
    ledger::{ChangeOutcome, ConsentRecord, Event},
    limits::{APPROVERS_SHOWN_MAX, CHANGES_PER_PERSON_MAX, CHANGES_PROPOSED_MAX, LEDGER_WAIT},
    name::{Digest, HumanName, PrincipalKind, TenantName},
    policy::{Call, CallVerdict, PolicyText, Rpc, SignedBundle},
    reason::{Reason, Refusal},
    state::{approval_record, gate_record},
};

/// The texts of the policy that a caller wants to put in force.
#[derive(Clone, Debug, Default)]
pub struct WantedTexts {
    pub policies: Vec<PolicyText>,
    pub cases: Vec<PolicyText>,
    pub signed: Option<SignedBundle>,
}

/// A change that waits for people.
#[derive(Clone, Debug)]
pub struct WaitingChange {
    /// The proposal. `None` for a dry run without a proposal.
    pub proposed: Option<Arc<ProposedChange>>,
    /// The gates that lack approvals, each with the number of missing people.
    pub gates: Vec<(GateToApprove, u32)>,
}

/// A caller's request for a change.
#[derive(Clone, Copy, Debug)]
pub(super) struct ChangeQuestion<'a> {
    pub rpc: Rpc,
    pub from: Digest,
    pub to: Digest,
    pub reason: &'a str,
    pub texts: &'a WantedTexts,
}

/// Whether a change may be carried out.
#[derive(Debug)]
pub(super) enum Consent {
    /// The change may be carried out. If a gate required approval, this has the record of the proposal and its approvals.
    Given(Option<ConsentRecord>),
    Waits(WaitingChange),
}

impl RuleUseCases {
    /// Refuses a caller that may not change the rules of all tenants. Gates do not count here: a caller that lacks only
    /// approvals may propose the change. Returns the caller's tenant if the caller may propose only because there is no
    /// other tenant.
    pub(super) fn may_propose(
        &self,
        caller: &Caller,
        rpc: Rpc,
        text: &'static str,
        fix: &'static str,
    ) -> Result<Option<TenantName>, Refusal> {
        match self.gates_of_change(caller, rpc, None, "", &[]) {
            Ok(_) => Ok(None),
            Err(_) => {
                let own = caller.tenant().clone();
                self.gates_of_change(caller, rpc, Some(&own), "", &[])?;
                match caller.is_only_tenant() {
                    true => Ok(Some(own)),
                    false => Err(Refusal::new(Reason::KindNotAllowed, text).fix(fix)),
                }
            }
        }
    }

    /// Returns the gates that still require approval if the given gates are approved. An empty list allows the change.
    fn gates_of_change(
        &self,
        caller: &Caller,
        rpc: Rpc,
        tenant: Option<&TenantName>,
        reason: &str,
        approved: &[String],
    ) -> Result<Vec<Gate>, Refusal> {
        let now = self.context.clock.now().wall;
        let call = Call { caller: caller.id(), rpc, tenant, relations: &[], now, reason, amr: caller.amr() };
        match self.context.rules().engine.judge_change(&call, approved) {
            CallVerdict::Allow(_) => Ok(Vec::new()),
            CallVerdict::Wait { gates, .. } => Ok(gates),
            CallVerdict::Deny { refusal, .. } => Err(refusal),
        }
    }

    /// Returns the result of a dry run: the gates that would require approval, and the proposal of the change, if there
    /// is one.
    pub(super) fn would_wait(
        &self,
        caller: &Caller,
        tenant: Option<&TenantName>,
        change: ChangeQuestion<'_>,
    ) -> Result<Option<WaitingChange>, Refusal> {
        let gates = self.gates_of_change(caller, change.rpc, tenant, change.reason, &[])?;
        let proposed = self.find_proposed(change.rpc, change.from, change.to);
        let waiting = self.waiting(proposed, &gates);
        Ok((!waiting.gates.is_empty()).then_some(waiting))
    }

    /// Decides whether a change may be carried out, and records the caller's part: the first caller proposes the
    /// change, other callers approve it. The calling function holds the mutex that allows one change at a time. Blocks
    /// until the record is on disk.
    pub(super) fn ask_consent(
        &self,
        caller: &Caller,
        tenant: Option<&TenantName>,
        change: ChangeQuestion<'_>,
    ) -> Result<Consent, Refusal> {
        let gates = self.gates_of_change(caller, change.rpc, tenant, change.reason, &[])?;
        if gates.is_empty() {
            return Ok(Consent::Given(None));
        }
        let proposed = match self.find_proposed(change.rpc, change.from, change.to) {
            None => {
                let proposed = self.propose(caller, change, &gates)?;
                return Ok(Consent::Waits(self.waiting(Some(proposed), &gates)));
            }
            Some(proposed) if is_proposer(&proposed, caller) => proposed,
            Some(proposed) => self.approve_change(caller, &proposed, change.reason, &gates)?,
        };
        let waiting = self.waiting(Some(proposed.clone()), &gates);
        if !waiting.gates.is_empty() {
            return Ok(Consent::Waits(waiting));
        }
        self.check_stands(&proposed)?;
        let open: Vec<String> = gates.iter().map(|gate| gate.id.clone()).collect();
        let left = self.gates_of_change(caller, change.rpc, tenant, change.reason, &open)?;
        if !left.is_empty() {
            return Ok(Consent::Waits(self.waiting(Some(proposed), &left)));
        }
        Ok(Consent::Given(Some(ConsentRecord {
            proposed_by: proposed.by.clone(),
            human: proposed.human.clone(),
            reason: proposed.reason.clone(),
            approvals: proposed.approvals.iter().map(approval_record).collect(),
        })))
    }

    /// Records a proposal.
    fn propose(
        &self,
        caller: &Caller,
        change: ChangeQuestion<'_>,
        gates: &[Gate],
    ) -> Result<Arc<ProposedChange>, Refusal> {
        let open = self.access.proposed_changes();
        let own = open.iter().filter(|other| is_proposer(other, caller)).count();
        if own >= CHANGES_PER_PERSON_MAX || open.len() >= CHANGES_PROPOSED_MAX {
            let text = format!("{} changes wait for approval, {own} of them are yours", open.len());
            return Err(Refusal::new(Reason::QuotaExceeded, text)
                .fix("withdraw one of yours: leasehold policy history, then leasehold policy withdraw"));
        }
        let now = self.context.clock.now().lease;
        let until = gates.iter().map(|gate| now.plus(gate.approval_ttl)).min().unwrap_or(now);
        let proposed = Arc::new(ProposedChange {
            rpc: change.rpc,
            from: change.from,
            to: change.to,
            by: caller.id().clone(),
            human: caller.principal.human(caller.id()),
            reason: change.reason.to_owned(),
            gates: gates.to_vec(),
            until,
            approvals: Vec::new(),
            texts: change.texts.clone(),
        });
        let record = Event::ChangeProposed {
            call: change.rpc.as_str().to_owned(),
            from: change.from,
            to: change.to,
            by: caller.actor(),
            human: proposed.human.clone(),
            reason: proposed.reason.clone(),
            waiting_for: gates.iter().map(gate_record).collect(),
            until,
        };
        self.record_before(caller, &record)?;
        self.context.proposals.add(proposed.clone());
        tracing::info!(call = change.rpc.as_str(), to = %change.to, by = %caller.id(), "a change was proposed");
        Ok(proposed)
    }

    /// Records the approval of a caller at the gates of its groups.
    fn approve_change(
        &self,
        caller: &Caller,
        proposed: &Arc<ProposedChange>,
        reason: &str,
        gates: &[Gate],
    ) -> Result<Arc<ProposedChange>, Refusal> {
        let mine: Vec<&Gate> =
            gates.iter().filter(|gate| caller.principal.groups.contains(&gate.approver_group)).collect();
        if mine.is_empty() {
            let text = format!(
                "{} proposed this change, and you are in none of the groups that may approve it",
                proposed.by
            );
            let refusal = Refusal::new(Reason::NotAnApprover, text);
            return Err(gates
                .iter()
                .fold(refusal, |r, gate| r.with("asks", format!("{} ({})", gate.approver_group, gate.id)))
                .fix("ask a person of these groups to approve it"));
        }
        let now = self.context.clock.now().lease;
        let given =
            |gate: &Gate| proposed.approvals.iter().any(|a| a.gate == gate.id && a.by == *caller.id());
        let new: Vec<Approval> = mine
            .into_iter()
            .filter(|gate| !given(gate))
            .map(|gate| Approval {
                gate: gate.id.clone(),
                group: gate.approver_group.clone(),
                by: caller.id().clone(),
                human: caller.principal.human(caller.id()),
                at: now,
                reason: reason.to_owned(),
            })
            .collect();
        if new.is_empty() {
            return Ok(proposed.clone());
        }
        let record = Event::ChangeApproved {
            call: proposed.rpc.as_str().to_owned(),
            from: proposed.from,
            to: proposed.to,
            approvals: new.iter().map(approval_record).collect(),
        };
        self.record_before(caller, &record)?;
        let mut next = ProposedChange::clone(proposed);
        next.approvals.extend(new);
        let next = Arc::new(next);
        if !self.context.proposals.replace(proposed, next.clone()) {
            return Err(closed_meanwhile());
        }
        tracing::info!(call = next.rpc.as_str(), to = %next.to, by = %caller.id(), "a change was approved");
        Ok(next)
    }

    /// Closes the proposal of a change that comes into force now.
    ///
    /// # Errors
    ///
    /// Fails if the change needed people, and its proposal was closed while it was recorded.
    pub(super) fn close_applied(
        &self,
        caller: &Caller,
        change: ChangeQuestion<'_>,
        needed_people: bool,
    ) -> Result<(), Refusal> {
        let closed = self.find_proposed(change.rpc, change.from, change.to).is_some_and(|proposed| {
            let at = self.context.clock.now().wall;
            let by = caller.actor();
            self.context.proposals.close(&proposed, ChangeOutcome::Applied, by, change.reason, at)
        });
        if closed || !needed_people { Ok(()) } else { Err(closed_meanwhile()) }
    }

    /// Refuses a change if it was closed meanwhile, or if its proposer was locked or disabled. Without the proposer, the
    /// change has one person too few.
    fn check_stands(&self, proposed: &Arc<ProposedChange>) -> Result<(), Refusal> {
        self.access.void_changes_of_the_lost();
        if self.context.proposals.is_open(proposed) { Ok(()) } else { Err(closed_meanwhile()) }
    }

    /// Returns the gates that lack people. Only people who may still approve count. The proposer does not count.
    pub(super) fn waiting(&self, proposed: Option<Arc<ProposedChange>>, gates: &[Gate]) -> WaitingChange {
        let rules = self.context.rules();
        let missing = |gate: &Gate| {
            let Some(proposed) = &proposed else { return gate.approvals_needed };
            let counts = |a: &&Approval| {
                let entry = rules.catalog().principal(&a.by);
                a.gate == gate.id
                    && self.access.is_good_operator(&rules, &a.by, a.human.as_ref())
                    && entry.is_some_and(|p| p.groups.contains(&gate.approver_group))
                    && !is_of_proposer(&rules, proposed, a)
            };
            let humans: Vec<(&Approval, Option<HumanName>)> =
                proposed.approvals.iter().filter(counts).map(|a| (a, human_of(&rules, &a.by))).collect();
            let people = humans.iter().map(|(a, now)| (&a.by, a.human.iter().chain(now).collect::<Vec<_>>()));
            let people = u32::try_from(count_people(people)).unwrap_or(u32::MAX);
            gate.approvals_needed.saturating_sub(people)
        };
        let gates = gates.iter().filter_map(|gate| {
            let missing = missing(gate);
            (missing > 0).then(|| (self.to_approve_change(&rules, gate.clone()), missing))
        });
        let gates = gates.collect();
        WaitingChange { proposed, gates }
    }

    fn to_approve_change(&self, rules: &Rules, gate: Gate) -> GateToApprove {
        let platform = TenantName::platform();
        let is_of_all = |tenant: &TenantName| {
            *tenant == platform || rules.catalog().tenants().all(|other| other == tenant)
        };
        let members = rules.catalog().principals().filter(|p| {
            p.kind == PrincipalKind::Operator
                && !p.disabled
                && p.groups.contains(&gate.approver_group)
                && is_of_all(&p.tenant)
        });
        let approvers = members.take(APPROVERS_SHOWN_MAX).map(|p| p.pattern.to_string()).collect();
        GateToApprove { approvers, gate }
    }

    /// Returns the changes that wait, with the gates that lack people.
    pub(super) fn changes_waiting(&self) -> Vec<WaitingChange> {
        let open = self.access.proposed_changes().into_iter();
        open.map(|change| self.waiting(Some(change.clone()), &change.gates)).collect()
    }

    pub(super) fn find_proposed(&self, rpc: Rpc, from: Digest, to: Digest) -> Option<Arc<ProposedChange>> {
        self.access.proposed_changes().into_iter().find(|c| c.rpc == rpc && c.from == from && c.to == to)
    }

    /// Writes a record. Blocks until the record is on disk.
    pub(super) fn record_before(&self, caller: &Caller, record: &Event) -> Result<(), Refusal> {
        self.context.rates.charge(caller, record)?;
        let appended = Handle::current()
            .block_on(async { tokio::time::timeout(LEDGER_WAIT, self.context.ledger.append(record)).await });
        match appended {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(ledger_unavailable(&error.to_string())),
            Err(_) => Err(ledger_unavailable("it took too long")),
        }
    }
}

/// Returns one digest of the policy and the catalog together.
pub(super) fn rules_digest(rules: &Rules) -> Digest {
    let parts = [b"leasehold/rules/v1\n".as_slice(), &rules.engine.digest().0, &rules.catalog().digest().0];
    Digest::of(&parts.concat())
}

/// The refusal of a change that was closed while it was being approved.
pub(super) fn closed_meanwhile() -> Refusal {
    let text = "the proposal was closed meanwhile: its proposer withdrew it or is locked, or an approver rejected it";
    Refusal::new(Reason::StateConflict, text).fix("look at it again: leasehold policy history")
}

/// Whether the caller proposed a change, by any identity.
pub(super) fn is_proposer(proposed: &ProposedChange, caller: &Caller) -> bool {
    let human = caller.principal.human(caller.id());
    proposed.by == *caller.id() || human.is_some() && proposed.human == human
}

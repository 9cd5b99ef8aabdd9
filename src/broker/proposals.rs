//! The changes of the rules that wait for people, and those that were closed lately. Only in memory, so a restart voids them.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use super::{access::AccessControl, approved::human_of, changes::WantedTexts, rules::Rules};
use crate::{
    clock::{LeaseTime, Wall},
    job::{Approval, Gate},
    ledger::{Actor, ChangeOutcome, Event},
    limits::CHANGES_CLOSED_KEPT_MAX,
    name::{Digest, FenceName, HumanName, PrincipalKind, SpiffeId},
    policy::Rpc,
};

/// A change that a caller proposed.
#[derive(Clone, Debug)]
pub struct ProposedChange {
    /// The call that carries the change out.
    pub rpc: Rpc,
    /// The digest of the rules in force when the change was proposed.
    pub from: Digest,
    /// The digest of the rules that the change puts in force.
    pub to: Digest,
    pub by: SpiffeId,
    pub human: Option<HumanName>,
    pub reason: String,
    /// The gates that required approval when the change was proposed.
    pub gates: Vec<Gate>,
    /// The time at which the proposal expires.
    pub until: LeaseTime,
    pub approvals: Vec<Approval>,
    /// The texts of the policy, so that approvers need no copy. Empty for a reload, because it reads the files again.
    pub texts: WantedTexts,
}

/// A change that no longer waits, without the policy that it was about.
#[derive(Clone, Debug)]
pub struct ClosedChange {
    pub rpc: Rpc,
    pub from: Digest,
    pub to: Digest,
    pub proposed_by: SpiffeId,
    /// Why it was proposed.
    pub proposed_because: String,
    pub outcome: ChangeOutcome,
    pub by: Actor,
    pub reason: String,
    pub at: Wall,
    /// The proposer and the approvers, each with the person that they were then.
    people: Vec<(SpiffeId, Option<HumanName>)>,
}

/// The proposals of one run of the daemon.
#[derive(Debug, Default)]
pub struct Proposals(Mutex<ProposalLists>);

#[derive(Debug, Default)]
struct ProposalLists {
    /// At most [`CHANGES_PROPOSED_MAX`](crate::limits::CHANGES_PROPOSED_MAX).
    open: Vec<Arc<ProposedChange>>,
    /// The newest last. At most [`CHANGES_CLOSED_KEPT_MAX`].
    closed: VecDeque<ClosedChange>,
}

impl ProposedChange {
    fn people(&self) -> impl Iterator<Item = (&SpiffeId, Option<&HumanName>)> {
        let approvers = self.approvals.iter().map(|a| (&a.by, a.human.as_ref()));
        [(&self.by, self.human.as_ref())].into_iter().chain(approvers)
    }
}

impl Proposals {
    pub(super) fn open(&self) -> Vec<Arc<ProposedChange>> {
        self.lists(|lists| lists.open.clone())
    }

    /// Returns the changes that were withdrawn, rejected or voided, the newest first.
    pub(super) fn closed(&self) -> Vec<ClosedChange> {
        self.lists(|lists| {
            let is_shown = |change: &&ClosedChange| change.outcome != ChangeOutcome::Applied;
            lists.closed.iter().rev().filter(is_shown).cloned().collect()
        })
    }

    pub(super) fn add(&self, change: Arc<ProposedChange>) {
        self.lists(|lists| lists.open.push(change));
    }

    pub(super) fn is_open(&self, change: &Arc<ProposedChange>) -> bool {
        self.lists(|lists| lists.open.iter().any(|open| Arc::ptr_eq(open, change)))
    }

    /// Replaces a proposal with the same proposal and one more approval. Returns false if the proposal was closed meanwhile.
    pub(super) fn replace(&self, before: &Arc<ProposedChange>, now: Arc<ProposedChange>) -> bool {
        self.lists(|lists| match lists.open.iter_mut().find(|open| Arc::ptr_eq(open, before)) {
            Some(open) => {
                *open = now;
                true
            }
            None => false,
        })
    }

    /// Closes a proposal. Returns false if the proposal was closed meanwhile.
    pub(super) fn close(
        &self,
        change: &Arc<ProposedChange>,
        outcome: ChangeOutcome,
        by: Actor,
        reason: &str,
        at: Wall,
    ) -> bool {
        self.lists(|lists| {
            let Some(place) = lists.open.iter().position(|open| Arc::ptr_eq(open, change)) else {
                return false;
            };
            lists.open.remove(place);
            if lists.closed.len() >= CHANGES_CLOSED_KEPT_MAX {
                lists.closed.pop_front();
            }
            lists.closed.push_back(ClosedChange {
                rpc: change.rpc,
                from: change.from,
                to: change.to,
                proposed_by: change.by.clone(),
                proposed_because: change.reason.clone(),
                outcome,
                by,
                reason: reason.to_owned(),
                at,
                people: change.people().map(|(id, human)| (id.clone(), human.cloned())).collect(),
            });
            true
        })
    }

    /// Whether `is` is true for a person who proposed or approved a change that is open or was closed lately.
    pub(super) fn has_person(&self, is: impl Fn(&SpiffeId, Option<&HumanName>) -> bool) -> bool {
        self.lists(|lists| {
            lists.open.iter().any(|change| change.people().any(|(id, human)| is(id, human)))
                || lists.closed.iter().flat_map(|change| &change.people).any(|(id, h)| is(id, h.as_ref()))
        })
    }

    fn lists<T>(&self, read: impl FnOnce(&mut ProposalLists) -> T) -> T {
        read(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl AccessControl {
    /// Returns the proposals that wait. Those whose time is over become void.
    pub(super) fn proposed_changes(&self) -> Vec<Arc<ProposedChange>> {
        let now = self.context.clock.now().lease;
        let (late, open): (Vec<_>, Vec<_>) =
            self.context.proposals.open().into_iter().partition(|change| change.until <= now);
        for change in late {
            self.void_change(&change, "no one approved it in time");
        }
        open
    }

    /// Voids the proposals of people who may no longer propose, because of a lock or because they are no longer operators in the
    /// catalog. These proposals stay void after the lock is lifted.
    pub(super) fn void_changes_of_the_lost(&self) {
        let rules = self.context.rules();
        for change in self.context.proposals.open() {
            if !self.is_good_operator(&rules, &change.by, change.human.as_ref()) {
                self.void_change(&change, "its proposer is locked, disabled or no longer an operator");
            }
        }
    }

    /// Voids the proposals that were made while other rules were in force.
    pub(super) fn void_outdated_changes(&self, policy: Digest, all: Digest) {
        for change in self.context.proposals.open() {
            let in_force = if change.rpc == Rpc::ApplyPolicy { policy } else { all };
            if change.from != in_force {
                self.void_change(&change, "other rules came into force");
            }
        }
    }

    fn void_change(&self, change: &Arc<ProposedChange>, why: &str) {
        let by = Actor::Daemon(why.to_owned());
        let at = self.context.clock.now().wall;
        if self.context.proposals.close(change, ChangeOutcome::Voided, by.clone(), why, at) {
            self.context.ledger.defer(&change_closed(change, ChangeOutcome::Voided, by, why));
            tracing::info!(call = change.rpc.as_str(), to = %change.to, why, "a proposed change is void");
        }
    }

    /// Whether an identity is an operator whose proposal or approval counts now: the operator is not disabled, and no lock shuts
    /// out the identity or `then`, the person who used the identity at that time.
    pub(super) fn is_good_operator(&self, rules: &Rules, id: &SpiffeId, then: Option<&HumanName>) -> bool {
        let entry = rules.catalog().principal(id);
        let person = then.cloned().map(FenceName::human);
        entry.is_some_and(|p| p.kind == PrincipalKind::Operator && !p.disabled)
            && self.lock_on_identity(id).is_none()
            && self.context.state.lock_on(person.iter()).is_none()
    }
}

/// The record of a change that does not come into force.
pub(super) fn change_closed(
    change: &ProposedChange,
    outcome: ChangeOutcome,
    by: Actor,
    reason: &str,
) -> Event {
    Event::ChangeClosed {
        call: change.rpc.as_str().to_owned(),
        from: change.from,
        to: change.to,
        proposed_by: change.by.clone(),
        outcome,
        by,
        reason: reason.to_owned(),
    }
}

/// Whether the approver is the proposer: the same identity, or the same person then or now.
pub(super) fn is_of_proposer(rules: &Rules, proposed: &ProposedChange, approval: &Approval) -> bool {
    let of_proposer = [proposed.human.clone(), human_of(rules, &proposed.by)];
    let of_approver = [approval.human.clone(), human_of(rules, &approval.by)];
    proposed.by == approval.by
        || of_proposer.iter().flatten().any(|human| of_approver.iter().flatten().any(|other| other == human))
}

//! The approvals of a job: the gates that a job must pass, and the people who approved.

use std::time::Duration;

use super::{Change, Close, Illegal, Job, JobState};
use crate::{
    clock::LeaseTime,
    limits,
    name::{Digest, HumanName, Outcome, SpiffeId},
};

/// A rule of policy. A job may begin only after people have approved it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Gate {
    /// The id of the rule. After approval, `context.approved` contains it.
    pub id: String,
    pub explanation: String,
    pub approver_group: String,
    /// The number of people who must approve.
    pub approvals_needed: u32,
    /// An approval expires after this time if no attempt has begun.
    pub approval_ttl: Duration,
}

/// The approval of one person at one gate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Approval {
    /// The id of the gate.
    pub gate: String,
    /// The group for which this person approved.
    pub group: String,
    pub by: SpiffeId,
    /// The human who uses the identity, if the catalog names one.
    pub human: Option<HumanName>,
    pub at: LeaseTime,
    pub reason: String,
}

/// A person who approves, and the reason.
#[derive(Clone, Copy, Debug)]
pub struct Approver<'a> {
    pub by: &'a SpiffeId,
    pub human: Option<&'a HumanName>,
    pub reason: &'a str,
}

/// Counts the people among approvers. Each approver has an identity and the humans who use it. Approvers with the same
/// identity or a common human count once.
pub fn count_people<'a>(approvers: impl Iterator<Item = (&'a SpiffeId, Vec<&'a HumanName>)>) -> usize {
    let mut counted: Vec<(&SpiffeId, Vec<&HumanName>)> = Vec::new();
    for (id, humans) in approvers {
        let is_same = |(other, theirs): &(&SpiffeId, Vec<&HumanName>)| {
            *other == id || humans.iter().any(|h| theirs.contains(h))
        };
        if !counted.iter().any(is_same) {
            counted.push((id, humans));
        }
    }
    counted.len()
}

impl Gate {
    fn has_enough<'a>(&self, approvals: impl Iterator<Item = &'a Approval>) -> bool {
        let people = count_people(approvals.map(|a| (&a.by, a.human.iter().collect())));
        people >= self.approvals_needed as usize
    }
}

impl Job {
    /// Whether an attempt has begun. From then on, approvals are valid until they are withdrawn.
    pub fn has_begun(&self) -> bool {
        !self.attempts.is_empty()
    }

    /// Returns the approvals at a gate that have not expired. They expire after `ttl` only while no attempt has begun.
    pub fn approvals_at<'a>(
        &'a self,
        gate: &'a str,
        ttl: Duration,
        now: LeaseTime,
    ) -> impl Iterator<Item = &'a Approval> + 'a {
        let begun = self.has_begun();
        self.approvals.iter().filter(move |a| a.gate == gate && (begun || now.since(a.at) < ttl))
    }

    /// Returns the gates that lack approvals. Empty if the job is closed.
    pub fn waiting_for(&self, now: LeaseTime) -> impl Iterator<Item = &Gate> {
        let open = !self.is_closed();
        self.gates.iter().filter(move |g| {
            open && !self.is_open_by_emergency(&g.id, now)
                && !g.has_enough(self.approvals_at(&g.id, g.approval_ttl, now))
        })
    }

    /// Returns the change that approves the job at these gates. Returns `None` if this person has approved at each of
    /// them already.
    ///
    /// If the same human has approved at a gate with another identity, the approval is refused.
    pub fn approve(
        &self,
        approver: Approver<'_>,
        gates: &[String],
        request: Digest,
        now: LeaseTime,
    ) -> Result<Option<Change>, Illegal> {
        if let JobState::Closed(o) = self.state {
            return Err(Illegal::JobClosed(o));
        }
        let mut approvals = Vec::new();
        for id in gates {
            let gate = self.gates.iter().find(|g| g.id == *id).ok_or_else(|| Illegal::NoGate(id.clone()))?;
            let mut valid = self.approvals_at(id, gate.approval_ttl, now);
            let same_human = |a: &&Approval| a.human.is_some() && a.human.as_ref() == approver.human;
            match valid.find(|a| a.by == *approver.by || same_human(a)) {
                Some(a) if a.by == *approver.by => continue,
                Some(a) => return Err(Illegal::SameHuman(id.clone(), a.by.clone())),
                None => {}
            }
            approvals.push(Approval {
                gate: id.clone(),
                group: gate.approver_group.clone(),
                by: approver.by.clone(),
                human: approver.human.cloned(),
                at: now,
                reason: approver.reason.to_owned(),
            });
        }
        if approvals.is_empty() {
            return Ok(None);
        }
        if self.approvals.len().saturating_add(approvals.len()) > limits::APPROVALS_PER_JOB_MAX {
            return Err(Illegal::TooManyApprovals(limits::APPROVALS_PER_JOB_MAX));
        }
        Ok(Some(Change::Approved { request, approvals }))
    }

    /// Returns how to close a job that an approver refuses before it has begun.
    pub fn reject(&self, detail: &str, now: LeaseTime) -> Result<Close, Illegal> {
        match self.state {
            JobState::Closed(Outcome::Rejected) => Ok(Close::Already),
            JobState::Closed(o) => Err(Illegal::JobClosed(o)),
            _ if self.gates.is_empty() => Err(Illegal::NoGates),
            _ if self.has_begun() => Err(Illegal::Begun),
            _ => Ok(self.close(Outcome::Rejected, detail, now)),
        }
    }

    /// Returns the changes that withdraw the approvals of an identity at one gate, or at all gates. Empty if there is
    /// no such approval.
    ///
    /// A job that has not begun waits again. A job that has begun is closed if a gate then has too few approvals.
    pub fn withdraw_approval(
        &self,
        by: &SpiffeId,
        gate: Option<&str>,
        detail: &str,
        now: LeaseTime,
    ) -> Result<Vec<Change>, Illegal> {
        if let JobState::Closed(o) = self.state {
            return Err(Illegal::JobClosed(o));
        }
        if let Some(gate) = gate
            && !self.gates.iter().any(|g| g.id == gate)
        {
            return Err(Illegal::NoGate(gate.to_owned()));
        }
        let mut changes = Vec::new();
        for a in self.approvals.iter().filter(|a| a.by == *by && gate.is_none_or(|g| a.gate == g)) {
            let change = Change::ApprovalWithdrawn {
                gate: a.gate.clone(),
                by: by.clone(),
                at: now,
                detail: detail.to_owned(),
            };
            let closes = self.would_fall_short(&a.gate, by);
            changes.push(change);
            if closes {
                break;
            }
        }
        Ok(changes)
    }

    /// Whether a job that has begun would have too few approvals at a gate without the approval of this identity.
    pub(super) fn would_fall_short(&self, gate: &str, by: &SpiffeId) -> bool {
        let Some(gate) = self.gates.iter().find(|g| g.id == gate) else { return false };
        let is_given = self.approvals.iter().any(|a| a.gate == gate.id && a.by == *by);
        let others = self.approvals.iter().filter(|a| a.gate == gate.id && a.by != *by);
        let is_emergency = self.emergency.as_ref().is_some_and(|e| e.gates.contains(&gate.id));
        self.has_begun() && is_given && !is_emergency && !gate.has_enough(others)
    }

    /// Returns the changes that withdraw expired approvals. Empty if the job has begun.
    pub(super) fn lapsed_approvals(&self, now: LeaseTime) -> Vec<Change> {
        if self.has_begun() {
            return Vec::new();
        }
        let ttl = |a: &Approval| self.gates.iter().find(|g| g.id == a.gate).map(|g| g.approval_ttl);
        let old = self.approvals.iter().filter(|a| ttl(a).is_none_or(|ttl| now.since(a.at) >= ttl));
        let withdrawal = |a: &Approval| Change::ApprovalWithdrawn {
            gate: a.gate.clone(),
            by: a.by.clone(),
            at: now,
            detail: "the job did not begin within the gate's approval_ttl".to_owned(),
        };
        old.map(withdrawal).collect()
    }

    /// Gives a new job the approvals of its parameter sweep, at the gates that the job has.
    pub fn take_over_approvals(&mut self, approvals: &[Approval]) {
        let mut taken: Vec<Approval> =
            approvals.iter().filter(|a| self.gates.iter().any(|g| g.id == a.gate)).cloned().collect();
        taken.sort_by(|a, b| (&a.gate, &a.by, b.at).cmp(&(&b.gate, &b.by, a.at)));
        taken.dedup_by(|a, b| a.gate == b.gate && a.by == b.by);
        taken.truncate(limits::APPROVALS_PER_JOB_MAX);
        self.approvals = taken;
        self.wait_or_be_ready(self.created);
    }

    pub(super) fn apply_approvals(&mut self, approvals: &[Approval]) {
        let Some(at) = approvals.last().map(|a| a.at) else { return };
        for new in approvals {
            self.approvals.retain(|a| a.gate != new.gate || a.by != new.by);
            self.approvals.push(new.clone());
        }
        if !self.has_begun() {
            self.wait_or_be_ready(at);
        }
    }

    pub(super) fn apply_withdrawal(&mut self, gate: &str, by: &SpiffeId, at: LeaseTime, detail: &str) {
        let closes = self.would_fall_short(gate, by);
        self.approvals.retain(|a| a.gate != gate || a.by != *by);
        if closes {
            self.close_now(Outcome::Revoked, at, detail);
        } else if !self.has_begun() {
            self.wait_or_be_ready(at);
        }
    }

    /// Sets the state of a job that has not begun: ready if no gate lacks approvals, else waiting.
    pub(super) fn wait_or_be_ready(&mut self, at: LeaseTime) {
        let missing: Vec<&str> = self.waiting_for(at).map(|g| g.id.as_str()).collect();
        (self.state, self.detail) = if missing.is_empty() {
            (JobState::Ready, String::new())
        } else {
            (JobState::AwaitingApproval, format!("waits for {}", missing.join(", ")))
        };
    }

    /// Makes a new job wait for these gates.
    #[must_use]
    pub fn held_by(mut self, gates: Vec<Gate>) -> Self {
        if !gates.is_empty() {
            self.gates = gates;
            self.ends = self.created.plus(limits::APPROVAL_WAIT_MAX);
            self.wait_or_be_ready(self.created);
        }
        self
    }
}

#[cfg(test)]
#[path = "approval_tests.rs"]
mod tests;

//! Changes of a job. Each is one record of the ledger.

use super::{
    Approval, Attempt, AttemptState, Drain, Emergency, EndedMembership, Job, JobState, Member, MemberState,
    ReportedUse,
};
use crate::{
    clock::LeaseTime,
    limits,
    name::{AttemptNumber, Digest, FenceName, InstanceName, Outcome, SpiffeId, SpiffePattern},
    secret::SecretDigest,
};

/// One change of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// One person approved the job at one or more gates.
    Approved {
        /// The digest of the request that was approved.
        request: Digest,
        /// The approvals. Never empty.
        approvals: Vec<Approval>,
    },
    /// An approval no longer counts: the approver withdrew it, or it expired before the job began.
    ApprovalWithdrawn {
        gate: String,
        by: SpiffeId,
        at: LeaseTime,
        detail: String,
    },
    /// One person opened the gates of the job in an emergency.
    GlassBroken {
        /// The digest of the request that the person saw.
        request: Digest,
        emergency: Emergency,
    },
    Closed {
        outcome: Outcome,
        at: LeaseTime,
        detail: String,
    },
    AttemptBegan {
        attempt: AttemptNumber,
        key: String,
        at: LeaseTime,
        ticket: SecretDigest,
        /// The identities that may join without the ticket.
        vouched: Vec<SpiffePattern>,
    },
    AttemptDraining {
        attempt: AttemptNumber,
        drain: Drain,
        detail: String,
    },
    AttemptEnded {
        attempt: AttemptNumber,
        outcome: Outcome,
        at: LeaseTime,
        detail: String,
    },
    MemberJoined {
        attempt: AttemptNumber,
        instance: InstanceName,
        member: SpiffeId,
        session: SecretDigest,
        at: LeaseTime,
    },
    /// One member drains. Other members go on.
    MemberDraining {
        attempt: AttemptNumber,
        instance: InstanceName,
        drain: Drain,
        detail: String,
    },
    MemberAway {
        attempt: AttemptNumber,
        instance: InstanceName,
        at: LeaseTime,
        detail: String,
    },
    MemberLeft {
        attempt: AttemptNumber,
        instance: InstanceName,
        at: LeaseTime,
        outcome: Option<Outcome>,
        detail: String,
    },
    MemberLost {
        attempt: AttemptNumber,
        instance: InstanceName,
        at: LeaseTime,
        detail: String,
    },
    /// A compromise may have tainted the present or later outputs of the job. A closed job is marked too.
    Compromised {
        because: FenceName,
    },
    /// A gateway reported the job's use of resources. The last use of a job is reported after its end.
    Used {
        audience: SpiffeId,
        uses: Vec<ReportedUse>,
    },
}

impl Change {
    /// Returns the time of the change if it widened access.
    pub fn widened_at(&self) -> Option<LeaseTime> {
        match self {
            Change::AttemptBegan { at, .. } | Change::MemberJoined { at, .. } => Some(*at),
            Change::Approved { approvals, .. } => approvals.last().map(|a| a.at),
            Change::GlassBroken { emergency, .. } => Some(emergency.at),
            _ => None,
        }
    }

    /// Whether the change can lead to more access. If so, its record must be on disk before the change takes effect.
    pub fn widens(&self) -> bool {
        self.widened_at().is_some()
    }
}

impl Job {
    /// Applies one change. A change that a function of `transitions` has just returned for this job always fits. On a replay
    /// of the ledger, a change that no longer fits changes nothing. An example is the begin of an attempt whose job was
    /// closed while the record was written.
    pub fn apply(&mut self, change: &Change) {
        if let Change::Compromised { because } = change {
            self.compromised.get_or_insert_with(|| because.clone());
        }
        if let Change::Used { uses, .. } = change {
            self.used.add_all(uses);
        }
        if self.is_closed() {
            return;
        }
        match change {
            Change::Compromised { .. } | Change::Used { .. } => {}
            Change::Approved { approvals, .. } => self.apply_approvals(approvals),
            Change::GlassBroken { emergency, .. } => self.break_glass_now(emergency),
            Change::ApprovalWithdrawn { gate, by, at, detail } => {
                self.apply_withdrawal(gate, by, *at, detail);
            }
            Change::Closed { outcome, at, detail } => self.close_now(*outcome, *at, detail),
            Change::AttemptBegan { attempt, key, at, ticket, vouched } => {
                self.begin_now(*attempt, key, *at, *ticket, vouched);
            }
            Change::AttemptDraining { attempt, drain, detail } => {
                if let Some(a) = self.attempt_mut(*attempt).filter(|a| !a.is_ended()) {
                    a.state = AttemptState::Draining(*drain);
                    a.detail.clone_from(detail);
                }
            }
            Change::MemberDraining { attempt, instance, drain, .. } => {
                let Some(a) = self.attempt_mut(*attempt).filter(|a| !a.is_ended()) else { return };
                if let Some(m) = a.members.get(instance).cloned() {
                    a.members.put(instance.clone(), Member { drain: Some(*drain), ..m });
                }
            }
            Change::AttemptEnded { attempt, outcome, at, detail } => {
                self.end_attempt_now(*attempt, *outcome, *at, detail);
            }
            Change::MemberJoined { attempt, instance, member, session, at } => {
                let Some(a) = self.attempt_mut(*attempt).filter(|a| !a.is_ended()) else { return };
                // A member that comes back keeps its drain.
                let same = a.members.get(instance).filter(|m| m.session == *session);
                let drain = same.and_then(|m| m.drain);
                a.members.put(
                    instance.clone(),
                    Member {
                        spiffe_id: member.clone(),
                        session: *session,
                        state: MemberState::Joined,
                        joined: *at,
                        drain,
                        outcome: None,
                    },
                );
                if a.state == AttemptState::Suspended {
                    a.state = AttemptState::Running;
                }
            }
            Change::MemberAway { attempt, instance, at, .. } => {
                self.set_member(*attempt, instance, *at, MemberState::Away { since: *at }, None);
            }
            Change::MemberLeft { attempt, instance, at, outcome, detail } => {
                if outcome.is_none() {
                    self.note_ended_membership(*attempt, instance, detail);
                }
                self.set_member(*attempt, instance, *at, MemberState::Left, *outcome);
            }
            Change::MemberLost { attempt, instance, at, .. } => {
                self.set_member(*attempt, instance, *at, MemberState::Lost, None);
            }
        }
    }

    /// Notes that an operator ended a membership, to show it later. Memberships of one identity that ended together count
    /// once.
    fn note_ended_membership(&mut self, attempt: AttemptNumber, instance: &InstanceName, detail: &str) {
        let member = self.attempt(attempt).filter(|a| !a.is_ended()).and_then(|a| a.members.get(instance));
        let Some(identity) = member.map(|m| m.spiffe_id.clone()) else { return };
        let ended = EndedMembership { attempt, identity, detail: detail.to_owned() };
        if !self.ended_memberships.contains(&ended) {
            let full = self.ended_memberships.len() >= limits::MEMBERSHIPS_ENDED_SHOWN;
            self.ended_memberships.drain(..usize::from(full));
            self.ended_memberships.push(ended);
        }
    }

    /// Returns the fences to lower when a narrowing change is applied, or when the begin of an attempt is recorded. Call it
    /// before the change is applied.
    pub fn fences_of(&self, change: &Change) -> Vec<FenceName> {
        if self.is_closed() {
            return Vec::new();
        }
        match change {
            Change::Closed { .. } => vec![FenceName::job(self.id)],
            Change::ApprovalWithdrawn { gate, by, .. } if self.would_fall_short(gate, by) => {
                vec![FenceName::job(self.id)]
            }
            Change::AttemptBegan { .. } => {
                self.current().map(|a| FenceName::attempt(self.id, a.number)).into_iter().collect()
            }
            Change::AttemptEnded { attempt, outcome, .. } => {
                let mut names = vec![FenceName::attempt(self.id, *attempt)];
                if *outcome == Outcome::Completed || !self.attempts_left() {
                    names.push(FenceName::job(self.id));
                }
                names
            }
            Change::MemberAway { attempt, instance, .. }
            | Change::MemberLeft { attempt, instance, .. }
            | Change::MemberLost { attempt, instance, .. } => {
                vec![FenceName::member(self.id, *attempt, instance.clone())]
            }
            Change::Approved { .. }
            | Change::GlassBroken { .. }
            | Change::ApprovalWithdrawn { .. }
            | Change::AttemptDraining { .. }
            | Change::MemberDraining { .. }
            | Change::MemberJoined { .. }
            | Change::Compromised { .. }
            | Change::Used { .. } => Vec::new(),
        }
    }

    fn begin_now(
        &mut self,
        attempt: AttemptNumber,
        key: &str,
        at: LeaseTime,
        ticket: SecretDigest,
        vouched: &[SpiffePattern],
    ) {
        if !self.has_begun() && !self.gates.is_empty() {
            // The duration of a job with gates begins with its first attempt.
            self.ends = at.plus(self.spec.max_duration);
            if let Some(emergency) = &self.emergency {
                self.ends = self.ends.min(emergency.until);
            }
        }
        if let Some(previous) = self.attempts.last_mut().filter(|a| !a.is_ended()) {
            previous.end_now(Outcome::Superseded, at, &format!("attempt {attempt} began"));
        }
        self.attempts.push(Attempt {
            number: attempt,
            key: key.to_owned(),
            state: AttemptState::Running,
            began: at,
            ended: None,
            members: Default::default(),
            ticket,
            vouched: vouched.into(),
            detail: String::new(),
            vacant_since: at,
        });
        self.state = JobState::Running;
    }

    fn end_attempt_now(&mut self, attempt: AttemptNumber, outcome: Outcome, at: LeaseTime, detail: &str) {
        let Some(a) = self.attempt_mut(attempt) else { return };
        if a.is_ended() {
            // This happens only on a replay. The begin of the next attempt was recorded first. While its record was written,
            // this attempt completed and closed the job, so the next attempt never began.
            if a.state == AttemptState::Ended(Outcome::Superseded) && outcome == Outcome::Completed {
                self.close_now(outcome, at, detail);
            }
            return;
        }
        a.end_now(outcome, at, detail);
        if outcome == Outcome::Completed || !self.attempts_left() {
            self.close_now(outcome, at, detail);
        } else {
            self.state = JobState::Ready;
            detail.clone_into(&mut self.detail);
        }
    }

    pub(super) fn close_now(&mut self, outcome: Outcome, at: LeaseTime, detail: &str) {
        for a in self.attempts.iter_mut().filter(|a| !a.is_ended()) {
            a.end_now(outcome, at, detail);
        }
        self.state = JobState::Closed(outcome);
        self.closed = Some(at);
        detail.clone_into(&mut self.detail);
    }

    fn set_member(
        &mut self,
        attempt: AttemptNumber,
        instance: &InstanceName,
        at: LeaseTime,
        state: MemberState,
        outcome: Option<Outcome>,
    ) {
        let Some(a) = self.attempt_mut(attempt).filter(|a| !a.is_ended()) else { return };
        let Some(m) = a.members.get(instance).cloned() else { return };
        let outcome = outcome.or(m.outcome);
        a.members.put(instance.clone(), Member { state, outcome, ..m });
        if a.state == AttemptState::Running && a.members.joined() == 0 {
            a.state = AttemptState::Suspended;
        }
        if a.members.present() == 0 {
            a.vacant_since = at;
        }
    }
}

impl Attempt {
    fn end_now(&mut self, outcome: Outcome, at: LeaseTime, detail: &str) {
        self.state = AttemptState::Ended(outcome);
        self.ended = Some(at);
        detail.clone_into(&mut self.detail);
        let present = |(i, m): (&InstanceName, &Member)| (i.clone(), m.clone());
        let left: Vec<_> = self.present().map(present).collect();
        for (instance, m) in left {
            self.members.put(instance, Member { state: MemberState::Left, ..m });
        }
    }
}

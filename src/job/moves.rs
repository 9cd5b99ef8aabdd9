//! The legal moves. Each looks at a job as it stands and answers the changes that make the move, or why it is not legal.

use std::time::Duration;

use super::{Attempt, AttemptState, Change, DoneWhen, Job, JobState, MemberState};
use crate::{
    clock::LeaseTime,
    limits,
    name::{AttemptNumber, InstanceName, Outcome, SpiffeId},
    reason::Reason,
    secret::SecretDigest,
};

/// Why a move is not legal now. `Display` is what the caller reads.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Illegal {
    #[error("the job is closed: {0}")]
    JobClosed(Outcome),
    #[error("the job waits for approval")]
    AwaitingApproval,
    #[error("the job has no attempt {0}")]
    NoAttempt(AttemptNumber),
    #[error("attempt {0} is not the current one: attempt {1} has begun")]
    Stale(AttemptNumber, AttemptNumber),
    #[error("attempt {0} is over: {1}")]
    Ended(AttemptNumber, Outcome),
    #[error("the key belongs to attempt {0}, which is over")]
    KeyUsed(AttemptNumber),
    #[error("attempt {0} is still draining; say `supersede` to end it now")]
    Draining(AttemptNumber),
    #[error("the job has used all of its {0} attempts")]
    AttemptsExhausted(u32),
    #[error("the attempt has as many members as it may: {0}")]
    MembersFull(u32),
    #[error("another participant is joined as `{0}`")]
    InstanceTaken(InstanceName),
    #[error("`{0}` is not a member of the attempt")]
    NotAMember(InstanceName),
    #[error("`{0}` is not joined: {1}")]
    NotJoined(InstanceName, &'static str),
}

impl Illegal {
    pub fn reason(&self) -> Reason {
        match self {
            Illegal::JobClosed(_) => Reason::JobClosed,
            Illegal::AwaitingApproval => Reason::ApprovalRequired,
            Illegal::NoAttempt(_) => Reason::AttemptNotFound,
            Illegal::Stale(..) => Reason::AttemptStale,
            Illegal::Ended(..) => Reason::AttemptEnded,
            Illegal::KeyUsed(_) => Reason::AttemptKeyUsed,
            Illegal::Draining(_) => Reason::AttemptDraining,
            Illegal::AttemptsExhausted(_) => Reason::AttemptsExhausted,
            Illegal::MembersFull(_) => Reason::MembersFull,
            Illegal::InstanceTaken(_) => Reason::InstanceTaken,
            Illegal::NotAMember(_) => Reason::NotAMember,
            Illegal::NotJoined(..) => Reason::NotJoined,
        }
    }
}

/// The outcome of asking to close.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Close {
    Now(Change),
    /// It is closed with this outcome already.
    Already,
    /// It is closed with another outcome, which stands.
    Conflict(Outcome),
}

/// The outcome of asking to begin an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Begin {
    New(Change),
    /// This key began this attempt, which is not over.
    Existing(AttemptNumber),
}

/// The outcome of asking to join.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Join {
    /// A new member, or one that is back.
    New(Change),
    /// The same member, which never was away.
    Same,
}

/// The outcome of reporting an end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    Now(Vec<Change>),
    Already,
    /// Another outcome stands.
    Conflict(Outcome),
}

impl Job {
    /// Ends the job, whatever state it is in.
    pub fn close(&self, outcome: Outcome, detail: &str, now: LeaseTime) -> Close {
        match self.state {
            JobState::Closed(o) if o == outcome => Close::Already,
            JobState::Closed(o) => Close::Conflict(o),
            _ => Close::Now(Change::Closed { outcome, at: now, detail: detail.to_owned() }),
        }
    }

    /// Begins the next attempt, or finds the one that this key began.
    pub fn begin(
        &self,
        key: &str,
        supersede: bool,
        ticket: SecretDigest,
        now: LeaseTime,
    ) -> Result<Begin, Illegal> {
        match self.state {
            JobState::Closed(o) => return Err(Illegal::JobClosed(o)),
            JobState::AwaitingApproval => return Err(Illegal::AwaitingApproval),
            JobState::Ready | JobState::Running => {}
        }
        if let Some(a) = self.attempts.iter().find(|a| a.key == key) {
            return if a.is_ended() {
                Err(Illegal::KeyUsed(a.number))
            } else {
                Ok(Begin::Existing(a.number))
            };
        }
        if !self.attempts_left() {
            return Err(Illegal::AttemptsExhausted(self.spec.members.attempts));
        }
        if let Some(a) = self.current()
            && matches!(a.state, AttemptState::Draining { .. })
            && !supersede
        {
            return Err(Illegal::Draining(a.number));
        }
        let attempt = self.attempts.last().map_or(AttemptNumber::FIRST, |a| a.number.next());
        Ok(Begin::New(Change::AttemptBegan { attempt, key: key.to_owned(), at: now, ticket }))
    }

    /// The attempt of this number, where it is the current one and not over.
    pub fn running(&self, number: AttemptNumber) -> Result<&Attempt, Illegal> {
        if let JobState::Closed(o) = self.state {
            return Err(Illegal::JobClosed(o));
        }
        let a = self.attempt(number).ok_or(Illegal::NoAttempt(number))?;
        if let Some(current) = self.attempts.last().filter(|c| c.number != number) {
            return Err(Illegal::Stale(number, current.number));
        }
        match a.state {
            AttemptState::Ended(o) => Err(Illegal::Ended(number, o)),
            _ => Ok(a),
        }
    }

    /// Makes a member, or takes one back.
    pub fn join(
        &self,
        number: AttemptNumber,
        instance: &InstanceName,
        member: &SpiffeId,
        session: SecretDigest,
        now: LeaseTime,
    ) -> Result<Join, Illegal> {
        let a = self.running(number)?;
        let change = || {
            Join::New(Change::MemberJoined {
                attempt: number,
                instance: instance.clone(),
                member: member.clone(),
                session,
                at: now,
            })
        };
        if let Some(m) = a.members.get(instance) {
            let same = m.spiffe_id == *member && m.session == session;
            return match m.state {
                MemberState::Joined if same => Ok(Join::Same),
                MemberState::Away { .. } if same => Ok(change()),
                MemberState::Joined | MemberState::Away { .. } => {
                    Err(Illegal::InstanceTaken(instance.clone()))
                }
                MemberState::Left => Err(Illegal::NotJoined(instance.clone(), "it has left")),
                MemberState::Lost => Err(Illegal::NotJoined(instance.clone(), "it was lost")),
            };
        }
        if matches!(a.state, AttemptState::Draining { .. }) {
            return Err(Illegal::Draining(number));
        }
        let here = a
            .members
            .values()
            .filter(|m| matches!(m.state, MemberState::Joined | MemberState::Away { .. }))
            .count();
        if here >= self.spec.members.max as usize {
            return Err(Illegal::MembersFull(self.spec.members.max));
        }
        Ok(change())
    }

    /// Lets an attempt finish. A second drain never prolongs the first.
    pub fn drain(
        &self,
        number: AttemptNumber,
        grace: Duration,
        detail: &str,
        now: LeaseTime,
    ) -> Result<Option<Change>, Illegal> {
        let a = self.running(number)?;
        let grace = grace.min(limits::DRAIN_GRACE_MAX);
        let writing_ends = now.plus(grace);
        let mut reading_ends = now.plus(limits::DRAIN_READ.min(grace));
        if let AttemptState::Draining { reading_ends: reading_before, writing_ends: before } = a.state {
            if before <= writing_ends {
                return Ok(None);
            }
            reading_ends = reading_ends.min(reading_before);
        }
        Ok(Some(Change::AttemptDraining {
            attempt: number,
            reading_ends,
            writing_ends,
            detail: detail.to_owned(),
        }))
    }

    /// Ends the current attempt, for all of its members.
    pub fn end_attempt(
        &self,
        number: AttemptNumber,
        outcome: Outcome,
        detail: &str,
        now: LeaseTime,
    ) -> Result<End, Illegal> {
        let a = self.attempt(number).ok_or(Illegal::NoAttempt(number))?;
        match a.state {
            AttemptState::Ended(Outcome::Superseded) => {
                let current = self.attempts.last().map_or(number, |c| c.number);
                Err(Illegal::Stale(number, current))
            }
            AttemptState::Ended(o) if o == outcome => Ok(End::Already),
            AttemptState::Ended(o) => Ok(End::Conflict(o)),
            _ => Ok(End::Now(vec![Change::AttemptEnded {
                attempt: number,
                outcome,
                at: now,
                detail: detail.to_owned(),
            }])),
        }
    }

    /// Takes one member's word for its own end, and ends the attempt where that decides it.
    pub fn end_member(
        &self,
        number: AttemptNumber,
        instance: &InstanceName,
        outcome: Outcome,
        detail: &str,
        now: LeaseTime,
    ) -> Result<End, Illegal> {
        let a = self.attempt(number).ok_or(Illegal::NoAttempt(number))?;
        let m = a.members.get(instance).ok_or_else(|| Illegal::NotAMember(instance.clone()))?;
        if let AttemptState::Ended(o) = a.state {
            return match (o, m.outcome) {
                (Outcome::Superseded, _) => {
                    Err(Illegal::Stale(number, self.attempts.last().map_or(number, |c| c.number)))
                }
                (_, Some(said)) if said == outcome => Ok(End::Already),
                (_, Some(said)) => Ok(End::Conflict(said)),
                (o, None) if o == outcome => Ok(End::Already),
                (o, None) => Ok(End::Conflict(o)),
            };
        }
        if let Some(said) = m.outcome {
            return Ok(if said == outcome { End::Already } else { End::Conflict(said) });
        }
        let mut changes = vec![Change::MemberLeft {
            attempt: number,
            instance: instance.clone(),
            at: now,
            outcome: Some(outcome),
            detail: detail.to_owned(),
        }];
        if let Some((outcome, detail)) = self.decides(a, instance, outcome, detail) {
            changes.push(Change::AttemptEnded { attempt: number, outcome, at: now, detail });
        }
        Ok(End::Now(changes))
    }

    /// Whether the end of one member ends its attempt, and how.
    fn decides(
        &self,
        a: &Attempt,
        instance: &InstanceName,
        outcome: Outcome,
        detail: &str,
    ) -> Option<(Outcome, String)> {
        let said = || if detail.is_empty() { instance.to_string() } else { format!("{instance}: {detail}") };
        if outcome != Outcome::Completed {
            return Some((outcome, said()));
        }
        let done = match &self.spec.members.done_when {
            DoneWhen::Any => true,
            DoneWhen::Instance(i) => i == instance,
            DoneWhen::All => {
                let completed = a.members.values().filter(|m| m.outcome == Some(Outcome::Completed)).count();
                completed.saturating_add(1) >= self.spec.members.expect as usize
            }
        };
        done.then(|| (Outcome::Completed, said()))
    }

    /// A member out of sight. Nothing where it is not joined.
    pub fn away(
        &self,
        number: AttemptNumber,
        instance: &InstanceName,
        detail: &str,
        now: LeaseTime,
    ) -> Option<Change> {
        let m = self.running(number).ok()?.members.get(instance)?;
        (m.state == MemberState::Joined).then(|| Change::MemberAway {
            attempt: number,
            instance: instance.clone(),
            at: now,
            detail: detail.to_owned(),
        })
    }

    /// What time alone makes of the current attempt: members lost, the attempt lost or drained, the job at its end.
    pub fn overdue(&self, rejoin: Duration, now: LeaseTime) -> Vec<Change> {
        let mut changes = Vec::new();
        if self.is_closed() {
            return changes;
        }
        if now >= self.ends {
            let outcome = if self.attempts.is_empty() { Outcome::Expired } else { Outcome::Interrupted };
            changes.push(Change::Closed {
                outcome,
                at: now,
                detail: "the job reached its maximum duration".into(),
            });
            return changes;
        }
        let Some(a) = self.current() else { return changes };
        if let AttemptState::Draining { writing_ends, .. } = a.state {
            if now >= writing_ends {
                changes.push(Change::AttemptEnded {
                    attempt: a.number,
                    outcome: Outcome::Interrupted,
                    at: now,
                    detail: "the grace of its drain is over".into(),
                });
            }
            return changes;
        }
        let mut coming = 0usize;
        for (instance, m) in &a.members {
            match m.state {
                MemberState::Away { since } if now.since(since) > rejoin => {
                    changes.push(Change::MemberLost {
                        attempt: a.number,
                        instance: instance.clone(),
                        at: now,
                        detail: "it did not come back in time".into(),
                    });
                }
                MemberState::Joined | MemberState::Away { .. } => coming = coming.saturating_add(1),
                MemberState::Left | MemberState::Lost => {}
            }
        }
        let waited = a.members.is_empty() && now.since(a.began) > rejoin;
        if waited || (coming == 0 && !changes.is_empty()) {
            changes.push(Change::AttemptEnded {
                attempt: a.number,
                outcome: Outcome::Lost,
                at: now,
                detail: if waited { "nobody joined".into() } else { "its last member was lost".into() },
            });
        }
        changes
    }
}

#[cfg(test)]
#[path = "moves_tests.rs"]
mod tests;

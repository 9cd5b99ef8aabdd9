//! The legal transitions. Each transition checks a job and returns the changes to make, or the reason for which it is
//! not legal.

use std::time::Duration;

use super::{Attempt, AttemptState, Change, DoneWhen, Drain, Illegal, Job, JobState, Member, MemberState};
use crate::{
    clock::LeaseTime,
    limits,
    name::{AttemptNumber, InstanceName, Outcome, SpiffeId, SpiffePattern},
    secret::SecretDigest,
};

/// The result of [`Job::close`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Close {
    Now(Change),
    /// The job is already closed with this outcome.
    Already,
    /// The job is closed with another outcome, and keeps that outcome.
    Conflict(Outcome),
}

/// The result of [`Job::begin`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Begin {
    New(Change),
    /// This key began this attempt, and the attempt is still open.
    Existing(AttemptNumber),
}

/// The result of [`Job::join`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Join {
    /// A new member joins, or a member comes back.
    New(Change),
    /// This member is joined already.
    Same,
}

/// The effect of a reported end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    Now(Vec<Change>),
    Already,
    /// Another outcome was reported before. The earlier outcome counts.
    Conflict(Outcome),
}

/// The length of a drain. Reads end after the shorter of the two spans, checkpoint writes after the grace, at most
/// [`limits::DRAIN_GRACE_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainSpans {
    pub reading: Duration,
    pub grace: Duration,
}

impl Drain {
    /// Returns a drain that begins now. `None` if the present drain does not end later, because a second drain never
    /// extends the first.
    fn within(before: Option<Drain>, spans: DrainSpans, now: LeaseTime) -> Option<Drain> {
        let DrainSpans { reading, grace } = spans;
        let grace = grace.min(limits::DRAIN_GRACE_MAX);
        let writing_ends = now.plus(grace);
        let reading_ends = now.plus(reading.min(grace));
        match before {
            Some(before) if before.writing_ends <= writing_ends => None,
            Some(before) => Some(Drain { reading_ends: reading_ends.min(before.reading_ends), writing_ends }),
            None => Some(Drain { reading_ends, writing_ends }),
        }
    }

    fn later(self, other: Drain) -> Drain {
        Drain {
            reading_ends: self.reading_ends.max(other.reading_ends),
            writing_ends: self.writing_ends.max(other.writing_ends),
        }
    }
}

impl Job {
    /// Closes a job that is in any state.
    pub fn close(&self, outcome: Outcome, detail: &str, now: LeaseTime) -> Close {
        match self.state {
            JobState::Closed(o) if o == outcome => Close::Already,
            JobState::Closed(o) => Close::Conflict(o),
            _ => Close::Now(Change::Closed { outcome, at: now, detail: detail.to_owned() }),
        }
    }

    /// Begins the next attempt, or finds the attempt that this key began.
    pub fn begin(
        &self,
        key: &str,
        supersede: bool,
        ticket: SecretDigest,
        vouched: &[SpiffePattern],
        now: LeaseTime,
    ) -> Result<Begin, Illegal> {
        match self.state {
            JobState::Closed(o) => return Err(Illegal::JobClosed(o)),
            JobState::AwaitingApproval => return Err(Illegal::AwaitingApproval),
            // An approval may have expired, although it was not withdrawn yet.
            JobState::Ready if !self.has_begun() && self.waiting_for(now).next().is_some() => {
                return Err(Illegal::AwaitingApproval);
            }
            JobState::Ready | JobState::Running => {}
        }
        if let Some(a) = self.attempts.iter().find(|a| a.key == key) {
            return if a.is_ended() {
                Err(Illegal::KeyUsed(a.number))
            } else if !vouched.iter().all(|p| a.vouched.contains(p)) {
                Err(Illegal::OtherMembers(a.number))
            } else {
                Ok(Begin::Existing(a.number))
            };
        }
        if !self.attempts_left() {
            return Err(Illegal::AttemptsExhausted(self.spec.members.attempts));
        }
        if let Some(a) = self.current()
            && matches!(a.state, AttemptState::Draining(_))
            && !supersede
        {
            return Err(Illegal::Draining(a.number));
        }
        let attempt = self.attempts.last().map_or(AttemptNumber::FIRST, |a| a.number.next());
        let (key, vouched) = (key.to_owned(), vouched.to_vec());
        Ok(Begin::New(Change::AttemptBegan { attempt, key, at: now, ticket, vouched }))
    }

    /// Returns the attempt with this number, if it is the current attempt and still open.
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

    /// Adds a member, or lets a member come back.
    ///
    /// The scheduler gives the name of an instance. If the member of this name has been away for longer than `window`,
    /// a replacement process takes over the name. A live member that reaches the daemon is back by then. While a member
    /// drains, no other process takes over its name, because it would get more time than the drain gives. After the
    /// drain or the end of the member, policy decides again about a replacement process. An end does not exclude a
    /// process, but a lock does.
    pub fn join(
        &self,
        number: AttemptNumber,
        instance: &InstanceName,
        member: &SpiffeId,
        session: SecretDigest,
        window: Duration,
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
        let mut takes_over = false;
        if let Some(m) = a.members.get(instance) {
            let same = m.spiffe_id == *member && m.session == session;
            match m.state {
                MemberState::Joined if same => return Ok(Join::Same),
                MemberState::Away { .. } if same => return Ok(change()),
                MemberState::Away { since } if m.spiffe_id == *member && now.since(since) > window => {
                    if m.drain.is_some_and(|drain| now < drain.writing_ends) {
                        return Err(Illegal::InstanceDraining(instance.clone()));
                    }
                    takes_over = true;
                }
                MemberState::Joined | MemberState::Away { .. } => {
                    return Err(Illegal::InstanceTaken(instance.clone()));
                }
                MemberState::Left if m.outcome == Some(Outcome::Completed) => {
                    return Err(Illegal::NotJoined(instance.clone(), "it has done its part"));
                }
                MemberState::Left if same => {
                    return Err(Illegal::NotJoined(instance.clone(), "it has left"));
                }
                MemberState::Lost if same => {
                    return Err(Illegal::NotJoined(instance.clone(), "it was lost"));
                }
                MemberState::Left | MemberState::Lost => {}
            }
        }
        if matches!(a.state, AttemptState::Draining(_)) {
            return Err(Illegal::Draining(number));
        }
        if !takes_over && a.members.present() >= self.spec.members.max as usize {
            return Err(Illegal::MembersFull(self.spec.members.max));
        }
        if a.members.len() >= limits::INSTANCES_MAX && !a.members.contains(instance) {
            return Err(Illegal::InstancesExhausted(limits::INSTANCES_MAX));
        }
        Ok(change())
    }

    /// Drains an attempt. A second drain never extends the first.
    pub fn drain(
        &self,
        number: AttemptNumber,
        spans: DrainSpans,
        detail: &str,
        now: LeaseTime,
    ) -> Result<Option<Change>, Illegal> {
        let before = match self.running(number)?.state {
            AttemptState::Draining(before) => Some(before),
            _ => None,
        };
        let drain = Drain::within(before, spans, now);
        Ok(drain.map(|drain| Change::AttemptDraining { attempt: number, drain, detail: detail.to_owned() }))
    }

    /// Drains one member while the others go on. If the attempt is complete and all members drain, the attempt drains.
    pub fn drain_member(
        &self,
        number: AttemptNumber,
        instance: &InstanceName,
        spans: DrainSpans,
        detail: &str,
        now: LeaseTime,
    ) -> Result<Vec<Change>, Illegal> {
        let a = self.running(number)?;
        let m = a.members.get(instance).ok_or_else(|| Illegal::NotAMember(instance.clone()))?;
        if !m.is_present() {
            return Err(Illegal::NotJoined(instance.clone(), "it has left, or was lost"));
        }
        let Some(drain) = Drain::within(a.drain_of(instance), spans, now) else { return Ok(Vec::new()) };
        let detail = detail.to_owned();
        let mut changes = vec![Change::MemberDraining {
            attempt: number,
            instance: instance.clone(),
            drain,
            detail: detail.clone(),
        }];
        if !matches!(a.state, AttemptState::Draining(_)) && self.is_whole(a) {
            let others = a.present().filter(|(i, _)| *i != instance).map(|(_, m)| m.drain);
            // The attempt lasts until its last member ends.
            let all = others.into_iter().try_fold(drain, |last, other| other.map(|d| last.later(d)));
            if let Some(drain) = all {
                changes.push(Change::AttemptDraining { attempt: number, drain, detail });
            }
        }
        Ok(changes)
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

    /// Records a member's report of its end. Ends the attempt if the report decides the attempt.
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
        // A later report may replace `Unknown`.
        let said = m.outcome.filter(|o| *o != Outcome::Unknown);
        if let AttemptState::Ended(o) = a.state {
            return match (o, said) {
                (Outcome::Superseded, _) => {
                    Err(Illegal::Stale(number, self.attempts.last().map_or(number, |c| c.number)))
                }
                (_, Some(said)) if said == outcome => Ok(End::Already),
                (_, Some(said)) => Ok(End::Conflict(said)),
                (o, None) if o == outcome => Ok(End::Already),
                (o, None) => Ok(End::Conflict(o)),
            };
        }
        if let Some(said) = said {
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

    /// Returns the outcome of the attempt if the end of one member ends it.
    ///
    /// If one member fails, the attempt fails. An interrupted member, for example on a removed node, does not affect
    /// the others while some are present or still expected.
    fn decides(
        &self,
        a: &Attempt,
        instance: &InstanceName,
        outcome: Outcome,
        detail: &str,
    ) -> Option<(Outcome, String)> {
        let said = || if detail.is_empty() { instance.to_string() } else { format!("{instance}: {detail}") };
        if !matches!(outcome, Outcome::Completed | Outcome::Interrupted) {
            return Some((outcome, said()));
        }
        let expect = self.spec.members.expect as usize;
        let decided = match (&self.spec.members.done_when, outcome) {
            (DoneWhen::Instance(i), _) if i == instance => true,
            (DoneWhen::Any, Outcome::Completed) => true,
            (DoneWhen::All, Outcome::Completed) => a.members.completed().saturating_add(1) >= expect,
            _ => false,
        };
        if decided {
            return Some((outcome, said()));
        }
        let own = a.members.get(instance).is_some_and(Member::is_present);
        let is_last = a.members.present() <= usize::from(own);
        (is_last && self.is_whole(a))
            .then(|| (Outcome::Interrupted, format!("no member is left to complete it: {}", said())))
    }

    /// Returns the change that marks a member as away. `None` if the member is not joined.
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

    /// Returns the changes that are due at `now`: lost members, a lost or drained attempt, the end of the job.
    pub fn overdue(&self, rejoin: Duration, now: LeaseTime) -> Vec<Change> {
        let mut changes = Vec::new();
        if self.is_closed() {
            return changes;
        }
        if now >= self.ends {
            let emergency_is_over = self.emergency.as_ref().is_some_and(|e| now >= e.until);
            let (outcome, detail) = match (self.has_begun(), self.gates.is_empty()) {
                (true, _) if emergency_is_over => (Outcome::Interrupted, "the time of its emergency is over"),
                (true, _) => (Outcome::Interrupted, "the job reached its maximum duration"),
                (false, true) => (Outcome::Expired, "the job reached its maximum duration"),
                (false, false) => (Outcome::Expired, "the job waited too long to be approved and to begin"),
            };
            changes.push(Change::Closed { outcome, at: now, detail: detail.into() });
            return changes;
        }
        let Some(a) = self.current() else { return self.lapsed_approvals(now) };
        let end = |outcome, detail: &str| {
            let detail = detail.to_owned();
            Change::AttemptEnded { attempt: a.number, outcome, at: now, detail }
        };
        if let AttemptState::Draining(Drain { writing_ends, .. }) = a.state
            && now >= writing_ends
        {
            changes.push(end(Outcome::Interrupted, "the grace of its drain is over"));
            return changes;
        }
        let (mut coming, mut drained) = (0usize, false);
        for (instance, m) in a.present() {
            let instance = instance.clone();
            if let Some(Drain { writing_ends, .. }) = m.drain
                && now >= writing_ends
            {
                drained = true;
                changes.push(Change::MemberLeft {
                    attempt: a.number,
                    instance,
                    at: now,
                    outcome: Some(Outcome::Interrupted),
                    detail: "the grace of its drain is over".into(),
                });
            } else if let MemberState::Away { since } = m.state
                && now.since(since) > rejoin
            {
                changes.push(Change::MemberLost {
                    attempt: a.number,
                    instance,
                    at: now,
                    detail: "it did not come back in time".into(),
                });
            } else {
                coming = coming.saturating_add(1);
            }
        }
        if coming > 0 {
            return changes;
        }
        if drained && self.is_whole(a) {
            changes.push(end(Outcome::Interrupted, "its last member has drained"));
        } else if !drained && !changes.is_empty() {
            changes.push(end(Outcome::Lost, "its last member was lost"));
        } else if changes.is_empty() && now.since(a.vacant_since) > rejoin {
            let unseen = a.members.values().any(|m| m.outcome == Some(Outcome::Unknown));
            changes.push(match (a.members.is_empty(), unseen) {
                (true, _) => end(Outcome::Lost, "no member joined"),
                (false, true) => {
                    end(Outcome::Unknown, "all of its members have left, and no one saw how the work ended")
                }
                (false, false) => end(Outcome::Lost, "all of its members have left"),
            });
        }
        changes
    }

    /// Whether all expected members have joined, or no more members are admitted. After they have left, the attempt
    /// does not wait for other members.
    fn is_whole(&self, a: &Attempt) -> bool {
        let awaited = match &self.spec.members.done_when {
            DoneWhen::Instance(i) => !a.members.contains(i),
            DoneWhen::All | DoneWhen::Any => false,
        };
        matches!(a.state, AttemptState::Draining(_))
            || (!awaited && a.members.len() >= self.spec.members.expect as usize)
    }
}

#[cfg(test)]
#[path = "transitions_tests.rs"]
mod tests;

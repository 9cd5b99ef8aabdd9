//! The state as the ledger tells it.

use std::collections::{HashMap, HashSet};

use super::{
    Lock, LockName, Locks,
    records::{change_of, job_of, seq_of},
};
use crate::{
    clock::LeaseTime,
    fence::Seq,
    job::{Change, Job, MemberState},
    ledger::Event,
    name::JobId,
};

/// What a new life of the daemon begins with.
#[derive(Debug, Default)]
pub struct Rebuilt {
    pub jobs: Vec<Job>,
    pub locks: Locks,
    /// The last count of lowerings that is known.
    pub seq: Seq,
}

/// A record that does not fit those before it.
#[derive(Debug, thiserror::Error)]
#[error("ledger record {index} does not fit: {what}")]
pub struct RebuildError {
    pub index: u64,
    pub what: &'static str,
}

impl Rebuilt {
    /// Applies all records in order. Whoever was joined is away now, since `now`: no access until it is back and has been
    /// decided again.
    pub fn from_records(
        records: impl IntoIterator<Item = (u64, Event)>,
        now: LeaseTime,
    ) -> Result<Self, RebuildError> {
        let mut jobs: HashMap<JobId, Job> = HashMap::new();
        let mut order = Vec::new();
        let mut locks = Locks::default();
        let mut seq = Seq(0);
        let records: Vec<(u64, Event)> = records.into_iter().collect();
        let withdrawn: HashSet<u64> = records
            .iter()
            .filter_map(|(_, event)| match event {
                Event::Withdrawn { index, .. } => Some(*index),
                _ => None,
            })
            .collect();
        for (index, event) in records.into_iter().filter(|(index, _)| !withdrawn.contains(index)) {
            let bad = |what| RebuildError { index, what };
            seq = seq.max(seq_of(&event));
            match event {
                Event::JobCreated(created) => {
                    let job = job_of(*created).map_err(bad)?;
                    order.push(job.id);
                    if jobs.insert(job.id, job).is_some() {
                        return Err(bad("it creates a job that is there already"));
                    }
                }
                Event::LockSet { name, by, reason, at, until, .. } => {
                    let name: LockName = name.parse().map_err(|_| bad("its lock has no valid name"))?;
                    locks.insert(Lock { name, reason, by, since: at, until });
                }
                Event::LockLifted { name, .. } => {
                    let name: LockName = name.parse().map_err(|_| bad("its lock has no valid name"))?;
                    locks.remove(&name);
                }
                other => {
                    if let Some((id, change, _)) = change_of(other) {
                        let job =
                            jobs.get_mut(&id).ok_or_else(|| bad("it is about a job that is not there"))?;
                        job.apply(&change);
                    }
                }
            }
        }
        locks.prune(now);
        let jobs = order
            .into_iter()
            .filter_map(|id| jobs.remove(&id))
            .map(|mut job| {
                suspend(&mut job, now);
                job
            })
            .collect();
        Ok(Rebuilt { jobs, locks, seq })
    }
}

fn suspend(job: &mut Job, now: LeaseTime) {
    let Some(a) = job.current() else { return };
    let attempt = a.number;
    let joined: Vec<_> = a
        .members
        .iter()
        .filter(|(_, m)| matches!(m.state, MemberState::Joined | MemberState::Away { .. }))
        .map(|(i, _)| i.clone())
        .collect();
    for instance in joined {
        let detail = "the daemon was started again".to_owned();
        job.apply(&Change::MemberAway { attempt, instance, at: now, detail });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Actor;

    fn lock(name: &str) -> Event {
        Event::LockSet {
            name: name.into(),
            by: Actor::Daemon("test".into()),
            reason: "r".into(),
            at: LeaseTime(1),
            until: None,
            ending: Default::default(),
        }
    }

    #[test]
    fn a_record_that_was_withdrawn_takes_no_effect_in_a_later_life() {
        let why = "overtaken".to_owned();
        let records = [
            (1, lock("tenant:acme")),
            (
                2,
                Event::LockLifted {
                    name: "tenant:acme".into(),
                    by: Actor::Daemon("t".into()),
                    reason: "r".into(),
                },
            ),
        ];
        let lifted = Rebuilt::from_records(records.clone(), LeaseTime(5)).unwrap();
        assert!(lifted.locks.is_empty());
        let withdrawn = (3, Event::Withdrawn { index: 2, job: JobId(1), why });
        let stands = Rebuilt::from_records(records.into_iter().chain([withdrawn]), LeaseTime(5)).unwrap();
        assert_eq!(stands.locks.len(), 1);
    }
}

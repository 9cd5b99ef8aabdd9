//! The state as the ledger tells it.

use std::collections::HashMap;

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
        for (index, event) in records {
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

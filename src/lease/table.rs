//! The table of leases.

use std::{
    collections::{HashSet, VecDeque},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use dashmap::DashMap;

use super::{Fired, Refused, cell::Cell, deadlines::Deadlines};
use crate::{
    clock::LeaseTime,
    fence::{Seq, Stand},
    limits,
    name::{
        AttemptNumber, FenceKind, FenceName, Half, InstanceName, JobId, LeaseId, Scope, SpiffeId, TenantName,
    },
    policy::Grant,
};

/// What is remembered of a lease whose deadline came.
pub const EXPIRED: &str = "expired";

/// What a lease is for. Shared by the leases of one member, half and audience.
#[derive(Debug, PartialEq, Eq)]
pub struct Facts {
    pub tenant: TenantName,
    pub job: JobId,
    pub attempt: AttemptNumber,
    pub instance: InstanceName,
    pub holder: SpiffeId,
    pub half: Half,
    pub audience: SpiffeId,
    pub scopes: Vec<Scope>,
}

/// What a new lease is to be.
#[derive(Debug)]
pub struct Terms {
    pub id: LeaseId,
    pub issued: LeaseTime,
    pub deadline: LeaseTime,
    /// No renewal goes past it.
    pub latest: LeaseTime,
    pub facts: Arc<Facts>,
}

/// A bounded right.
#[derive(Debug)]
pub struct Lease {
    pub id: LeaseId,
    cell: Cell,
    stand: Stand,
    pub issued: LeaseTime,
    pub latest: LeaseTime,
    pub facts: Arc<Facts>,
}

impl Lease {
    /// Whether it is good at `now`. No lock, no look-up: a few loads.
    pub fn check(&self, now: LeaseTime) -> Result<(), Refused> {
        self.cell.check(now)?;
        if self.stand.is_up() { Ok(()) } else { Err(Refused::Lowered) }
    }

    pub fn deadline(&self) -> LeaseTime {
        self.cell.deadline()
    }

    pub fn generation(&self) -> u32 {
        self.cell.generation()
    }

    pub fn stand(&self) -> &Stand {
        &self.stand
    }

    /// How it is remembered once it ended.
    pub fn as_ended(&self, at: LeaseTime, cause: &str) -> Ended {
        Ended {
            id: self.id,
            facts: self.facts.clone(),
            issued: self.issued,
            deadline: self.deadline(),
            latest: self.latest,
            generation: self.generation(),
            stood_at: self.stand.at(),
            at,
            cause: cause.to_owned(),
        }
    }

    /// Prolongs it from `now` under a fresh decision, never past its latest end. The stand stays the old one.
    ///
    /// `generation` is the one that the credential was prepared for: where another renewal made it first, nothing changes.
    pub fn renew(
        &self,
        _decided: &Grant,
        generation: u32,
        now: LeaseTime,
        deadline: LeaseTime,
    ) -> Result<(), Refused> {
        if !self.stand.is_up() {
            return Err(Refused::Lowered);
        }
        self.cell.renew(generation, now, deadline.min(self.latest))?;
        // A fence that went down meanwhile: the lease is dead whatever its deadline says, and the answer says so.
        if self.stand.is_up() { Ok(()) } else { Err(Refused::Lowered) }
    }
}

/// Why a lease was not made, or not kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unborn {
    #[error(transparent)]
    Quota(#[from] QuotaExceeded),
    /// A fence was lowered while it was being made.
    #[error("`{0}` was revoked meanwhile")]
    Lowered(FenceName),
}

/// As many leases as there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuotaExceeded {
    #[error("the job holds {} leases, as many as one job may", limits::LEASES_PER_JOB_MAX)]
    Job,
    #[error("the daemon holds {} leases, as many as it may", limits::LEASES_MAX)]
    Daemon,
}

/// A lease that ended, as long as it is remembered.
#[derive(Clone, Debug)]
pub struct Ended {
    pub id: LeaseId,
    pub facts: Arc<Facts>,
    pub issued: LeaseTime,
    pub deadline: LeaseTime,
    pub latest: LeaseTime,
    pub generation: u32,
    pub stood_at: Seq,
    pub at: LeaseTime,
    /// In one line.
    pub cause: String,
}

/// All live leases, with what finds them. Two kinds of index: by id and by job. Both change in [`Table::insert`] and
/// [`Table::remove`] alone.
#[derive(Debug, Default)]
pub struct Table {
    leases: DashMap<LeaseId, Arc<Lease>>,
    by_job: DashMap<JobId, HashSet<LeaseId>>,
    count: AtomicUsize,
    deadlines: Deadlines,
    ended: Mutex<VecDeque<Ended>>,
}

impl Table {
    /// Refuses what would be beyond a quota. To be asked before anything is minted.
    pub fn room(&self, job: JobId) -> Result<(), QuotaExceeded> {
        if self.count.load(Ordering::Relaxed) >= limits::LEASES_MAX {
            return Err(QuotaExceeded::Daemon);
        }
        if self.of_job_count(job) >= limits::LEASES_PER_JOB_MAX {
            return Err(QuotaExceeded::Job);
        }
        Ok(())
    }

    /// Makes the lease of a Grant. It goes in first, and its fences are looked at after: whatever is lowered meanwhile
    /// either finds it here or is seen by this look. One that is born dead is out of every index before the error.
    pub fn insert(&self, grant: Grant, terms: Terms) -> Result<Arc<Lease>, Unborn> {
        let Terms { id, issued, deadline, latest, facts } = terms;
        self.room(facts.job)?;
        let lease = Arc::new(Lease {
            id,
            cell: Cell::new(deadline.min(latest)),
            stand: grant.into_parts().stand,
            issued,
            latest,
            facts,
        });
        lease.stand.enter();
        self.count.fetch_add(1, Ordering::Relaxed);
        self.by_job.entry(lease.facts.job).or_default().insert(id);
        self.leases.insert(id, lease.clone());
        self.deadlines.arm(id, lease.deadline());
        if let Some((name, _)) = lease.stand.lowered() {
            let name = name.clone();
            self.remove(id, issued, "revoked before it was handed out");
            return Err(Unborn::Lowered(name));
        }
        Ok(lease)
    }

    pub fn find(&self, id: LeaseId) -> Option<Arc<Lease>> {
        self.leases.get(&id).map(|l| l.clone())
    }

    /// Ends a lease and takes it out of every index; remembers it for a while. `None` where it is not there (any more).
    pub fn remove(&self, id: LeaseId, now: LeaseTime, cause: &str) -> Option<Arc<Lease>> {
        // Its own end first: whoever still holds it sees that at its next check.
        let (_, lease) = self.leases.remove(&id)?;
        lease.cell.end();
        if let dashmap::Entry::Occupied(mut e) = self.by_job.entry(lease.facts.job) {
            e.get_mut().remove(&id);
            if e.get().is_empty() {
                e.remove();
            }
        }
        self.count.fetch_sub(1, Ordering::Relaxed);
        lease.stand.leave();
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if ended.len() >= limits::LEASES_ENDED_MAX {
            ended.pop_front();
        }
        ended.push_back(lease.as_ended(now, cause));
        drop(ended);
        Some(lease)
    }

    /// Looks at up to `max` deadlines that came, and ends those that are still due.
    pub fn expire(&self, now: LeaseTime, max: usize) -> (Vec<Arc<Lease>>, usize) {
        let due = self.deadlines.due(now, max);
        let looked = due.len();
        let mut gone = Vec::new();
        for id in due {
            let Some(lease) = self.find(id) else { continue };
            match lease.cell.fire(now) {
                Fired::Later(deadline) => self.deadlines.arm(id, deadline),
                Fired::Expired | Fired::Already => gone.extend(self.remove(id, now, EXPIRED)),
            }
        }
        (gone, looked)
    }

    /// When to look at deadlines again.
    pub fn next_deadline(&self) -> Option<LeaseTime> {
        self.deadlines.next()
    }

    /// Takes out the leases that a lowering of this name ended. They are dead already; this frees their places.
    pub fn sweep(&self, name: &FenceName, now: LeaseTime, cause: &str) -> Vec<Arc<Lease>> {
        let candidates: Vec<LeaseId> = match name.kind() {
            FenceKind::Lease(id) => vec![id],
            FenceKind::Job(j)
            | FenceKind::Attempt(j, _)
            | FenceKind::AttemptReading(j, _)
            | FenceKind::Member(j, ..)
            | FenceKind::MemberReading(j, ..) => {
                self.by_job.get(&j).map(|ids| ids.iter().copied().collect()).unwrap_or_default()
            }
            _ => self.leases.iter().filter(|l| !l.stand.is_up()).map(|l| l.id).collect(),
        };
        candidates
            .into_iter()
            .filter(|id| self.find(*id).is_some_and(|l| !l.stand.is_up()))
            .filter_map(|id| self.remove(id, now, cause))
            .collect()
    }

    /// All live leases, or those behind one name.
    pub fn live(&self, behind: Option<&FenceName>) -> Vec<Arc<Lease>> {
        match behind {
            None => self.leases.iter().map(|l| l.clone()).collect(),
            Some(name) => match name.kind() {
                FenceKind::Lease(id) => self.find(id).into_iter().collect(),
                FenceKind::Job(j) => self.of_job(j),
                _ => self
                    .leases
                    .iter()
                    .filter(|l| l.stand.names().any(|n| n == name))
                    .map(|l| l.clone())
                    .collect(),
            },
        }
    }

    /// Leases that ended a short while ago, newest first.
    pub fn ended(&self) -> Vec<Ended> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).iter().rev().cloned().collect()
    }

    /// A lease that ended a short while ago.
    pub fn find_ended(&self, id: LeaseId) -> Option<Ended> {
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        ended.iter().rev().find(|l| l.id == id).cloned()
    }

    pub fn of_job(&self, job: JobId) -> Vec<Arc<Lease>> {
        let ids: Vec<LeaseId> =
            self.by_job.get(&job).map(|ids| ids.iter().copied().collect()).unwrap_or_default();
        ids.into_iter().filter_map(|id| self.find(id)).collect()
    }

    pub fn of_job_count(&self, job: JobId) -> usize {
        self.by_job.get(&job).map_or(0, |ids| ids.len())
    }

    pub fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

//! The jobs in which each identity is or was a member.

use std::collections::{BTreeMap, HashMap, VecDeque};

use crate::{
    clock::LeaseTime,
    job::Job,
    limits,
    name::{JobId, SpiffeId},
};

/// The use of an identity in one job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Use {
    pub job: JobId,
    /// The beginning of the first attempt in which the identity was a member.
    pub first: LeaseTime,
    /// The end of the job.
    pub closed: Option<LeaseTime>,
}

impl Use {
    /// Whether this use still binds the identity to the job: while the job is open, and after the job's end while an
    /// SVID from before the end may still be valid.
    pub(super) fn binds(&self, now: LeaseTime) -> bool {
        self.closed.is_none_or(|closed| now.since(closed) <= limits::IDENTITY_BOUND)
    }
}

/// Returns the identities of a job's members, each with its use.
pub(super) fn uses_of(job: &Job) -> BTreeMap<SpiffeId, Use> {
    let mut uses = BTreeMap::new();
    for a in &job.attempts {
        for id in a.members.identities() {
            let new = Use { job: job.id, first: a.began, closed: job.closed };
            uses.entry(id.clone()).or_insert(new);
        }
    }
    uses
}

/// All identities that are or were members, with their jobs. Uses in jobs that closed long ago are dropped.
#[derive(Debug, Default)]
pub(super) struct Identities {
    uses: HashMap<SpiffeId, Vec<Use>>,
    /// Jobs in the order of their ends.
    closed: VecDeque<(LeaseTime, JobId, Vec<SpiffeId>)>,
    /// Identities that are bound to a job while their first joins are being recorded.
    claims: HashMap<SpiffeId, (JobId, u32)>,
}

impl Identities {
    /// Returns the number of identities.
    pub(super) fn len(&self) -> usize {
        self.uses.len()
    }

    /// Whether an identity is or was a member of a job that is not forgotten.
    pub(super) fn contains(&self, id: &SpiffeId) -> bool {
        self.uses.contains_key(id)
    }

    /// Returns the other job that binds an identity: the first job that used it.
    pub(super) fn bound_elsewhere(&self, id: &SpiffeId, job: JobId, now: LeaseTime) -> Option<JobId> {
        let binding = self.uses.get(id).into_iter().flatten().filter(|u| u.binds(now));
        let first = binding.min_by_key(|u| (u.first, u.job)).map(|u| u.job);
        first.or_else(|| self.claims.get(id).map(|(job, _)| *job)).filter(|first| *first != job)
    }

    /// Reserves an identity for a job while its join is being recorded.
    pub(super) fn claim(&mut self, id: &SpiffeId, job: JobId) {
        let claim = self.claims.entry(id.clone()).or_insert((job, 0));
        claim.1 = claim.1.saturating_add(1);
    }

    pub(super) fn unclaim(&mut self, id: &SpiffeId) {
        if let Some(claim) = self.claims.get_mut(id) {
            claim.1 = claim.1.saturating_sub(1);
            if claim.1 == 0 {
                self.claims.remove(id);
            }
        }
    }

    /// Adds a use. Returns whether the use is new.
    pub(super) fn record_use(&mut self, id: &SpiffeId, new: Use) -> bool {
        let uses = self.uses.entry(id.clone()).or_default();
        if uses.iter().any(|u| u.job == new.job) {
            return false;
        }
        uses.push(new);
        if let Some(at) = new.closed {
            self.closed.push_back((at, new.job, vec![id.clone()]));
        }
        true
    }

    /// Returns the open jobs in which an identity is or was a member.
    pub(super) fn open(&self, id: &SpiffeId) -> impl Iterator<Item = JobId> {
        self.uses.get(id).into_iter().flatten().filter(|u| u.closed.is_none()).map(|u| u.job)
    }

    /// Returns the open jobs, except `job`, in which an identity is or was a member.
    pub(super) fn open_elsewhere(&self, id: &SpiffeId, job: JobId) -> impl Iterator<Item = JobId> {
        self.open(id).filter(move |open| *open != job)
    }

    /// Notes the end of a job.
    pub(super) fn closed(&mut self, job: &Job) {
        let Some(at) = job.closed else { return };
        let ids: Vec<SpiffeId> = uses_of(job).into_keys().collect();
        for id in &ids {
            let own = self.uses.get_mut(id).into_iter().flatten().find(|u| u.job == job.id);
            if let Some(own) = own {
                own.closed = Some(at);
            }
        }
        if !ids.is_empty() {
            self.closed.push_back((at, job.id, ids));
        }
    }

    /// Drops uses that no longer bind.
    pub(super) fn prune(&mut self, now: LeaseTime) {
        while let Some((at, ..)) = self.closed.front()
            && now.since(*at) > limits::IDENTITY_BOUND
        {
            let Some((_, job, ids)) = self.closed.pop_front() else { return };
            for id in ids {
                if let Some(uses) = self.uses.get_mut(&id) {
                    uses.retain(|u| u.job != job);
                    if uses.is_empty() {
                        self.uses.remove(&id);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> SpiffeId {
        format!("spiffe://td/{name}").parse().unwrap()
    }

    fn open(job: u128, first: u64) -> Use {
        Use { job: JobId(job), first: LeaseTime(first), closed: None }
    }

    #[test]
    fn the_first_job_binds_an_identity_while_its_svid_may_live() {
        let mut all = Identities::default();
        let now = LeaseTime(1_000);
        assert_eq!(all.bound_elsewhere(&id("a"), JobId(1), now), None);
        assert!(all.record_use(&id("a"), open(2, 20)) && all.record_use(&id("a"), open(1, 10)));
        assert!(!all.record_use(&id("a"), open(1, 30)), "it is known");
        assert_eq!(all.bound_elsewhere(&id("a"), JobId(2), now), Some(JobId(1)));
        assert_eq!(all.bound_elsewhere(&id("a"), JobId(1), now), None);
        assert_eq!(all.bound_elsewhere(&id("b"), JobId(2), now), None);
        let over = Use { closed: Some(now), ..open(3, 5) };
        assert!(all.record_use(&id("c"), over));
        let late = now.plus(limits::IDENTITY_BOUND);
        assert_eq!(all.bound_elsewhere(&id("c"), JobId(4), late), Some(JobId(3)));
        all.prune(late);
        assert!(all.contains(&id("c")));
        let later = LeaseTime(late.0 + 1);
        assert_eq!(all.bound_elsewhere(&id("c"), JobId(4), later), None);
        all.prune(later);
        assert!(!all.contains(&id("c")) && all.contains(&id("a")) && all.len() == 1);
    }

    #[test]
    fn while_a_first_join_is_recorded_the_identity_is_taken() {
        let mut all = Identities::default();
        let now = LeaseTime(1);
        all.claim(&id("a"), JobId(1));
        all.claim(&id("a"), JobId(1));
        all.unclaim(&id("a"));
        assert_eq!(all.bound_elsewhere(&id("a"), JobId(2), now), Some(JobId(1)));
        assert_eq!(all.bound_elsewhere(&id("a"), JobId(1), now), None);
        all.unclaim(&id("a"));
        assert_eq!(all.bound_elsewhere(&id("a"), JobId(2), now), None);
    }
}

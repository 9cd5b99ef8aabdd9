//! Indexes of live leases: by id, and by job and group.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError},
};

use hashbrown::HashTable;

use super::{Facts, Lease, Terms};
use crate::{
    fence::{Seq, Stand},
    name::{FenceName, JobId, LeaseId},
    sync::{IS_MODEL_CHECK, Mutex, MutexGuard, RwLock},
};

/// The number of shards of the index by id, each with its own lock. A look-up waits at most for the growth of one
/// shard.
const ID_SHARDS: usize = if IS_MODEL_CHECK { 2 } else { 256 };
/// The number of shards of the index by job.
const JOB_SHARDS: usize = if IS_MODEL_CHECK { 1 } else { 64 };

// An id is 128 random bits that callers cannot choose. One half is the hash, the other half selects the shard.
pub(super) fn hash(id: LeaseId) -> u64 {
    #[expect(clippy::cast_possible_truncation, reason = "the lower half is what is wanted")]
    let low = id.0 as u64;
    low
}

fn shard(bits: u128, shards: usize) -> usize {
    usize::try_from((bits >> 64) % shards as u128).unwrap_or(0)
}

fn hash_of(lease: &Arc<Lease>) -> u64 {
    hash(lease.id)
}

/// Leases by id. A lease takes only eight bytes here, because the id is in the lease.
#[derive(Debug)]
pub(super) struct ById(Box<[RwLock<HashTable<Arc<Lease>>>]>);

impl Default for ById {
    fn default() -> Self {
        ById((0..ID_SHARDS).map(|_| RwLock::new(HashTable::new())).collect())
    }
}

impl ById {
    fn shard(&self, id: LeaseId) -> &RwLock<HashTable<Arc<Lease>>> {
        #[expect(clippy::indexing_slicing, reason = "a remainder of the length, which is never 0")]
        &self.0[shard(id.0, self.0.len())]
    }

    /// Inserts a lease. Returns false, and changes nothing, if its id is in use.
    pub(super) fn insert(&self, lease: Arc<Lease>) -> bool {
        let mut shard = self.shard(lease.id).write().unwrap_or_else(PoisonError::into_inner);
        if shard.find(hash(lease.id), |l| l.id == lease.id).is_some() {
            return false;
        }
        shard.insert_unique(hash(lease.id), lease, hash_of);
        true
    }

    pub(super) fn find(&self, id: LeaseId) -> Option<Arc<Lease>> {
        let shard = self.shard(id).read().unwrap_or_else(PoisonError::into_inner);
        shard.find(hash(id), |l| l.id == id).cloned()
    }

    /// Returns the number of bytes that the shards have allocated.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.0.iter().map(|s| s.read().unwrap_or_else(PoisonError::into_inner).allocation_size()).sum()
    }

    /// Removes a lease if `over` returns true. If several callers remove the lease, only one gets it.
    pub(super) fn remove_if(&self, id: LeaseId, over: impl FnOnce(&Lease) -> bool) -> Option<Arc<Lease>> {
        let mut shard = self.shard(id).write().unwrap_or_else(PoisonError::into_inner);
        let found = shard.find_entry(hash(id), |l| l.id == id).ok()?;
        over(found.get()).then(|| found.remove().0)
    }

    /// Calls `see` for each lease, shard by shard, so that no look-up waits for all shards.
    pub(super) fn each(&self, mut see: impl FnMut(&Arc<Lease>)) {
        for shard in &self.0 {
            shard.read().unwrap_or_else(PoisonError::into_inner).iter().for_each(&mut see);
        }
    }
}

/// The leases of one group. They have the same member, half and resources.
#[derive(Debug)]
struct Group {
    /// The facts of the group's first lease. Leases with equal facts share them.
    facts: Arc<Facts>,
    leases: HashTable<Arc<Lease>>,
    /// The Seq of the newest lowering when ended leases were last collected.
    collected_at: Seq,
}

impl Group {
    /// Whether the leases of the group stand behind a name. All of them stand behind the same names.
    fn is_behind(&self, name: &FenceName) -> bool {
        self.leases.iter().next().is_some_and(|l| l.stand.is_behind(name))
    }
}

#[derive(Debug, Default)]
struct JobLeases {
    groups: HashMap<usize, Group>,
    count: usize,
}

/// Leases by job and group.
#[derive(Debug)]
pub(super) struct ByJob(Box<[Mutex<HashMap<JobId, JobLeases>>]>);

impl Default for ByJob {
    fn default() -> Self {
        ByJob((0..JOB_SHARDS).map(|_| Mutex::new(HashMap::new())).collect())
    }
}

impl ByJob {
    fn shard(&self, job: JobId) -> MutexGuard<'_, HashMap<JobId, JobLeases>> {
        #[expect(clippy::indexing_slicing, reason = "a remainder of the length, which is never 0")]
        self.0[shard(job.0, self.0.len())].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a slot in a job's quota for a new lease. Returns false if `max` slots are taken.
    pub(super) fn reserve(&self, job: JobId, max: usize) -> bool {
        let mut shard = self.shard(job);
        match shard.get_mut(&job) {
            Some(j) if j.count >= max => false,
            Some(j) => {
                j.count = j.count.saturating_add(1);
                true
            }
            None if max == 0 => false,
            None => {
                shard.insert(job, JobLeases { count: 1, ..JobLeases::default() });
                true
            }
        }
    }

    /// Creates the lease for a slot that was reserved.
    pub(super) fn create(&self, stand: Stand, mut terms: Terms) -> Arc<Lease> {
        let mut shard = self.shard(terms.facts.job);
        let job = shard.entry(terms.facts.job).or_default();
        // If two leases stand behind the same names, their place is the same. So the place is the key of their group.
        let place = stand.place();
        if !job.groups.contains_key(&place)
            && let Some(facts) = Arc::get_mut(&mut terms.facts)
            && let Some(others) = job.groups.values().next()
        {
            facts.share(&others.facts);
        }
        let group = job.groups.entry(place).or_insert_with(|| Group {
            facts: terms.facts.clone(),
            leases: HashTable::new(),
            collected_at: stand.at(),
        });
        if *group.facts == *terms.facts {
            terms.facts = group.facts.clone();
        }
        let lease = Arc::new(Lease::new(stand, terms));
        group.leases.insert_unique(hash(lease.id), lease.clone(), hash_of);
        lease
    }

    /// Removes leases of one job and group, and frees their slots in the job's quota.
    pub(super) fn remove(&self, leases: &[Arc<Lease>]) {
        let Some(first) = leases.first() else { return };
        let (id, place) = (first.facts.job, first.stand.place());
        let mut shard = self.shard(id);
        let Some(job) = shard.get_mut(&id) else { return };
        if let Some(group) = job.groups.get_mut(&place) {
            for lease in leases {
                if let Ok(found) = group.leases.find_entry(hash(lease.id), |l| Arc::ptr_eq(l, lease)) {
                    found.remove();
                }
            }
            if group.leases.is_empty() {
                job.groups.remove(&place);
            }
        }
        job.count = job.count.saturating_sub(leases.len());
        if job.count == 0 {
            shard.remove(&id);
        }
    }

    pub(super) fn count(&self, job: JobId) -> usize {
        self.shard(job).get(&job).map_or(0, |j| j.count)
    }

    /// Calls `see` for the leases of one job that stand behind a name.
    pub(super) fn each_of_job(&self, job: JobId, name: &FenceName, see: impl FnMut(&Arc<Lease>)) {
        let shard = self.shard(job);
        let Some(job) = shard.get(&job) else { return };
        job.groups.values().filter(|g| g.is_behind(name)).flat_map(|g| &g.leases).for_each(see);
    }

    /// Calls `see` for the leases that stand behind a name, shard by shard. It checks groups, because there are far
    /// fewer groups than leases.
    pub(super) fn each_behind(&self, name: &FenceName, mut see: impl FnMut(&Arc<Lease>)) {
        for shard in &self.0 {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            let groups = shard.values().flat_map(|j| j.groups.values());
            groups.filter(|g| g.is_behind(name)).flat_map(|g| &g.leases).for_each(&mut see);
        }
    }

    /// Collects the leases that a lowering ended since the last call, if their facts pass. A group without a new
    /// lowering costs only a few loads.
    pub(super) fn collect_dead(&self, pass: impl Fn(&Facts) -> bool) -> Vec<Arc<Lease>> {
        let mut out = Vec::new();
        for shard in &self.0 {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            for group in shard.values_mut().flat_map(|j| j.groups.values_mut()) {
                if !pass(&group.facts) {
                    continue;
                }
                let Some(last) = group.leases.iter().next().map(|l| l.stand.last_lowering()) else {
                    continue;
                };
                if last > group.collected_at {
                    group.collected_at = last;
                    out.extend(group.leases.iter().filter(|l| !l.stand.is_up()).cloned());
                }
            }
        }
        out
    }

    /// Returns the number of jobs, and the number of groups in all jobs.
    #[cfg(test)]
    pub(super) fn sizes(&self) -> (usize, usize) {
        let mut sizes = (0, 0);
        for shard in &self.0 {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            sizes.0 += shard.len();
            sizes.1 += shard.values().map(|j| j.groups.len()).sum::<usize>();
        }
        sizes
    }
}

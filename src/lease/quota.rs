//! The quotas of leases: for a job, for a holder, for a tenant, and for all together.

use std::{
    collections::{HashMap, hash_map::Entry},
    hash::Hash,
    sync::PoisonError,
};

use crate::{limits, sync::Mutex};

/// The quota of leases that is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuotaExceeded {
    /// The quota of the lease's job.
    #[error("the job holds {0} leases, which is the limit for one job")]
    Job(usize),
    /// The quota of the lease's holder.
    #[error("the identity holds {0} leases, which is the limit for one identity")]
    Holder(usize),
    /// The quota of the tenant of the lease's job.
    #[error("the tenant's jobs hold {0} leases, which is the limit for one tenant")]
    Tenant(usize),
    /// The quota of all leases.
    #[error("the daemon holds {0} leases, which is its limit")]
    Daemon(usize),
}

/// The highest numbers of leases. If one is reached, no further lease is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quotas {
    /// For one job.
    pub job: usize,
    /// For one SPIFFE ID.
    pub holder: usize,
    /// For all jobs of one tenant.
    pub tenant: usize,
    /// For all leases together.
    pub daemon: usize,
}

impl Default for Quotas {
    fn default() -> Self {
        Quotas {
            job: limits::LEASES_PER_JOB_MAX,
            holder: limits::LEASES_PER_HOLDER_MAX,
            tenant: limits::LEASES_PER_TENANT_MAX,
            daemon: limits::LEASES_MAX,
        }
    }
}

/// The number of slots that each name has taken. A name without slots has no entry.
#[derive(Debug)]
pub(super) struct SlotCount<K>(Mutex<HashMap<K, usize>>);

impl<K> Default for SlotCount<K> {
    fn default() -> Self {
        SlotCount(Mutex::new(HashMap::new()))
    }
}

impl<K: Clone + Eq + Hash> SlotCount<K> {
    /// Takes one slot. Returns false if `max` slots are taken.
    pub(super) fn take(&self, name: &K, max: usize) -> bool {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match taken.get_mut(name) {
            Some(n) if *n >= max => false,
            Some(n) => {
                *n = n.saturating_add(1);
                true
            }
            None if max == 0 => false,
            None => {
                taken.insert(name.clone(), 1);
                true
            }
        }
    }

    /// Frees slots of a name.
    pub(super) fn give_back(&self, name: &K, slots: usize) {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut e) = taken.entry(name.clone()) {
            *e.get_mut() = e.get().saturating_sub(slots);
            if *e.get() == 0 {
                e.remove();
            }
        }
    }

    pub(super) fn of(&self, name: &K) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(name).copied().unwrap_or(0)
    }

    /// Returns the number of names that have a slot.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

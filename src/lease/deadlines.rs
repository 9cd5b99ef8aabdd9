//! The times at which leases must be checked. An entry is only the time of a check and does not end the lease, so a
//! renewal does not change the entry.

use std::{collections::BTreeMap, sync::PoisonError};

use crate::{
    clock::LeaseTime,
    name::LeaseId,
    sync::{Mutex, MutexGuard},
};

/// Deadlines in one slot of 256 ms are checked together.
const SLOT_BITS: u32 = 8;

#[derive(Debug, Default)]
pub(super) struct Deadlines(Mutex<BTreeMap<u64, Vec<LeaseId>>>);

impl Deadlines {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Vec<LeaseId>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn arm(&self, id: LeaseId, deadline: LeaseTime) {
        self.lock().entry(deadline.0 >> SLOT_BITS).or_default().push(id);
    }

    /// Returns at most `max` leases whose slot has passed.
    pub(super) fn due(&self, now: LeaseTime, max: usize) -> Vec<LeaseId> {
        let mut slots = self.lock();
        let mut out = Vec::new();
        while out.len() < max {
            let Some(mut first) = slots.first_entry() else { break };
            if *first.key() >= now.0 >> SLOT_BITS {
                break;
            }
            let ids = first.get_mut();
            let keep = ids.len().saturating_sub(max.saturating_sub(out.len()));
            out.extend(ids.drain(keep..));
            if ids.is_empty() {
                first.remove();
            }
        }
        out
    }

    /// Returns the end of the next slot.
    pub(super) fn next(&self) -> Option<LeaseTime> {
        self.lock().first_key_value().map(|(slot, _)| LeaseTime(slot.saturating_add(1) << SLOT_BITS))
    }

    /// Returns the number of leases that must be checked.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.lock().values().map(Vec::len).sum()
    }
}

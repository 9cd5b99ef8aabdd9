//! Faulty variants of operations. Each leaves out one rule, so that a loom or shuttle test can show that the rule is
//! needed. Not in builds that ship.

use std::sync::{Arc, atomic::Ordering};

use super::{EXPIRED, Lease, LeaseRefused, Table, Terms, Unborn};
use crate::{clock::LeaseTime, name::LeaseId, policy::Grant};

impl Lease {
    /// Renews with a load and a store instead of a compare-and-exchange.
    pub fn renew_by_plain_store(
        &self,
        generation: u32,
        now: LeaseTime,
        deadline: LeaseTime,
    ) -> Result<(), LeaseRefused> {
        self.check(now)?;
        self.cell.0.store((u64::from(generation) << 42) | deadline.0, Ordering::Release);
        Ok(())
    }
}

impl Table {
    /// Inserts without a second check of the fences.
    pub fn insert_without_looking(&self, grant: Grant, terms: Terms) -> Result<Arc<Lease>, Unborn> {
        self.put(grant, terms)
    }

    /// Ends a lease whose deadline had passed, without checking whether it was renewed since then.
    pub fn expire_without_looking(&self, id: LeaseId, now: LeaseTime) -> Option<Arc<Lease>> {
        self.remove(id, now, EXPIRED)
    }
}

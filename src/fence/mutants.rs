//! Faulty variants of operations of the registry. Each leaves out one rule, so that a loom or shuttle test can show that the
//! rule is needed. Not in builds that ship.

use std::sync::atomic::Ordering;

use super::{Lowered, Lowering, Registry, Seq};
use crate::{clock::LeaseTime, name::FenceName};

impl Registry {
    /// Drops fences without a lease behind them, even if a stand holds them.
    pub fn prune_by_lease_count(&self) {
        let mut inner = self.lock();
        inner.by_name.retain(|fence| fence.behind() > 0);
        inner.sets.clear();
    }

    /// Lowers a fence even if no stand was taken since the last lowering.
    pub fn lower_in_any_case(&self, name: &FenceName, now: LeaseTime) -> Lowered {
        drop(self.stand([name.clone()]));
        self.lower(name, now)
    }

    /// Takes a Seq and stores it later. A stand that is taken in between is missed.
    pub fn lower_in_two_steps(&self, name: &FenceName) -> Lowered {
        let (seq, fence) = {
            let mut inner = self.lock();
            inner.seq = Seq(inner.seq.0.saturating_add(1));
            (inner.seq, inner.fence(name))
        };
        fence.lowered.store(seq.0, Ordering::Release);
        let _ = self.feed.send(Lowering::new(seq, name.clone()));
        Lowered { seq, behind: fence.behind(), first: true }
    }

    /// Undoes a lowering, as an unlock might.
    pub fn raise(&self, name: &FenceName) {
        self.lock().fence(name).lowered.store(0, Ordering::Release);
    }
}

//! What the rules forbid, each with one rule left out, so that the models show what the rule is for. In no build that ships.

use std::sync::atomic::Ordering;

use super::{Lowered, Lowering, Registry, Seq};
use crate::{clock::LeaseTime, name::FenceName};

impl Registry {
    /// Forgets what has no lease behind it, whoever stands there.
    pub fn prune_by_lease_count(&self) {
        let mut inner = self.lock();
        inner.by_name.retain(|fence| fence.behind() > 0);
        inner.sets.clear();
    }

    /// Lowers whether anybody stood there since or not.
    pub fn lower_in_any_case(&self, name: &FenceName, now: LeaseTime) -> Lowered {
        drop(self.stand([name.clone()]));
        self.lower(name, now)
    }

    /// Takes a Seq, and stores it later: what stands between the two is behind both.
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

    /// Takes a lowering back, as an unlocking might.
    pub fn raise(&self, name: &FenceName) {
        self.lock().fence(name).lowered.store(0, Ordering::Release);
    }
}

//! The short memory of leases that ended: for a bounded time, and a bounded number of them.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, PoisonError},
};

use super::{Facts, Lease};
use crate::{
    clock::LeaseTime,
    fence::Seq,
    limits,
    name::LeaseId,
    sync::{Mutex, MutexGuard},
};

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

impl Lease {
    /// How it is remembered once it ended.
    pub fn as_ended(&self, at: LeaseTime, cause: &str) -> Ended {
        Ended {
            id: self.id,
            facts: self.facts.clone(),
            issued: self.issued,
            deadline: self.deadline(),
            latest: self.latest,
            generation: self.generation(),
            stood_at: self.stand().at(),
            at,
            cause: cause.to_owned(),
        }
    }
}

/// The leases that ended last, by id and in the order of their ends.
#[derive(Debug, Default)]
pub(super) struct Memory(Mutex<Remembered>);

#[derive(Debug, Default)]
struct Remembered {
    by_id: HashMap<LeaseId, Ended>,
    order: VecDeque<(LeaseTime, LeaseId)>,
}

impl Memory {
    fn lock(&self) -> MutexGuard<'_, Remembered> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers one more, and forgets the oldest where there are too many. A lease that is there already keeps its place
    /// and gets the newer cause.
    pub(super) fn add(&self, ended: Ended) {
        let mut memory = self.lock();
        let (at, id) = (ended.at, ended.id);
        if memory.by_id.insert(id, ended).is_some() {
            return;
        }
        memory.order.push_back((at, id));
        if memory.order.len() > limits::LEASES_ENDED_MAX
            && let Some((_, oldest)) = memory.order.pop_front()
        {
            memory.by_id.remove(&oldest);
        }
    }

    /// Forgets those that ended longer ago than they are kept.
    pub(super) fn prune(&self, now: LeaseTime) {
        let mut memory = self.lock();
        while let Some((at, id)) = memory.order.front().copied() {
            if now.since(at) <= limits::LEASES_ENDED_KEPT {
                break;
            }
            memory.order.pop_front();
            memory.by_id.remove(&id);
        }
    }

    pub(super) fn find(&self, id: LeaseId) -> Option<Ended> {
        self.lock().by_id.get(&id).cloned()
    }

    /// Newest first.
    pub(super) fn each(&self, see: impl FnMut(&Ended)) {
        let memory = self.lock();
        memory.order.iter().rev().filter_map(|(_, id)| memory.by_id.get(id)).for_each(see);
    }
}

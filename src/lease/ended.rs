//! A bounded list of ended leases, which are kept for a bounded time.

use std::{
    collections::VecDeque,
    sync::{Arc, PoisonError},
};

use hashbrown::HashTable;

use super::{Facts, Lease, index::hash};
use crate::{
    clock::LeaseTime,
    fence::Seq,
    limits,
    name::LeaseId,
    sync::{Mutex, MutexGuard},
};

/// A lease that ended.
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
    /// The cause in one line. Leases that ended for the same cause share the text.
    pub cause: Arc<str>,
}

impl Lease {
    /// Returns the facts about the lease that stay in memory after its end.
    pub fn as_ended(&self, at: LeaseTime, cause: impl Into<Arc<str>>) -> Ended {
        Ended {
            id: self.id,
            facts: self.facts.clone(),
            issued: self.issued,
            deadline: self.deadline(),
            latest: self.latest,
            generation: self.generation(),
            stood_at: self.stand().at(),
            at,
            cause: cause.into(),
        }
    }
}

/// The leases that ended last, by id and in the order of their ends.
#[derive(Debug, Default)]
pub(super) struct Memory(Mutex<Remembered>);

#[derive(Debug, Default)]
struct Remembered {
    /// The number of each lease, counted from 0 for the first that was ever added.
    by_id: HashTable<(LeaseId, usize)>,
    order: VecDeque<Ended>,
    /// The number of dropped leases. It is also the number of the first lease in `order`.
    forgotten: usize,
}

impl Remembered {
    fn place(&self, id: LeaseId) -> Option<usize> {
        let (_, number) = self.by_id.find(hash(id), |(other, _)| *other == id)?;
        number.checked_sub(self.forgotten)
    }

    fn add(&mut self, ended: Ended) {
        let place = self.place(ended.id);
        if let Some(there) = place.and_then(|place| self.order.get_mut(place)) {
            *there = ended;
            return;
        }
        let (id, number) = (ended.id, self.forgotten.saturating_add(self.order.len()));
        self.by_id.insert_unique(hash(id), (id, number), |(id, _)| hash(*id));
        self.order.push_back(ended);
        if self.order.len() > limits::LEASES_ENDED_MAX {
            self.forget_first();
        }
    }

    fn forget_first(&mut self) {
        let Some(oldest) = self.order.pop_front() else { return };
        if let Ok(found) = self.by_id.find_entry(hash(oldest.id), |(id, _)| *id == oldest.id) {
            found.remove();
        }
        self.forgotten = self.forgotten.saturating_add(1);
    }
}

impl Memory {
    fn lock(&self) -> MutexGuard<'_, Remembered> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds leases, and drops the oldest if there are too many. A lease that is already present keeps its position and
    /// gets the newer cause.
    pub(super) fn add(&self, ended: impl IntoIterator<Item = Ended>) {
        let mut memory = self.lock();
        ended.into_iter().for_each(|e| memory.add(e));
    }

    /// Drops the leases that were kept for long enough.
    pub(super) fn prune(&self, now: LeaseTime) {
        let mut memory = self.lock();
        while memory.order.front().is_some_and(|e| now.since(e.at) > limits::LEASES_ENDED_KEPT) {
            memory.forget_first();
        }
    }

    pub(super) fn find(&self, id: LeaseId) -> Option<Ended> {
        let memory = self.lock();
        memory.order.get(memory.place(id)?).cloned()
    }

    /// Calls `see` for each ended lease, newest first.
    pub(super) fn each(&self, see: impl FnMut(&Ended)) {
        self.lock().order.iter().rev().for_each(see);
    }
}

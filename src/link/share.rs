//! Fair shares: a limit on how much of a resource each identity uses at once.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use crate::name::SpiffeId;

/// Limits how much of one resource (connections, requests, bytes) each SPIFFE ID uses at once. A resource can also be shared by
/// another key, such as the tenant. Then each rule for an identity below is a rule for that key.
///
/// An identity may use at most `most` in total. Each time it takes an amount, its total may also not exceed what is still free
/// before it takes the amount. So a single identity gets at most half of all. While anything is free, another identity can get
/// some of it.
///
/// An identity that uses nothing has no entry. The mutex is held for one look-up, without a clock or an await.
#[derive(Debug)]
pub struct Shares<K: Eq + Hash + Clone = SpiffeId> {
    all: usize,
    most: usize,
    taken: Mutex<Taken<K>>,
}

#[derive(Debug)]
struct Taken<K> {
    total: usize,
    each: HashMap<K, usize>,
}

/// Why an amount cannot be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// This identity has reached its limit. Other identities can still take an amount.
    Identity { has: usize },
    /// All identities together have reached the limit.
    All { most: usize },
}

impl<K: Eq + Hash + Clone> Shares<K> {
    /// Makes the shares of a resource. `all` is the limit for all identities together, and `most` is the limit for one
    /// identity.
    pub fn new(all: usize, most: usize) -> Arc<Self> {
        let taken = Mutex::new(Taken { total: 0, each: HashMap::new() });
        Arc::new(Shares { all, most, taken })
    }

    /// Takes an amount for this identity, until the share is dropped.
    pub fn take(self: &Arc<Self>, id: &K, amount: usize) -> Result<Share<K>, Full> {
        self.add(id, amount)?;
        Ok(Share { of: self.clone(), id: id.clone(), amount: AtomicUsize::new(amount) })
    }

    fn add(&self, id: &K, amount: usize) -> Result<(), Full> {
        let mut taken = self.lock();
        let has = taken.each.get(id).copied().unwrap_or(0);
        let left = self.all.saturating_sub(taken.total);
        if amount > left {
            return Err(Full::All { most: self.all });
        }
        let wanted = has.saturating_add(amount);
        if wanted > self.most.min(left) {
            return Err(Full::Identity { has });
        }
        taken.set(id, wanted);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Taken<K>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Eq + Hash + Clone> Taken<K> {
    fn set(&mut self, id: &K, wanted: usize) {
        let has = self.each.get(id).copied().unwrap_or(0);
        self.total = self.total.saturating_sub(has).saturating_add(wanted);
        if wanted == 0 {
            self.each.remove(id);
        } else if let Some(entry) = self.each.get_mut(id) {
            *entry = wanted;
        } else {
            self.each.insert(id.clone(), wanted);
        }
    }
}

/// An amount that an identity has taken. Dropping the value returns the amount.
#[derive(Debug)]
pub struct Share<K: Eq + Hash + Clone = SpiffeId> {
    of: Arc<Shares<K>>,
    id: K,
    amount: AtomicUsize,
}

impl<K: Eq + Hash + Clone> Share<K> {
    /// Adds to the amount.
    #[cfg(feature = "server")]
    pub fn grow(&self, amount: usize) -> Result<(), Full> {
        self.of.add(&self.id, amount)?;
        self.amount.fetch_add(amount, Ordering::Relaxed);
        Ok(())
    }

    /// Adds to the amount even past the limit. Further requests are refused until enough is returned.
    #[cfg(feature = "server")]
    pub fn grow_past(&self, amount: usize) {
        let mut taken = self.of.lock();
        let has = taken.each.get(&self.id).copied().unwrap_or(0);
        taken.set(&self.id, has.saturating_add(amount));
        self.amount.fetch_add(amount, Ordering::Relaxed);
    }

    /// Returns a part of the amount.
    #[cfg(feature = "server")]
    pub fn shrink(&self, amount: usize) {
        let less = |held: usize| Some(held.saturating_sub(amount));
        let held = self.amount.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).unwrap_or(0);
        self.give_back(amount.min(held));
    }

    fn give_back(&self, amount: usize) {
        if amount == 0 {
            return;
        }
        let mut taken = self.of.lock();
        let has = taken.each.get(&self.id).copied().unwrap_or(0);
        taken.set(&self.id, has.saturating_sub(amount));
    }
}

impl<K: Eq + Hash + Clone> Drop for Share<K> {
    fn drop(&mut self) {
        self.give_back(self.amount.load(Ordering::Relaxed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> SpiffeId {
        format!("spiffe://td.example/{name}").parse().unwrap()
    }

    #[test]
    fn an_identity_has_its_share_and_others_have_theirs() {
        let shares = Shares::new(100, 2);
        let (a, b) = (id("a"), id("b"));
        let first = shares.take(&a, 1).unwrap();
        let second = shares.take(&a, 1).unwrap();
        assert_eq!(shares.take(&a, 1).err(), Some(Full::Identity { has: 2 }));
        assert!(shares.take(&b, 1).is_ok());
        drop(first);
        let third = shares.take(&a, 1).unwrap();
        assert!(shares.take(&a, 1).is_err());
        drop((second, third));
        assert!(shares.lock().each.is_empty(), "an identity without an amount has no entry");
        assert_eq!(shares.lock().total, 0);
    }

    #[test]
    fn there_is_always_room_for_one_more_identity() {
        let shares = Shares::new(1_000, 1_000);
        let mut held = Vec::new();
        let fill = |name: &str, held: &mut Vec<Share>| {
            let (id, before) = (id(name), held.len());
            while let Ok(share) = shares.take(&id, 1) {
                held.push(share);
            }
            held.len() - before
        };
        assert_eq!(fill("first", &mut held), 500);
        assert_eq!(fill("second", &mut held), 250);
        for n in 0..100 {
            let got = fill(&format!("other-{n}"), &mut held);
            assert!(got > 0 || shares.lock().total == 1_000, "{n} got nothing of what is left");
        }
        assert!(shares.lock().total <= 1_000);
    }

    #[test]
    fn a_share_grows_and_shrinks_within_its_bounds() {
        let shares = Shares::new(100, 40);
        let share = shares.take(&id("a"), 10).unwrap();
        assert_eq!(share.grow(31), Err(Full::Identity { has: 10 }));
        assert_eq!(share.grow(91), Err(Full::All { most: 100 }));
        share.grow(30).unwrap();
        share.grow_past(70);
        assert!(shares.take(&id("b"), 1).is_err(), "an amount past the limit counts");
        share.shrink(200);
        assert!(shares.lock().each.is_empty(), "no more is returned than was taken");
        share.grow(40).unwrap();
        drop(share);
        assert_eq!(shares.lock().total, 0);
    }
}

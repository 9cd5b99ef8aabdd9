//! What each identity has under way at once: no more than its share.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::name::SpiffeId;

/// Counts what each SPIFFE ID has under way of one thing, connections or requests, and lets it have so many.
///
/// Keeps nothing of who has nothing under way. A mutex that is held for a look-up; no clock, no await here.
#[derive(Debug)]
pub struct Shares {
    most: usize,
    taken: Mutex<HashMap<SpiffeId, usize>>,
}

impl Shares {
    /// `most` is what one identity may have at once.
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Shares { most, taken: Mutex::new(HashMap::new()) })
    }

    /// What one identity may have at once.
    pub fn most(&self) -> usize {
        self.most
    }

    /// One more for this identity, until it is dropped; `None` where it has its share already.
    pub fn take(self: &Arc<Self>, id: &SpiffeId) -> Option<Share> {
        let mut taken = self.lock();
        let count = taken.get(id).copied().unwrap_or(0);
        if count >= self.most {
            return None;
        }
        taken.insert(id.clone(), count.saturating_add(1));
        drop(taken);
        Some(Share { of: self.clone(), id: id.clone() })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SpiffeId, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One of an identity's share. Dropping it gives it back.
#[derive(Debug)]
pub struct Share {
    of: Arc<Shares>,
    id: SpiffeId,
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut taken = self.of.lock();
        match taken.get_mut(&self.id) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                taken.remove(&self.id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_has_its_share_and_no_more_and_others_have_theirs() {
        let shares = Shares::new(2);
        let (a, b): (SpiffeId, SpiffeId) =
            ("spiffe://a.example/x".parse().unwrap(), "spiffe://b.example/x".parse().unwrap());
        let first = shares.take(&a).unwrap();
        let second = shares.take(&a).unwrap();
        assert!(shares.take(&a).is_none());
        assert!(shares.take(&b).is_some());
        drop(first);
        let third = shares.take(&a).unwrap();
        assert!(shares.take(&a).is_none());
        drop((second, third));
        assert!(shares.lock().is_empty(), "nothing is kept of who has nothing");
    }
}

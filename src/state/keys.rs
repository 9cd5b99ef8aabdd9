//! Idempotency keys: which job each of them made, by caller.

use std::collections::HashMap;

use super::{Key, rebuild::KeyOf};
use crate::{clock::LeaseTime, limits, name::SpiffeId};

/// What is known of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeyUse {
    /// The job's record is being written.
    Pending,
    Made(Key),
}

/// As many keys as are remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TooManyKeys {
    #[error("you used {0} idempotency keys within a day, as many as are remembered of one caller")]
    OfCaller(usize),
    #[error("all callers used {0} idempotency keys within a day, as many as are remembered")]
    OfAll(usize),
}

/// The keys that count. Past a bound a new one is refused, and none is given up for it: a key that was forgotten while its
/// caller may still send it again would make a second job of one request.
#[derive(Debug, Default)]
pub(super) struct Keys {
    by_caller: HashMap<SpiffeId, HashMap<String, KeyUse>>,
    count: usize,
}

impl Keys {
    /// From what the ledger told: all of it, whatever the bounds say.
    pub(super) fn put(&mut self, (caller, key): KeyOf, of: Key) {
        let before = self.by_caller.entry(caller).or_default().insert(key, KeyUse::Made(of));
        self.count = self.count.saturating_add(usize::from(before.is_none()));
    }

    pub(super) fn find(&self, caller: &SpiffeId, key: &str) -> Option<KeyUse> {
        self.by_caller.get(caller)?.get(key).copied()
    }

    /// Holds a new key while the record of its job is being written.
    pub(super) fn hold(&mut self, caller: &SpiffeId, key: &str) -> Result<(), TooManyKeys> {
        let of_caller = self.by_caller.get(caller).map_or(0, HashMap::len);
        if of_caller >= limits::IDEMPOTENCY_KEYS_PER_CALLER_MAX {
            return Err(TooManyKeys::OfCaller(of_caller));
        }
        if self.count >= limits::IDEMPOTENCY_KEYS_MAX {
            return Err(TooManyKeys::OfAll(self.count));
        }
        let keys = self.by_caller.entry(caller.clone()).or_default();
        if keys.insert(key.to_owned(), KeyUse::Pending).is_none() {
            self.count = self.count.saturating_add(1);
        }
        Ok(())
    }

    /// Gives a held key back: its job was not made.
    pub(super) fn release(&mut self, caller: &SpiffeId, key: &str) {
        let Some(keys) = self.by_caller.get_mut(caller) else { return };
        if keys.remove(key).is_some() {
            self.count = self.count.saturating_sub(1);
        }
        if keys.is_empty() {
            self.by_caller.remove(caller);
        }
    }

    /// Forgets those whose time is over.
    pub(super) fn prune(&mut self, now: LeaseTime) {
        let counts = |of: &KeyUse| match of {
            KeyUse::Pending => true,
            KeyUse::Made(key) => key.counts(now),
        };
        self.by_caller.retain(|_, keys| {
            keys.retain(|_, of| counts(of));
            !keys.is_empty()
        });
        self.count = self.by_caller.values().map(HashMap::len).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::{Digest, JobId};

    const AT: LeaseTime = LeaseTime(1_000);

    fn caller(n: usize) -> SpiffeId {
        format!("spiffe://td/launcher/{n}").parse().unwrap()
    }

    fn made(job: u128) -> Key {
        Key { job: JobId(job), spec: Digest::ZERO, at: AT }
    }

    #[test]
    fn past_the_keys_of_one_caller_it_alone_is_refused_until_its_oldest_is_a_day_old() {
        let mut keys = Keys::default();
        for n in 0..limits::IDEMPOTENCY_KEYS_PER_CALLER_MAX {
            keys.put((caller(1), format!("key {n}")), made(n as u128));
        }
        let full = TooManyKeys::OfCaller(limits::IDEMPOTENCY_KEYS_PER_CALLER_MAX);
        assert_eq!(keys.hold(&caller(1), "one more"), Err(full));
        assert_eq!(keys.find(&caller(1), "one more"), None);
        assert_eq!(keys.find(&caller(1), "key 0"), Some(KeyUse::Made(made(0))), "none was given up for it");
        assert_eq!(keys.hold(&caller(2), "one more"), Ok(()));
        // A place that is given back is free, and a caller without a key takes no memory.
        keys.release(&caller(1), "key 0");
        assert_eq!(keys.hold(&caller(1), "one more"), Ok(()));
        keys.release(&caller(2), "one more");
        assert_eq!((keys.by_caller.len(), keys.count), (1, limits::IDEMPOTENCY_KEYS_PER_CALLER_MAX));
        let day = AT.plus(limits::IDEMPOTENCY);
        keys.prune(LeaseTime(day.0 - 1));
        assert_eq!(keys.count, limits::IDEMPOTENCY_KEYS_PER_CALLER_MAX, "a day is not over yet");
        keys.prune(day);
        assert_eq!((keys.count, keys.find(&caller(1), "one more")), (1, Some(KeyUse::Pending)));
        assert_eq!(keys.hold(&caller(1), "and one"), Ok(()));
    }

    #[test]
    fn past_the_keys_of_all_everybody_is_refused_and_a_place_that_is_given_back_is_free() {
        let mut keys = Keys::default();
        let each = limits::IDEMPOTENCY_KEYS_PER_CALLER_MAX - 1;
        for n in 0..limits::IDEMPOTENCY_KEYS_MAX {
            keys.put((caller(n / each), n.to_string()), made(n as u128));
        }
        keys.put((caller(0), "0".to_owned()), made(0));
        let full = TooManyKeys::OfAll(limits::IDEMPOTENCY_KEYS_MAX);
        assert_eq!(keys.hold(&caller(999_999), "new"), Err(full), "the same key twice counts once");
        keys.release(&caller(0), "never used");
        assert_eq!(keys.hold(&caller(999_999), "new"), Err(full));
        keys.release(&caller(0), "0");
        assert_eq!(keys.hold(&caller(999_999), "new"), Ok(()));
        assert_eq!(keys.hold(&caller(999_999), "newer"), Err(full));
    }
}

//! A cache of decisions. An engine never changes, so equal questions have equal answers. A launcher may ask the same
//! question a thousand times.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use dashmap::DashMap;

use super::{Rule, outcome::Outcome};
use crate::{limits, name::Digest};

/// Everything on which a decision depends, as bytes.
#[derive(PartialEq, Eq)]
pub(super) struct DecisionKey(Vec<u8>);

impl DecisionKey {
    pub(super) fn new(capacity: usize) -> Self {
        DecisionKey(Vec::with_capacity(capacity))
    }

    /// Adds a part of the question. The length is added too, so that two adjacent parts cannot look like one part.
    pub(super) fn add(&mut self, part: &str) {
        self.0.extend_from_slice(&part.len().to_le_bytes());
        self.0.extend_from_slice(part.as_bytes());
    }

    pub(super) fn add_number(&mut self, part: u64) {
        self.0.extend_from_slice(&part.to_le_bytes());
    }

    /// Returns the number of bytes of all parts.
    pub(super) fn bytes(&self) -> usize {
        self.0.len()
    }

    /// Returns the digest by which caches know the question. So a cached question has 32 bytes, however long its texts are.
    pub(super) fn digest(&self) -> Digest {
        Digest::of(&self.0)
    }
}

/// Answers by the digest of their question. If the cache is full, in number or in bytes, all answers are dropped.
pub(super) struct DecisionCache<T> {
    kept: DashMap<Digest, Arc<T>>,
    room: usize,
    /// About how many answers there are. To count them, the map would lock each of its parts.
    answers: AtomicUsize,
    /// About how many bytes the answers have.
    bytes: AtomicUsize,
}

impl<T> DecisionCache<T> {
    pub(super) fn with_room(room: usize) -> Self {
        DecisionCache { kept: DashMap::new(), room, answers: AtomicUsize::new(0), bytes: AtomicUsize::new(0) }
    }

    pub(super) fn find(&self, question: &Digest) -> Option<Arc<T>> {
        self.kept.get(question).map(|known| known.clone())
    }

    /// Keeps an answer of about this many bytes.
    pub(super) fn keep(&self, question: Digest, answer: Arc<T>, bytes: usize) {
        let bytes = bytes.saturating_add(size_of::<Digest>().saturating_add(size_of::<T>()));
        let before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let answers = self.answers.fetch_add(1, Ordering::Relaxed);
        if answers >= self.room || before.saturating_add(bytes) > limits::POLICY_CACHE_BYTES_MAX {
            self.kept.clear();
            self.answers.store(1, Ordering::Relaxed);
            self.bytes.store(bytes, Ordering::Relaxed);
        }
        self.kept.insert(question, answer);
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.kept.len()
    }
}

impl DecisionCache<Outcome> {
    /// Returns the cached answer, or computes it. Errors are not cached.
    pub(super) fn answer(&self, question: Digest, work: impl FnOnce() -> Outcome) -> Arc<Outcome> {
        if let Some(known) = self.find(&question) {
            return known;
        }
        let answer = Arc::new(work());
        if !matches!(*answer, Outcome::Error(_)) {
            let bytes = answer.rules().saturating_mul(size_of::<Arc<Rule>>());
            self.keep(question, answer.clone(), bytes);
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_keys_are_equal_only_if_every_part_is() {
        let ask = |parts: &[&str]| {
            let mut q = DecisionKey::new(0);
            parts.iter().for_each(|p| q.add(p));
            q.0
        };
        assert_ne!(ask(&["ab", "c"]), ask(&["a", "bc"]));
        assert_ne!(ask(&["1:a"]), ask(&["", "a"]));
        assert_ne!(ask(&["", "a"]), ask(&["a", ""]));
    }

    #[test]
    fn the_cache_is_bounded_and_keeps_no_errors() {
        let memo = DecisionCache::with_room(100);
        for i in 0..=100 {
            let mut q = DecisionKey::new(8);
            q.add_number(i);
            memo.answer(q.digest(), || Outcome::Nothing);
        }
        assert_eq!(memo.len(), 1);
        let mut q = DecisionKey::new(8);
        q.add("bad");
        memo.answer(q.digest(), || Outcome::Error(vec![]));
        assert_eq!(memo.len(), 1);
        let large = limits::POLICY_CACHE_BYTES_MAX / 2;
        for name in ["a", "b", "c"] {
            memo.keep(Digest::of(name.as_bytes()), Arc::new(Outcome::Nothing), large);
        }
        assert_eq!(memo.len(), 1, "two answers of half the room and their keys do not fit");
    }
}

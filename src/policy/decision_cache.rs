//! A cache of decisions. An engine never changes, so equal questions have equal answers. A launcher may ask the same
//! question a thousand times.

use std::sync::Arc;

use dashmap::DashMap;

use super::outcome::Outcome;

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
}

/// Decisions by key. If the cache is full, all decisions are dropped.
pub(super) struct DecisionCache<T> {
    kept: DashMap<Box<[u8]>, Arc<T>>,
    room: usize,
}

impl<T> DecisionCache<T> {
    pub(super) fn with_room(room: usize) -> Self {
        DecisionCache { kept: DashMap::new(), room }
    }

    pub(super) fn find(&self, question: &DecisionKey) -> Option<Arc<T>> {
        self.kept.get(question.0.as_slice()).map(|known| known.clone())
    }

    pub(super) fn keep(&self, question: DecisionKey, answer: Arc<T>) {
        if self.kept.len() >= self.room {
            self.kept.clear();
        }
        self.kept.insert(question.0.into_boxed_slice(), answer);
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.kept.len()
    }
}

impl DecisionCache<Outcome> {
    /// Returns the cached answer, or computes it. Errors are not cached.
    pub(super) fn answer(&self, question: DecisionKey, work: impl FnOnce() -> Outcome) -> Arc<Outcome> {
        if let Some(known) = self.find(&question) {
            return known;
        }
        let answer = Arc::new(work());
        if !matches!(*answer, Outcome::Error(_)) {
            self.keep(question, answer.clone());
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
            memo.answer(q, || Outcome::Nothing);
        }
        assert_eq!(memo.len(), 1);
        let mut q = DecisionKey::new(8);
        q.add("bad");
        memo.answer(q, || Outcome::Error(vec![]));
        assert_eq!(memo.len(), 1);
    }
}

//! Decisions that were made before. An engine never changes, so equal questions have equal answers. A launcher may ask one
//! question a thousand times.

use std::{fmt::Write, sync::Arc};

use dashmap::DashMap;

use super::outcome::Outcome;
use crate::limits::DECISIONS_KEPT_MAX;

/// Everything that a decision depends on, in one text.
pub(super) struct DecisionKey(String);

impl DecisionKey {
    pub(super) fn new(capacity: usize) -> Self {
        DecisionKey(String::with_capacity(capacity))
    }

    /// Adds one thing that it depends on. Its length is added too, so that two neighbours cannot be taken for one.
    pub(super) fn add(&mut self, part: &str) {
        // Writing to a String does not fail.
        let _ = write!(self.0, "{}:{part}", part.len());
    }

    pub(super) fn add_number(&mut self, part: u64) {
        let _ = write!(self.0, "{part};");
    }
}

/// Decisions by key. If there are [`DECISIONS_KEPT_MAX`], all are dropped. Errors are not kept.
#[derive(Default)]
pub(super) struct DecisionCache(DashMap<String, Arc<Outcome>>);

impl DecisionCache {
    pub(super) fn answer(&self, question: DecisionKey, work: impl FnOnce() -> Outcome) -> Arc<Outcome> {
        if let Some(known) = self.0.get(&question.0) {
            return known.clone();
        }
        let answer = Arc::new(work());
        if !matches!(*answer, Outcome::Error(_)) {
            if self.0.len() >= DECISIONS_KEPT_MAX {
                self.0.clear();
            }
            self.0.insert(question.0, answer.clone());
        }
        answer
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
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
        let memo = DecisionCache::default();
        for i in 0..=DECISIONS_KEPT_MAX as u64 {
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

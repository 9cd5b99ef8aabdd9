//! Answers that were worked out before. The same question has the same answer for as long as an engine lives, which is
//! why an engine never changes; a launcher asks its question a thousand times.

use std::{fmt::Write, sync::Arc};

use dashmap::DashMap;

use super::outcome::Outcome;
use crate::limits::DECISIONS_KEPT_MAX;

/// Everything that an answer depends on, in one text.
pub(super) struct DecisionKey(String);

impl DecisionKey {
    pub(super) fn new(capacity: usize) -> Self {
        DecisionKey(String::with_capacity(capacity))
    }

    /// Adds one thing that it depends on. Lengths keep two neighbours from running into one.
    pub(super) fn add(&mut self, part: &str) {
        // Writing to a String does not fail.
        let _ = write!(self.0, "{}:{part}", part.len());
    }

    pub(super) fn add_number(&mut self, part: u64) {
        let _ = write!(self.0, "{part};");
    }
}

/// Bounded by [`DECISIONS_KEPT_MAX`]: past it, all are dropped and worked out again. Errors are not kept.
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
    fn two_questions_are_one_only_where_every_part_is_the_same() {
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
    fn no_more_answers_are_kept_than_the_bound_and_no_errors() {
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

//! A cache of contexts. Cedar evaluates each field of a context that it makes, and parses a text for each datetime. That takes
//! longer than the evaluation of the rules, and questions about different resources often have equal contexts.

use cedar_policy::Context;

use super::{
    decision_cache::{DecisionCache, DecisionKey},
    slice::Slices,
};
use crate::{catalog::Catalog, clock::Wall, limits};

/// The contexts of earlier questions.
pub(super) struct ContextCache {
    /// The moments with which rules compare the time: those in the rules, and the ends of retention in the catalog. In order.
    moments: Vec<Wall>,
    kept: DecisionCache<Context>,
}

impl ContextCache {
    pub(super) fn new(slices: &Slices, catalog: &Catalog) -> Self {
        let in_rules = slices.values().flat_map(|slice| slice.reads.time().moments());
        let retention = catalog.resources().filter_map(|resource| resource.dataset()?.retain_until);
        let mut moments: Vec<Wall> = in_rules.chain(retention).collect();
        moments.sort_unstable();
        moments.dedup();
        ContextCache { moments, kept: DecisionCache::with_room(limits::CONTEXTS_KEPT_MAX) }
    }

    /// Adds to a key what rules can see of a time: the whole second if they need it, otherwise between which moments it lies.
    pub(super) fn add_time(&self, now: Wall, needs_seconds: bool, question: &mut DecisionKey) {
        let now = Wall::from_seconds(now.seconds());
        if needs_seconds {
            question.add_number(now.seconds());
            return;
        }
        let (reached, passed) = match self.moments.binary_search(&now) {
            Ok(at) => (true, at),
            Err(at) => (false, at),
        };
        question.add_number(u64::from(reached));
        question.add_number(passed as u64);
    }

    /// Returns the context of an equal question, or makes it.
    pub(super) fn find_or_make(
        &self,
        question: &DecisionKey,
        make: impl FnOnce() -> Result<Context, String>,
    ) -> Result<Context, String> {
        let digest = question.digest();
        if let Some(known) = self.kept.find(&digest) {
            return Ok(Context::clone(&known));
        }
        let context = make()?;
        // An estimate: with each value, Cedar also keeps a name, a source location and a tree node.
        let bytes = question.bytes().saturating_mul(4);
        self.kept.keep(digest, context.clone().into(), bytes);
        Ok(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // A rule sees whether a moment lies ahead, is now, or has passed. A rule that needs seconds sees each second.
    #[test]
    fn two_times_are_equal_if_no_moment_lies_between_them() {
        let cache =
            ContextCache { moments: vec![Wall::from_seconds(100)], kept: DecisionCache::with_room(1) };
        let key = |seconds, needs_seconds| {
            let mut key = DecisionKey::new(0);
            cache.add_time(Wall::from_seconds(seconds), needs_seconds, &mut key);
            key
        };
        assert!(key(10, false) == key(99, false));
        assert!(key(99, false) != key(100, false));
        assert!(key(100, false) != key(101, false));
        assert!(key(101, false) == key(5_000, false));
        assert!(key(101, true) != key(5_000, true));
    }
}

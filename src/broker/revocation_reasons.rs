//! The reasons of recent revocations, for the members that lose access.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{limits::REVOCATION_REASONS_MAX, name::FenceName};

/// The reasons of the last revocations, one for each name. Each reason is a text of a request, so its bytes are bounded.
#[derive(Debug, Default)]
pub(super) struct RevocationReasons(Mutex<VecDeque<(FenceName, Arc<str>)>>);

impl RevocationReasons {
    /// Keeps the reason of a revocation. Call it before the fence is lowered, because the lowering wakes the members,
    /// and they ask for the reason.
    pub(super) fn note(&self, name: &FenceName, reason: &str) {
        let mut kept = self.kept();
        kept.retain(|(known, _)| known != name);
        if kept.len() >= REVOCATION_REASONS_MAX {
            kept.pop_front();
        }
        kept.push_back((name.clone(), reason.into()));
    }

    pub(super) fn of(&self, name: &FenceName) -> Option<Arc<str>> {
        self.kept().iter().find(|(known, _)| known == name).map(|(_, reason)| reason.clone())
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<(FenceName, Arc<str>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_reasons_are_kept_one_for_each_name() {
        let name = |n: usize| format!("dataset:acme/d{n}").parse::<FenceName>().unwrap();
        let reasons = RevocationReasons::default();
        (0..=REVOCATION_REASONS_MAX).for_each(|n| reasons.note(&name(n), "first"));
        reasons.note(&name(7), "second");
        assert_eq!((reasons.of(&name(0)), reasons.kept().len()), (None, REVOCATION_REASONS_MAX));
        assert_eq!(reasons.of(&name(7)).as_deref(), Some("second"));
        assert_eq!(reasons.of(&name(8)).as_deref(), Some("first"));
    }
}

//! A tree of principals, keyed by the segments of their SPIFFE ID patterns, so that a lookup does not try every entry.

use std::{collections::HashMap, str::Split, sync::Arc};

use super::Principal;
use crate::name::{SpiffeId, SpiffePattern};

/// The node after some segments of a pattern. The trust domain is the first segment.
#[derive(Debug, Default)]
pub(super) struct PatternNode {
    exact: HashMap<Box<str>, PatternNode>,
    /// The node after a `*` segment.
    any_one: Option<Box<PatternNode>>,
    /// The entry whose pattern ends here with `**`.
    any_rest: Option<RankedEntry>,
    /// The entry whose pattern ends here.
    end: Option<RankedEntry>,
}

/// An entry and its position in the catalog. The first matching entry wins.
type RankedEntry = (usize, Arc<Principal>);

impl PatternNode {
    pub(super) fn of(principals: &[Arc<Principal>]) -> Self {
        let mut tree = PatternNode::default();
        for (position, principal) in principals.iter().enumerate() {
            let pattern = principal.pattern.to_string();
            let mut node = &mut tree;
            let mut segments = segments(&pattern);
            let last = loop {
                match segments.next() {
                    Some("**") => break &mut node.any_rest,
                    Some("*") => node = node.any_one.get_or_insert_default(),
                    Some(exactly) => node = node.exact.entry(exactly.into()).or_default(),
                    None => break &mut node.end,
                }
            };
            last.get_or_insert_with(|| (position, principal.clone()));
        }
        tree
    }

    /// Returns the first entry that matches.
    pub(super) fn find(&self, id: &SpiffeId) -> Option<&Arc<Principal>> {
        let mut left = segments(id.as_str());
        let mut node = self.exact.get(left.next()?)?;
        if SpiffePattern::is_reserved(id) {
            // A wildcard does not match a trust domain.
            node = node.exact.get(left.next()?)?;
        }
        node.first(left).map(|(_, principal)| principal)
    }

    /// Follows at most two branches at each segment.
    fn first(&self, mut left: Split<'_, char>) -> Option<&RankedEntry> {
        let Some(segment) = left.next() else { return self.end.as_ref() };
        let ways = [
            self.exact.get(segment).and_then(|t| t.first(left.clone())),
            self.any_one.as_ref().and_then(|t| t.first(left)),
            self.any_rest.as_ref(),
        ];
        ways.into_iter().flatten().min_by_key(|(position, _)| *position)
    }
}

fn segments(text: &str) -> Split<'_, char> {
    text.strip_prefix("spiffe://").unwrap_or(text).split('/')
}

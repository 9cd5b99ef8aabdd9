//! Principals by the segments of their patterns, so that a search does not try every entry.

use std::{collections::HashMap, str::Split, sync::Arc};

use super::Principal;
use crate::name::{SpiffeId, SpiffePattern};

/// One segment of a pattern; the trust domain is the first.
#[derive(Debug, Default)]
pub(super) struct Tree {
    exactly: HashMap<Box<str>, Tree>,
    /// Below `*`.
    one: Option<Box<Tree>>,
    /// The entry that ends in `**` here.
    rest: Option<RankedEntry>,
    /// The entry that ends here.
    end: Option<RankedEntry>,
}

/// An entry and its place in the catalog: the first one that matches wins.
type RankedEntry = (usize, Arc<Principal>);

impl Tree {
    pub(super) fn of(principals: &[Arc<Principal>]) -> Self {
        let mut tree = Tree::default();
        for (place, principal) in principals.iter().enumerate() {
            let pattern = principal.pattern.to_string();
            let mut node = &mut tree;
            let mut segments = segments(&pattern);
            let last = loop {
                match segments.next() {
                    Some("**") => break &mut node.rest,
                    Some("*") => node = node.one.get_or_insert_default(),
                    Some(exactly) => node = node.exactly.entry(exactly.into()).or_default(),
                    None => break &mut node.end,
                }
            };
            last.get_or_insert_with(|| (place, principal.clone()));
        }
        tree
    }

    /// Returns the first entry that matches.
    pub(super) fn find(&self, id: &SpiffeId) -> Option<&Arc<Principal>> {
        let mut left = segments(id.as_str());
        let mut node = self.exactly.get(left.next()?)?;
        if SpiffePattern::is_reserved(id) {
            // No wildcard matches it.
            node = node.exactly.get(left.next()?)?;
        }
        node.first(left).map(|(_, principal)| principal)
    }

    /// Follows at most two branches at each segment.
    fn first(&self, mut left: Split<'_, char>) -> Option<&RankedEntry> {
        let Some(segment) = left.next() else { return self.end.as_ref() };
        let ways = [
            self.exactly.get(segment).and_then(|t| t.first(left.clone())),
            self.one.as_ref().and_then(|t| t.first(left)),
            self.rest.as_ref(),
        ];
        ways.into_iter().flatten().min_by_key(|(place, _)| *place)
    }
}

fn segments(text: &str) -> Split<'_, char> {
    text.strip_prefix("spiffe://").unwrap_or(text).split('/')
}

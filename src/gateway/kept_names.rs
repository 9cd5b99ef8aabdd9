//! The names of a folder that a walk keeps: the first in their order, within bounds.

use std::collections::BinaryHeap;

use crate::limits::GATEWAY_WALK_NAME_BYTES;

/// Collects names that come in any order, and keeps the first ones.
#[derive(Debug)]
pub(super) struct KeptNames {
    /// The name that comes last in the order is on top.
    names: BinaryHeap<String>,
    bytes: usize,
    bounds: NameBounds,
    /// The first name, in the order, that did not fit. This name and all names after it are missing here.
    given_up: Option<String>,
}

/// How many names are kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct NameBounds {
    pub(super) names_max: usize,
    /// The highest number of bytes. Each name counts with its length and [`GATEWAY_WALK_NAME_BYTES`]. At least one name is kept.
    pub(super) bytes_max: usize,
}

/// Names in their order.
#[derive(Debug)]
pub(super) struct FirstNames {
    pub(super) names: std::vec::IntoIter<String>,
    /// Whether these are all remaining names of the folder.
    pub(super) is_all: bool,
}

impl KeptNames {
    pub(super) fn new(bounds: NameBounds) -> Self {
        KeptNames { names: BinaryHeap::new(), bytes: 0, bounds, given_up: None }
    }

    /// Keeps a name if it is among the first.
    pub(super) fn offer(&mut self, name: &str) {
        if self.given_up.as_deref().is_some_and(|given_up| name >= given_up) {
            return;
        }
        self.bytes = self.bytes.saturating_add(cost(name));
        self.names.push(name.to_owned());
        while self.names.len() > 1
            && (self.names.len() > self.bounds.names_max || self.bytes > self.bounds.bytes_max)
        {
            let Some(last) = self.names.pop() else { return };
            self.bytes = self.bytes.saturating_sub(cost(&last));
            self.given_up = Some(last);
        }
    }

    pub(super) fn into_order(self) -> FirstNames {
        FirstNames { is_all: self.given_up.is_none(), names: self.names.into_sorted_vec().into_iter() }
    }
}

fn cost(name: &str) -> usize {
    name.len().saturating_add(GATEWAY_WALK_NAME_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    // However many names come, in whatever order, the first ones are kept, and no more than the bounds allow.
    #[test]
    fn the_first_names_are_kept_within_bounds() {
        for (names_max, bytes_max) in [(usize::MAX, 4_000), (50, usize::MAX), (50, 4_000), (0, 0)] {
            let mut kept = KeptNames::new(NameBounds { names_max, bytes_max });
            let mut most = (0, 0);
            // The step has no divisor in common with the number of names, so each comes once, in no order.
            for n in 0..190_000_u64 {
                kept.offer(&format!("{:06}", n * 7_919 % 190_000));
                let held: usize = kept.names.iter().map(|name| cost(name)).sum();
                assert_eq!(held, kept.bytes);
                most = (most.0.max(kept.names.len()), most.1.max(kept.bytes));
            }
            assert!(most.0 <= names_max.max(1) && most.1 <= bytes_max.max(cost("000000")), "{most:?}");
            let first = kept.into_order();
            assert!(!first.is_all);
            let wanted: Vec<String> = (0..most.0).map(|n| format!("{n:06}")).collect();
            assert_eq!(first.names.collect::<Vec<_>>(), wanted);
        }
        let mut all = KeptNames::new(NameBounds { names_max: 2, bytes_max: 1_000 });
        for name in ["b", "a"] {
            all.offer(name);
        }
        let all = all.into_order();
        assert!(all.is_all && all.names.collect::<Vec<_>>() == ["a", "b"]);
    }
}

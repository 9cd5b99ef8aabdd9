//! Pages of leases: of however many there are, the few that come next.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap},
    fmt,
    str::FromStr,
    sync::Arc,
};

use super::{
    caller::Caller,
    context::Broker,
    queries::{LeaseView, stood_behind},
};
use crate::{
    clock::LeaseTime,
    lease::{Ended, Facts, Lease},
    name::{FenceKind, FenceName, JobId, LeaseId, TenantName},
    policy::{Relation, Rpc},
    reason::Refusal,
};

/// Where a lease stands in the list: live ones first, then those that are over; newest first among both.
///
/// The place of a live lease never changes, so whoever goes on from one misses no lease that lives. One that ends in between
/// may come twice, the second time as what is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LeasePlace {
    over: bool,
    at: Reverse<LeaseTime>,
    id: Reverse<LeaseId>,
}

impl LeasePlace {
    fn of_live(l: &Lease) -> Self {
        LeasePlace { over: false, at: Reverse(l.issued), id: Reverse(l.id) }
    }

    fn of_ended(at: LeaseTime, id: LeaseId) -> Self {
        LeasePlace { over: true, at: Reverse(at), id: Reverse(id) }
    }

    fn of(view: &LeaseView) -> Self {
        match view {
            LeaseView::Live(l) => LeasePlace::of_live(l),
            LeaseView::Ended(e) => LeasePlace::of_ended(e.at, e.id),
        }
    }
}

impl fmt::Display for LeasePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = if self.over { "over" } else { "live" };
        write!(f, "{part}.{}.{}", self.at.0.0, self.id.0)
    }
}

impl FromStr for LeasePlace {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.splitn(3, '.');
        let mut part = || parts.next().ok_or(());
        let over = match part()? {
            "live" => false,
            "over" => true,
            _ => return Err(()),
        };
        let at = LeaseTime(part()?.parse().map_err(|_| ())?);
        Ok(LeasePlace { over, at: Reverse(at), id: Reverse(part()?.parse().map_err(|_| ())?) })
    }
}

/// Which of the leases that a caller may see a list shows.
#[derive(Clone, Debug, Default)]
pub struct LeaseFilter {
    /// Those that stand behind this name.
    pub behind: Option<FenceName>,
    pub live_only: bool,
    /// How its id begins.
    pub id_prefix: String,
}

/// Whose leases a caller sees.
enum VisibleLeases {
    All,
    OfTenant,
    /// Those of the jobs that the caller launched.
    OfJobs(BTreeSet<JobId>),
}

/// Some leases, and where to go on where there are more.
#[derive(Debug)]
pub struct LeasePage {
    pub leases: Vec<LeaseView>,
    pub next: Option<LeasePlace>,
    /// Set if the caller sees them as the owner of data: of the leases of other tenants it sees the scopes on its own.
    pub owner: Option<TenantName>,
}

impl LeasePage {
    /// Where to go on, if only the first `shown` of them are shown.
    pub fn next_after(&self, shown: usize) -> Option<LeasePlace> {
        match self.leases.get(..shown) {
            Some(first) if shown < self.leases.len() => first.last().map(LeasePlace::of),
            _ => self.next,
        }
    }
}

/// The first few beyond a place, whatever order they come in. Holds one more than it shows, to know whether there are more.
struct First {
    after: Option<LeasePlace>,
    max: usize,
    found: BinaryHeap<PlacedLease>,
}

struct PlacedLease(LeasePlace, LeaseView);

impl PartialEq for PlacedLease {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Eq for PlacedLease {}

impl PartialOrd for PlacedLease {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for PlacedLease {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.cmp(&other.0)
    }
}

impl First {
    fn new(after: Option<LeasePlace>, max: usize) -> Self {
        First { after, max, found: BinaryHeap::new() }
    }

    /// Takes one, where it is among the first. `view` is asked only then.
    fn see(&mut self, place: LeasePlace, view: impl FnOnce() -> LeaseView) {
        let beyond = self.after.is_none_or(|after| place > after);
        let full = self.found.len() > self.max;
        if !beyond || (full && self.found.peek().is_some_and(|last| place >= last.0)) {
            return;
        }
        self.found.push(PlacedLease(place, view()));
        if full {
            self.found.pop();
        }
    }

    fn page(mut self) -> LeasePage {
        let more = self.found.len() > self.max;
        if more {
            self.found.pop();
        }
        let next = self.found.peek().map(|last| last.0).filter(|_| more);
        let leases = self.found.into_sorted_vec().into_iter().map(|PlacedLease(_, view)| view).collect();
        LeasePage { leases, next, owner: None }
    }
}

impl Broker {
    fn seen_leases(&self, caller: &Caller) -> Result<VisibleLeases, Refusal> {
        if self.authorize(caller, Rpc::ListLeases, None, &[], "").is_ok() {
            return Ok(VisibleLeases::All);
        }
        let Err(refusal) = self.authorize(caller, Rpc::ListLeases, Some(caller.tenant()), &[], "") else {
            return Ok(VisibleLeases::OfTenant);
        };
        let own = self.state.list(None, usize::MAX, |job| job.launcher == *caller.id());
        let launched = [Relation::Launcher];
        match self.authorize(caller, Rpc::ListLeases, Some(caller.tenant()), &launched, "") {
            Ok(()) if !own.is_empty() => Ok(VisibleLeases::OfJobs(own.iter().map(|job| job.id).collect())),
            _ => Err(refusal),
        }
    }

    /// Leases that the caller may see, from beyond a place: live ones first, then those that ended, newest first.
    ///
    /// A caller that asks for what is behind its tenant, or behind data of its tenant, sees all that a revocation of that name
    /// would end, other tenants' leases too. Looks at all there are and holds as many as a page has.
    pub fn list_leases(
        &self,
        caller: &Caller,
        filter: &LeaseFilter,
        after: Option<LeasePlace>,
        max: usize,
    ) -> Result<LeasePage, Refusal> {
        let seen = self.seen_leases(caller)?;
        let LeaseFilter { behind, live_only, id_prefix } = filter;
        let behind = behind.as_ref();
        let is_owner = matches!(seen, VisibleLeases::OfTenant)
            && match behind.map(FenceName::kind) {
                Some(FenceKind::Tenant(t)) => t == *caller.tenant(),
                Some(FenceKind::Resource(r)) => r.tenant() == *caller.tenant(),
                _ => false,
            };
        let mine = |facts: &Facts| match &seen {
            VisibleLeases::All => true,
            VisibleLeases::OfTenant => is_owner || facts.tenant == *caller.tenant(),
            VisibleLeases::OfJobs(own) => own.contains(&facts.job),
        };
        let named = |id: LeaseId| id_prefix.is_empty() || id.to_string().starts_with(id_prefix);
        let now = self.clock.now().lease;
        let mut first = First::new(after, max);
        self.table.each(behind, |l: &Arc<Lease>| {
            if !mine(&l.facts) || !named(l.id) {
                return;
            }
            match l.check(now) {
                Ok(()) => first.see(LeasePlace::of_live(l), || LeaseView::Live(l.clone())),
                Err(_) if *live_only => {}
                // It is over, though the clean-up has not come to it yet.
                Err(why) => {
                    let at = now.min(l.deadline());
                    let view = || LeaseView::Ended(l.as_ended(at, why.to_string()));
                    first.see(LeasePlace::of_ended(at, l.id), view);
                }
            }
        });
        if !*live_only {
            self.table.each_ended(|e: &Ended| {
                if mine(&e.facts) && named(e.id) && stood_behind(e, behind) {
                    first.see(LeasePlace::of_ended(e.at, e.id), || LeaseView::Ended(e.clone()));
                }
            });
        }
        let owner = is_owner.then(|| caller.tenant().clone());
        Ok(LeasePage { owner, ..first.page() })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn place(over: bool, at: u64, id: u128) -> LeasePlace {
        LeasePlace { over, at: Reverse(LeaseTime(at)), id: Reverse(LeaseId(id)) }
    }

    fn view(place: LeasePlace) -> LeaseView {
        let facts = crate::lease::Facts {
            tenant: "acme".parse().unwrap(),
            job: crate::name::JobId(1),
            attempt: crate::name::AttemptNumber::FIRST,
            instance: "rank-0".parse().unwrap(),
            holder: "spiffe://td.example/holder".parse().unwrap(),
            half: crate::name::Half::Reading,
            audience: "spiffe://td.example/gateway".parse().unwrap(),
            scopes: [].into(),
        };
        LeaseView::Ended(Ended {
            id: place.id.0,
            facts: Arc::new(facts),
            issued: place.at.0,
            deadline: place.at.0,
            latest: place.at.0,
            generation: 0,
            stood_at: crate::fence::Seq(0),
            at: place.at.0,
            cause: "".into(),
        })
    }

    #[test]
    fn a_place_is_found_again_by_its_text_and_nothing_else_is_one() {
        for p in [place(false, 7, 1), place(true, 0, u128::MAX)] {
            assert_eq!(p.to_string().parse(), Ok(p));
        }
        for text in ["", "live", "live.7", "dead.7.l-00000000000000000000000001", "live.x.y", "live.7."] {
            assert!(text.parse::<LeasePlace>().is_err(), "{text}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever the order in which they come, pages of any size show all of them once, in order.
        #[test]
        fn law_35_pages_show_every_lease_once_and_in_order(
            all in prop::collection::btree_set((any::<bool>(), 0u64..5, 0u128..50), 0..60),
            max in 1usize..9,
            seed in any::<prop::sample::Index>(),
        ) {
            let mut came: Vec<LeasePlace> = all.into_iter().map(|(over, at, id)| place(over, at, id)).collect();
            let mut sorted = came.clone();
            sorted.sort_unstable();
            if !came.is_empty() {
                let n = seed.index(came.len());
                came.rotate_left(n);
            }
            let (mut shown, mut after) = (Vec::new(), None);
            loop {
                let mut first = First::new(after, max);
                for p in &came {
                    first.see(*p, || view(*p));
                    prop_assert!(first.found.len() <= max + 1, "it holds more than a page");
                }
                let page = first.page();
                prop_assert!(page.leases.len() <= max);
                shown.extend(page.leases.iter().map(LeaseView::id));
                after = page.next;
                if after.is_none() {
                    break;
                }
            }
            prop_assert_eq!(shown, sorted.iter().map(|p| p.id.0).collect::<Vec<_>>());
        }
    }
}

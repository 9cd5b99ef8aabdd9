//! Pages of a list of leases.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
    sync::Arc,
};

use super::{
    caller::Caller,
    leases::{LeaseUseCases, LeaseView},
};
use crate::{
    clock::LeaseTime,
    lease::{Ended, Facts, Lease},
    name::{FenceKind, FenceName, JobId, LeaseId, TenantName},
    policy::{Relation, Rpc},
    reason::Refusal,
};

/// The position of a lease in the list. Live leases come first, then ended leases, each part with the newest first. A
/// lease keeps its position while it is live, and comes after all live leases when it ends. So paging misses no live
/// lease, but it may show a lease twice if the lease ends meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LeaseCursor {
    over: bool,
    at: Reverse<LeaseTime>,
    id: Reverse<LeaseId>,
}

impl LeaseCursor {
    fn of_live(l: &Lease) -> Self {
        LeaseCursor { over: false, at: Reverse(l.issued), id: Reverse(l.id) }
    }

    fn of_ended(at: LeaseTime, id: LeaseId) -> Self {
        LeaseCursor { over: true, at: Reverse(at), id: Reverse(id) }
    }

    fn of(view: &LeaseView) -> Self {
        match view {
            LeaseView::Live(l) => LeaseCursor::of_live(l),
            LeaseView::Ended(e) => LeaseCursor::of_ended(e.at, e.id),
        }
    }
}

impl fmt::Display for LeaseCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = if self.over { "over" } else { "live" };
        write!(f, "{part}.{}.{}", self.at.0.0, self.id.0)
    }
}

impl FromStr for LeaseCursor {
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
        Ok(LeaseCursor { over, at: Reverse(at), id: Reverse(part()?.parse().map_err(|_| ())?) })
    }
}

/// A filter of leases.
#[derive(Clone, Debug, Default)]
pub struct LeaseFilter {
    /// Only leases that stand behind this name.
    pub behind: Option<FenceName>,
    pub live_only: bool,
    /// Only leases whose id begins with this text.
    pub id_prefix: String,
}

/// The leases that a caller may see.
enum VisibleLeases {
    All,
    OfTenant,
    /// The leases of the jobs that the caller launched.
    OfJobs(BTreeSet<JobId>),
}

/// A page of leases, and the position at which the next page begins, if there is one.
#[derive(Debug)]
pub struct LeasePage {
    pub leases: Vec<LeaseView>,
    pub next: Option<LeaseCursor>,
    /// The caller's tenant, if the filter names that tenant or its data. In this case the page may have leases of other
    /// tenants, and the caller sees only their scopes on its own tenant's data.
    pub owner: Option<TenantName>,
}

impl LeasePage {
    /// Returns the position after which the next page begins when this page shows only its first `shown` leases.
    pub fn next_after(&self, shown: usize) -> Option<LeaseCursor> {
        match self.leases.get(..shown) {
            Some(first) if shown < self.leases.len() => first.last().map(LeaseCursor::of),
            _ => self.next,
        }
    }
}

/// Collects the first leases after a position. Keeps one more lease than the page shows, to know whether there is a
/// next page.
struct PageBuilder {
    after: Option<LeaseCursor>,
    max: usize,
    found: BTreeMap<LeaseCursor, LeaseView>,
}

impl PageBuilder {
    fn new(after: Option<LeaseCursor>, max: usize) -> Self {
        PageBuilder { after, max, found: BTreeMap::new() }
    }

    /// Adds a lease if it belongs to this page. Calls `view` only in that case.
    fn take(&mut self, place: LeaseCursor, view: impl FnOnce() -> LeaseView) {
        let beyond = self.after.is_none_or(|after| place > after);
        let is_full = self.found.len() > self.max;
        let is_last = |(last, _): (&LeaseCursor, &LeaseView)| place >= *last;
        if !beyond || (is_full && self.found.last_key_value().is_some_and(is_last)) {
            return;
        }
        self.found.insert(place, view());
        if self.found.len() > self.max.saturating_add(1) {
            self.found.pop_last();
        }
    }

    fn build(mut self) -> LeasePage {
        let has_more = self.found.len() > self.max;
        if has_more {
            self.found.pop_last();
        }
        let next = self.found.last_key_value().map(|(last, _)| *last).filter(|_| has_more);
        LeasePage { leases: self.found.into_values().collect(), next, owner: None }
    }
}

impl LeaseUseCases {
    fn seen_leases(&self, caller: &Caller) -> Result<VisibleLeases, Refusal> {
        if self.access.authorize(caller, Rpc::ListLeases, None, &[], "").is_ok() {
            return Ok(VisibleLeases::All);
        }
        let Err(refusal) = self.access.authorize(caller, Rpc::ListLeases, Some(caller.tenant()), &[], "")
        else {
            return Ok(VisibleLeases::OfTenant);
        };
        let own = self.context.state.list(None, usize::MAX, |job| job.launcher == *caller.id());
        let launched = [Relation::Launcher];
        match self.access.authorize(caller, Rpc::ListLeases, Some(caller.tenant()), &launched, "") {
            Ok(()) if !own.is_empty() => Ok(VisibleLeases::OfJobs(own.iter().map(|job| job.id).collect())),
            _ => Err(refusal),
        }
    }

    /// Returns a page of the leases that the caller may see, after a position in the list. If the filter names the
    /// caller's tenant or its data, the page has every lease that a revocation of the name would end. These include
    /// leases of other tenants.
    pub fn list_leases(
        &self,
        caller: &Caller,
        filter: &LeaseFilter,
        after: Option<LeaseCursor>,
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
        let now = self.context.clock.now().lease;
        let mut page = PageBuilder::new(after, max);
        self.context.table.each(behind, |l: &Arc<Lease>| {
            if !mine(&l.facts) || !named(l.id) {
                return;
            }
            match l.check(now) {
                Ok(()) => page.take(LeaseCursor::of_live(l), || LeaseView::Live(l.clone())),
                Err(_) if *live_only => {}
                // The lease is over, but not yet cleaned up.
                Err(why) => {
                    let at = now.min(l.deadline());
                    let view = || LeaseView::Ended(l.as_ended(at, why.to_string()));
                    page.take(LeaseCursor::of_ended(at, l.id), view);
                }
            }
        });
        if !*live_only {
            self.context.table.each_ended(|e: &Ended| {
                if mine(&e.facts) && named(e.id) && stood_behind(e, behind) {
                    page.take(LeaseCursor::of_ended(e.at, e.id), || LeaseView::Ended(e.clone()));
                }
            });
        }
        let owner = is_owner.then(|| caller.tenant().clone());
        Ok(LeasePage { owner, ..page.build() })
    }
}

pub(super) fn stood_behind(e: &Ended, behind: Option<&FenceName>) -> bool {
    let Some(name) = behind else { return true };
    match name.kind() {
        FenceKind::Job(j) => e.facts.job == j,
        FenceKind::Attempt(j, n) | FenceKind::AttemptReading(j, n) => {
            e.facts.job == j && e.facts.attempt == n
        }
        FenceKind::Member(j, n, i) | FenceKind::MemberReading(j, n, i) => {
            e.facts.job == j && e.facts.attempt == n && e.facts.instance == i
        }
        FenceKind::Identity(id) => e.facts.holder == id,
        FenceKind::Domain(d) => e.facts.holder.trust_domain() == d,
        FenceKind::Tenant(t) => {
            e.facts.tenant == t || e.facts.scopes.iter().any(|s| s.resource.tenant() == t)
        }
        FenceKind::Resource(r) => {
            e.facts.scopes.iter().any(|s| s.resource == r || s.resource.unversioned() == r)
        }
        FenceKind::Lease(l) => e.id == l,
        FenceKind::Epoch => true,
        FenceKind::Human(_) | FenceKind::Image(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        fence::Seq,
        name::{AttemptNumber, Half},
    };

    fn place(over: bool, at: u64, id: u128) -> LeaseCursor {
        LeaseCursor { over, at: Reverse(LeaseTime(at)), id: Reverse(LeaseId(id)) }
    }

    fn view(place: LeaseCursor) -> LeaseView {
        let facts = Facts {
            tenant: "acme".parse().unwrap(),
            job: JobId(1),
            attempt: AttemptNumber::FIRST,
            instance: "rank-0".parse().unwrap(),
            holder: "spiffe://td.example/holder".parse().unwrap(),
            half: Half::Reading,
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
            stood_at: Seq(0),
            at: place.at.0,
            cause: "".into(),
        })
    }

    #[test]
    fn a_place_parses_back_and_other_text_is_refused() {
        for p in [place(false, 7, 1), place(true, 0, u128::MAX)] {
            assert_eq!(p.to_string().parse(), Ok(p));
        }
        for text in ["", "live", "live.7", "dead.7.l-00000000000000000000000001", "live.x.y", "live.7."] {
            assert!(text.parse::<LeaseCursor>().is_err(), "{text}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Pages of any size show all leases once and in order, even if the leases come in another order.
        // Proves law 35.
        #[test]
        fn pages_show_every_lease_once_and_in_order(
            all in prop::collection::btree_set((any::<bool>(), 0u64..5, 0u128..50), 0..60),
            max in 1usize..9,
            seed in any::<prop::sample::Index>(),
        ) {
            let mut came: Vec<LeaseCursor> = all.into_iter().map(|(over, at, id)| place(over, at, id)).collect();
            let mut sorted = came.clone();
            sorted.sort_unstable();
            if !came.is_empty() {
                let n = seed.index(came.len());
                came.rotate_left(n);
            }
            let (mut shown, mut after) = (Vec::new(), None);
            loop {
                let mut page = PageBuilder::new(after, max);
                for p in &came {
                    page.take(*p, || view(*p));
                    prop_assert!(page.found.len() <= max + 1, "it holds more than a page");
                }
                let page = page.build();
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

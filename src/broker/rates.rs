//! Limits how much of the ledger the calls of one identity and of one tenant may fill.
//!
//! Calls that widen access are counted in bytes: jobs, attempts, joins, credentials and their renewals. Every lease,
//! member and attempt was counted when it began, so this also bounds the number of their endings. Operators can also
//! revoke and lock names that nothing uses, so the calls of a tenant's operators are counted. The platform's operators
//! are never refused here.

use std::{
    hash::{BuildHasher, RandomState},
    num::NonZeroU32,
    sync::Arc,
    time::Duration,
};

use governor::{
    Quota, RateLimiter, clock::Clock as GovernorClock, middleware::NoOpMiddleware,
    state::keyed::HashMapStateStore,
};

use super::caller::Caller;
use crate::{
    clock::Clock,
    ledger::Event,
    limits,
    name::{SpiffeId, TenantName},
    reason::{Reason, Refusal},
};

/// Time since boot, for the limiters.
#[derive(Clone)]
struct Boot(Arc<dyn Clock>);

impl GovernorClock for Boot {
    type Instant = Duration;

    fn now(&self) -> Duration {
        Duration::from_millis(self.0.now().boot.0)
    }
}

type Limiter<K> = RateLimiter<K, HashMapStateStore<K>, Boot, NoOpMiddleware<Duration>>;

/// The KiB of records that each identity and each tenant may still write.
pub(super) struct Rates {
    identities: Limiter<SpiffeId>,
    /// The rates of groups of identities, used while there are too many identities.
    groups: Limiter<u64>,
    /// Puts identities into groups. No caller can compute its own group.
    grouping: RandomState,
    tenants: Limiter<TenantName>,
    operators: Limiter<SpiffeId>,
    operators_of: Limiter<TenantName>,
    logged: Limiter<SpiffeId>,
    clock: Boot,
}

/// The identity or tenant whose rate is used up, and the time to wait.
#[derive(Debug)]
struct Spent {
    whose: String,
    wait: Duration,
}

impl Spent {
    fn refusal(self) -> Refusal {
        let text = format!("{} has written more records than its rate allows", self.whose);
        overloaded(self.wait, text, "operators set ledger.rate_per_identity and ledger.rate_per_tenant")
    }
}

impl Rates {
    pub(super) fn new(clock: Arc<dyn Clock>, per_identity: u32, per_tenant: u32) -> Self {
        let clock = Boot(clock);
        Rates {
            identities: RateLimiter::hashmap_with_clock(quota(per_identity), clock.clone()),
            groups: RateLimiter::hashmap_with_clock(quota(per_identity), clock.clone()),
            grouping: RandomState::new(),
            tenants: RateLimiter::hashmap_with_clock(quota(per_tenant), clock.clone()),
            operators: RateLimiter::hashmap_with_clock(calls(limits::OPERATOR_CALLS), clock.clone()),
            operators_of: RateLimiter::hashmap_with_clock(
                calls(limits::OPERATOR_CALLS_OF_TENANT),
                clock.clone(),
            ),
            logged: RateLimiter::hashmap_with_clock(calls(limits::OPERATOR_LINES), clock.clone()),
            clock,
        }
    }

    fn take(&self, id: &SpiffeId, tenant: &TenantName, bytes: usize) -> Result<(), Spent> {
        let kib = kib(bytes);
        self.take_of_identity(id, kib)?;
        take(&self.tenants, tenant, kib, &self.clock)
            .map_err(|wait| Spent { whose: format!("the tenant {tenant}"), wait })
    }

    /// Takes from the rate of one identity. A flood of new identities must not fill the memory. So while there are
    /// [`limits::RATED_IDENTITIES_MAX`] identities, an identity shares the rate of one identity with a group.
    fn take_of_identity(&self, id: &SpiffeId, kib: NonZeroU32) -> Result<(), Spent> {
        let taken = if self.identities.len() >= limits::RATED_IDENTITIES_MAX {
            let group = self.grouping.hash_one(id) % limits::RATED_GROUPS;
            take(&self.groups, &group, kib, &self.clock)
        } else {
            take(&self.identities, id, kib, &self.clock)
        };
        taken.map_err(|wait| Spent { whose: "this identity".to_owned(), wait })
    }

    /// Counts a record that a call wants to write. Refuses the call if the caller or its tenant has written too much.
    pub(super) fn charge(&self, caller: &Caller, record: &Event) -> Result<(), Refusal> {
        self.charge_bytes(caller, record.bytes())
    }

    pub(super) fn charge_bytes(&self, caller: &Caller, bytes: usize) -> Result<(), Refusal> {
        self.take(&caller.counted_as(), caller.tenant(), bytes).map_err(Spent::refusal)
    }

    /// Counts the record of a person's login. It does not count for the tenant, so operators can always log in and end
    /// jobs, regardless of how much the jobs have written.
    pub(super) fn charge_login(&self, person: &SpiffeId, bytes: usize) -> Result<(), Refusal> {
        self.take_of_identity(person, kib(bytes)).map_err(Spent::refusal)
    }

    /// Counts a call of a tenant's operator that ends access or lifts a lock.
    pub(super) fn charge_call(&self, caller: &Caller) -> Result<(), Refusal> {
        let one = NonZeroU32::MIN;
        take(&self.operators, &caller.counted_as(), one, &self.clock)
            .map_err(|wait| Spent { whose: "this identity".to_owned(), wait })
            .and_then(|()| {
                take(&self.operators_of, caller.tenant(), one, &self.clock)
                    .map_err(|wait| Spent { whose: format!("the tenant {}", caller.tenant()), wait })
            })
            .map_err(|Spent { whose, wait }| {
                let text = format!("{whose} revokes and locks more often than its rate allows");
                let instead = "to end much at once, name its job, dataset or tenant";
                overloaded(wait, text, instead)
            })
    }

    /// Whether another line about the revocations and locks of an operator may be logged. So a loop does not fill the
    /// log.
    pub(super) fn may_log(&self, operator: &SpiffeId) -> bool {
        take(&self.logged, operator, NonZeroU32::MIN, &self.clock).is_ok()
    }

    /// Forgets the identities and tenants whose rate is fully available again.
    pub(super) fn prune(&self) {
        self.identities.retain_recent();
        self.groups.retain_recent();
        self.tenants.retain_recent();
        self.operators.retain_recent();
        self.operators_of.retain_recent();
        self.logged.retain_recent();
    }
}

/// Returns a quota of `per_second` in the long run. The burst is large enough for the largest record.
fn quota(per_second: u32) -> Quota {
    let largest =
        u32::try_from(limits::LEDGER_RECORD_BYTES_MAX / 1_024).unwrap_or(u32::MAX).saturating_add(1);
    let burst = per_second.saturating_mul(limits::RATE_BURST_SECONDS).max(largest);
    let at_least_one = |n| NonZeroU32::new(n).unwrap_or(NonZeroU32::MIN);
    Quota::per_second(at_least_one(per_second)).allow_burst(at_least_one(burst))
}

/// Converts bytes to KiB, rounded up.
fn kib(bytes: usize) -> NonZeroU32 {
    let kib = u32::try_from(bytes / 1_024).unwrap_or(u32::MAX).saturating_add(1);
    NonZeroU32::new(kib).unwrap_or(NonZeroU32::MIN)
}

fn overloaded(wait: Duration, text: String, instead: &str) -> Refusal {
    metrics::counter!("leasehold_rate_limited_total").increment(1);
    let seconds = wait.as_secs().saturating_add(1);
    Refusal::new(Reason::Overloaded, text)
        .with("retry_after", format!("{seconds}s"))
        .fix(format!("try again in {seconds} s, and less often; {instead}"))
}

/// Returns a quota of `per_second` calls in the long run, with a burst of some seconds' calls.
fn calls(per_second: u32) -> Quota {
    let at_least_one = |n| NonZeroU32::new(n).unwrap_or(NonZeroU32::MIN);
    let burst = per_second.saturating_mul(limits::OPERATOR_BURST_SECONDS);
    Quota::per_second(at_least_one(per_second)).allow_burst(at_least_one(burst))
}

fn take<K>(limiter: &Limiter<K>, key: &K, kib: NonZeroU32, clock: &Boot) -> Result<(), Duration>
where
    K: std::hash::Hash + Eq + Clone,
{
    match limiter.check_key_n(key, kib) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(not_until)) => Err(not_until.wait_time_from(clock.now())),
        // The record is larger than any burst: the ledger refuses it because of its size.
        Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{BootTime, LeaseTime, Now, SystemClock};

    /// A clock that shows the time that a test sets.
    #[derive(Default)]
    struct Put(std::sync::atomic::AtomicU64);

    impl Clock for Put {
        fn now(&self) -> Now {
            let boot = BootTime(self.0.load(std::sync::atomic::Ordering::Relaxed));
            Now { boot, ..SystemClock::new().now() }
        }
        fn sleep_until(&self, _: LeaseTime) -> futures_util::future::BoxFuture<'static, ()> {
            Box::pin(std::future::pending())
        }
    }

    fn id(n: usize) -> SpiffeId {
        format!("spiffe://td/w{n}").parse().unwrap()
    }

    fn tenant(name: &str) -> TenantName {
        name.parse().unwrap()
    }

    fn taken(rates: &Rates, who: usize, of: &str) -> u32 {
        (0..10_000_000).find(|_| rates.take(&id(who), &tenant(of), 100).is_err()).unwrap()
    }

    // The logins of a person count with all other records of the person, but not for the tenant.
    #[test]
    fn logins_count_for_the_person_only() {
        let rates = Rates::new(Arc::new(Put::default()), 10, 30);
        let logins = (0..100_000).find(|_| rates.charge_login(&id(1), 100).is_err()).unwrap();
        assert_eq!(logins, 10 * limits::RATE_BURST_SECONDS);
        assert!(rates.take(&id(1), &tenant("acme"), 100).is_err(), "one rate for all that a person writes");
        assert_eq!(taken(&rates, 2, "acme"), logins);
        let mut others = 3..;
        while rates.take(&id(others.next().unwrap()), &tenant("acme"), 100).is_ok() {}
        assert!(rates.charge_login(&id(99_999), 100).is_ok(), "a busy tenant keeps no one from logging in");
    }

    #[test]
    fn an_identity_leaves_room_for_its_tenant() {
        let clock = Arc::new(Put::default());
        let rates = Rates::new(clock.clone(), 10, 30);
        let burst = limits::RATE_BURST_SECONDS;
        assert_eq!(taken(&rates, 1, "acme"), 10 * burst);
        assert_eq!(taken(&rates, 2, "acme"), 10 * burst, "another identity has its own");
        let third: u32 = (3..40).map(|n| taken(&rates, n, "acme")).sum();
        assert_eq!(third, 10 * burst, "and all together what the tenant has");
        assert_eq!(taken(&rates, 99, "globex"), 10 * burst);
        let spent = rates.take(&id(1), &tenant("acme"), 100).unwrap_err();
        assert!(spent.wait <= Duration::from_millis(100) && spent.whose == "this identity", "{spent:?}");
        // In the long run the rate is the limit, regardless of the number of attempts.
        clock.0.store(20_000, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(taken(&rates, 1, "acme"), 200);
    }

    #[test]
    fn a_crowd_that_shares_one_identity_comes_back_at_once() {
        let rates = Rates::new(Arc::new(Put::default()), limits::RATE_PER_IDENTITY, limits::RATE_PER_TENANT);
        for _ in 0..limits::MEMBERS_MAX {
            // A join, and two credentials of a record of 2 KiB each.
            for bytes in [500, 1_500, 1_500] {
                rates.take(&id(1), &tenant("acme"), bytes).unwrap();
            }
        }
    }

    #[test]
    fn large_records_count_by_their_size_and_the_largest_fits() {
        let rates = Rates::new(Arc::new(Put::default()), 1, 1);
        rates.take(&id(1), &tenant("acme"), limits::LEDGER_RECORD_BYTES_MAX).unwrap();
        assert!(rates.take(&id(1), &tenant("acme"), 1).is_err());
    }

    // A flood of identities is no way around the rates, also of the identities that were there before.
    #[test]
    fn a_flood_of_identities_ends_no_rate() {
        let rates = Rates::new(Arc::new(Put::default()), 10, u32::MAX / limits::RATE_BURST_SECONDS);
        (0..limits::RATED_IDENTITIES_MAX).for_each(|n| rates.take(&id(n), &tenant("acme"), 1).unwrap());
        for who in [1, limits::RATED_IDENTITIES_MAX + 1] {
            assert!((0..20_000).any(|_| rates.take(&id(who), &tenant("acme"), 100).is_err()), "{who}");
            assert!((0..20_000).any(|_| rates.charge_login(&id(who), 100).is_err()), "{who}");
        }
        assert_eq!(rates.identities.len(), limits::RATED_IDENTITIES_MAX);
    }

    #[test]
    fn quiet_identities_are_forgotten() {
        let clock = Arc::new(Put::default());
        let rates = Rates::new(clock.clone(), 10, 1_000_000);
        (0..1_000).for_each(|n| rates.take(&id(n), &tenant("acme"), 1).unwrap());
        assert_eq!(rates.identities.len(), 1_000);
        clock.0.store(10_000, std::sync::atomic::Ordering::Relaxed);
        rates.prune();
        assert_eq!(rates.identities.len(), 0);
    }
}

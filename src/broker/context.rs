//! The state that all parts of the broker share.

use std::{
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::sync::watch;

use super::{
    apply_policy::PolicyOrigin, denials::Denials, kept_rules::KeptRules, presence::Presences,
    proposals::Proposals, rates::Rates, reach::AudienceReach, reconnect_limiter::ReconnectLimiter,
    revocation_reasons::RevocationReasons, rules::Rules,
};
use crate::{
    clock::Clock,
    fence::Registry,
    lease::Table,
    ledger::Ledger,
    limits,
    name::{JobId, LeaseId, SpiffeId, TenantName},
    people::People,
    reason::{Reason, Refusal},
    state::{Lock, LockName, Store},
    token::{SigningKey, VerifiedTokens},
};

/// Settings of the broker, from the daemon's configuration.
#[derive(Clone, Debug)]
pub struct BrokerSettings {
    /// The `iss` of every token.
    pub issuer: String,
    pub lease_ttl: Duration,
    pub beat: Duration,
    pub lost_after: u32,
    pub rejoin: Duration,
    pub drain_read: Duration,
    /// Identities that may lift locks even if a lock shuts them out.
    pub break_glass: Vec<SpiffeId>,
    /// The source of the policy.
    pub policy: PolicyOrigin,
    /// The files of the trusted public keys. One of these keys must have signed a policy before it can be applied.
    pub trusted_keys: Vec<PathBuf>,
    /// The KiB of records per second that the calls of one SPIFFE ID may write.
    pub rate_per_identity: u32,
    /// The KiB of records per second that all calls of one tenant may write.
    pub rate_per_tenant: u32,
    /// The settings for people who log in. `None` if people cannot log in.
    pub people: Option<Arc<People>>,
}

impl Default for BrokerSettings {
    fn default() -> Self {
        BrokerSettings {
            issuer: String::new(),
            lease_ttl: limits::LEASE_TTL_DEFAULT,
            beat: limits::BEAT,
            lost_after: limits::LOST_AFTER,
            rejoin: limits::REJOIN,
            drain_read: limits::DRAIN_READ,
            break_glass: Vec::new(),
            policy: PolicyOrigin::default(),
            trusted_keys: Vec::new(),
            rate_per_identity: limits::RATE_PER_IDENTITY,
            rate_per_tenant: limits::RATE_PER_TENANT,
            people: None,
        }
    }
}

/// The state of one run of the daemon. All parts of the broker share it.
pub struct BrokerContext {
    pub(super) clock: Arc<dyn Clock>,
    pub(super) fences: Arc<Registry>,
    pub(super) state: Store,
    pub(super) table: Table,
    pub(super) ledger: Ledger,
    pub(super) rules: ArcSwap<Rules>,
    pub(super) key: SigningKey,
    pub(super) verified_tokens: VerifiedTokens,
    pub(super) epoch: u64,
    pub(super) settings: BrokerSettings,
    pub(super) sessions: Presences,
    pub(super) denials: Denials,
    pub(super) reach: AudienceReach,
    pub(super) reconnects: ReconnectLimiter,
    pub(super) rates: Rates,
    pub(super) reasons: RevocationReasons,
    /// The changes of the rules that wait for people.
    pub(super) proposals: Proposals,
    /// The policies and catalogs that were in force, if there is a folder for them.
    pub(super) kept: OnceLock<KeptRules>,
    /// Set while the ledger's disk is nearly full. Requests for access are then refused.
    held: AtomicBool,
    /// Wakes open streams when a lock or new rules are in force.
    changes: watch::Sender<()>,
}

impl BrokerContext {
    /// Builds the context. The ledger is open, the record of its epoch is durable, and the state is rebuilt.
    #[expect(clippy::too_many_arguments, reason = "the one place where all floors meet")]
    pub fn new(
        clock: Arc<dyn Clock>,
        fences: Arc<Registry>,
        state: Store,
        ledger: Ledger,
        rules: Rules,
        key: SigningKey,
        epoch: u64,
        settings: BrokerSettings,
    ) -> Self {
        let reach = AudienceReach::default();
        reach.widen(rules.catalog());
        let reconnects = ReconnectLimiter::new(clock.clone(), fences.clone());
        let rates = Rates::new(clock.clone(), settings.rate_per_identity, settings.rate_per_tenant);
        let denials = Denials::new(clock.clone(), ledger.clone());
        BrokerContext {
            clock,
            fences,
            state,
            table: Table::default(),
            ledger,
            rules: ArcSwap::from_pointee(rules),
            key,
            verified_tokens: VerifiedTokens::default(),
            epoch,
            settings,
            sessions: Presences::default(),
            denials,
            reach,
            reconnects,
            rates,
            reasons: RevocationReasons::default(),
            proposals: Proposals::default(),
            kept: OnceLock::new(),
            held: AtomicBool::new(false),
            changes: watch::Sender::new(()),
        }
    }

    /// Returns a receiver that wakes after each lock and each reload. Open streams then decide again.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// Makes all open streams decide again.
    pub(super) fn decide_again(&self) {
        self.changes.send_replace(());
    }

    pub(super) fn rules(&self) -> Arc<Rules> {
        self.rules.load_full()
    }

    /// Refuses all requests for access from now on, or accepts them again.
    pub(super) fn hold(&self, held: bool) {
        self.held.store(held, Ordering::Release);
    }

    /// Whether requests for access are on hold.
    pub(super) fn is_held(&self) -> bool {
        self.held.load(Ordering::Acquire)
    }

    /// Refuses while requests for access are on hold.
    pub(super) fn refuse_if_held(&self) -> Result<(), Refusal> {
        if self.is_held() {
            return Err(Refusal::new(
                Reason::LedgerUnavailable,
                "the ledger's disk is nearly full, so no access is given until it has free space",
            )
            .fix("operators: free space, or move sealed segments away; endings still work"));
        }
        Ok(())
    }

    /// Returns the refusal because of a lock, with all facts of the lock.
    pub(super) fn locked(&self, lock: &Lock) -> Refusal {
        let text = match &lock.name {
            LockName::Name(n) => format!("{n} is locked"),
            LockName::Prefix(p) => format!("{p} is locked"),
            LockName::Launcher(id) => format!("{id} is locked as a launcher"),
            LockName::Recall(name) => format!("{name} was recalled"),
        };
        let now = self.clock.now();
        let refusal = Refusal::new(Reason::Locked, text)
            .with("why", lock.reason.clone())
            .with("since", now.wall_at(lock.since).to_string());
        let refusal = match lock.until {
            Some(until) => refusal.with("until", now.wall_at(until).to_string()),
            None => refusal,
        };
        refusal.fix(match &lock.name {
            LockName::Recall(name) => format!(
                "train on another version; only the platform takes a recall back: leasehold dataset unrecall {name}"
            ),
            name => format!("ask an operator to lift it: leasehold unlock {name}"),
        })
    }

    /// Returns the job of a lease that is live or ended a short while ago.
    pub(super) fn lease_job(&self, id: LeaseId) -> Option<JobId> {
        self.table.find(id).map(|l| l.facts.job).or_else(|| self.table.find_ended(id).map(|l| l.facts.job))
    }

    /// Returns the tenant of a lease that is live or ended a short while ago.
    pub(super) fn lease_tenant(&self, id: LeaseId) -> Option<TenantName> {
        self.table
            .find(id)
            .map(|l| l.facts.tenant.clone())
            .or_else(|| self.table.find_ended(id).map(|l| l.facts.tenant.clone()))
    }
}

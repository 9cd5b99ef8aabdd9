//! The broker and what it is made of.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::sync::watch;

use super::{
    denials::Denials, presence::Sessions, rates::Rates, reach::AudienceReach, receipt::Receipts,
    reconnect_limiter::ReconnectLimiter, rules::Rules, tickets::Tickets,
};
use crate::{
    clock::{Clock, LeaseTime},
    fence::Registry,
    lease::Table,
    ledger::Ledger,
    limits,
    name::SpiffeId,
    reason::{Reason, Refusal},
    secret::NoRandomness,
    state::Store,
    token::SigningKey,
};

/// What the daemon is told by its configuration.
#[derive(Clone, Debug)]
pub struct BrokerSettings {
    /// The `iss` of every token.
    pub issuer: String,
    pub lease_ttl: Duration,
    pub beat: Duration,
    pub lost_after: u32,
    pub rejoin: Duration,
    pub drain_read: Duration,
    /// Who lifts locks though one shuts them out.
    pub break_glass: Vec<SpiffeId>,
    /// KiB of records a second that one SPIFFE ID, and one tenant, may have written.
    pub rate_per_identity: u32,
    pub rate_per_tenant: u32,
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
            rate_per_identity: limits::RATE_PER_IDENTITY,
            rate_per_tenant: limits::RATE_PER_TENANT,
        }
    }
}

/// One life of the daemon.
pub struct Broker {
    pub(super) clock: Arc<dyn Clock>,
    pub(super) fences: Arc<Registry>,
    pub(super) state: Store,
    pub(super) table: Table,
    pub(super) ledger: Ledger,
    pub(super) rules: ArcSwap<Rules>,
    pub(super) key: SigningKey,
    pub(super) epoch: u64,
    pub(super) settings: BrokerSettings,
    pub(super) sessions: Sessions,
    pub(super) denials: Denials,
    pub(super) reach: AudienceReach,
    pub(super) receipts: Receipts,
    pub(super) tickets: Tickets,
    /// When this life began.
    pub(super) began: LeaseTime,
    pub(super) reconnects: ReconnectLimiter,
    pub(super) rates: Rates,
    /// Nothing that widens is taken: the ledger's disk is nearly full.
    held: AtomicBool,
    /// One reload at a time.
    pub(super) reloading: Mutex<()>,
    /// Raised when a lock or new rules are in force, for what stays open.
    changes: watch::Sender<()>,
}

impl Broker {
    /// Puts one life together. The ledger is open and its epoch's record durable; the state is rebuilt.
    #[expect(clippy::too_many_arguments, reason = "the one place where all floors meet")]
    pub fn new(
        clock: Arc<dyn Clock>,
        fences: Arc<Registry>,
        state: Store,
        ledger: Ledger,
        rules: Rules,
        key: SigningKey,
        tickets: Tickets,
        epoch: u64,
        settings: BrokerSettings,
    ) -> Result<Arc<Self>, NoRandomness> {
        let reach = AudienceReach::default();
        reach.widen(rules.catalog());
        let (began, reconnects) = (clock.now().lease, ReconnectLimiter::new(clock.clone()));
        let rates = Rates::new(clock.clone(), settings.rate_per_identity, settings.rate_per_tenant);
        Ok(Arc::new(Broker {
            clock,
            fences,
            state,
            table: Table::default(),
            ledger,
            rules: ArcSwap::from_pointee(rules),
            key,
            epoch,
            settings,
            sessions: Sessions::default(),
            denials: Denials::default(),
            reach,
            receipts: Receipts::new()?,
            tickets,
            began,
            reconnects,
            rates,
            held: AtomicBool::new(false),
            reloading: Mutex::new(()),
            changes: watch::Sender::new(()),
        }))
    }

    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    pub fn settings(&self) -> &BrokerSettings {
        &self.settings
    }

    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Where an ending is in the ledger, and whether it is on disk. One that found everything ended already has no record of its
    /// own: it is as durable as all that was accepted before it.
    pub(super) fn durability(&self, record: Option<u64>) -> (u64, bool) {
        let index = record.unwrap_or_else(|| {
            let (waiting, _) = self.ledger.waiting();
            self.ledger.head().index.saturating_add(waiting as u64)
        });
        (index, self.ledger.is_durable(index))
    }

    pub fn fences(&self) -> &Registry {
        &self.fences
    }

    /// Resolves after each lock and each reload: what stays open must be decided again.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// Has everything that stays open decided again.
    pub(super) fn decide_again(&self) {
        self.changes.send_replace(());
    }

    pub fn rules(&self) -> Arc<Rules> {
        self.rules.load_full()
    }

    /// The public keys as a JWK Set.
    pub fn jwks(&self) -> String {
        self.key.public().to_jwks()
    }

    /// Sets the gauges of what is live, for `/metrics`.
    pub fn measure(&self) {
        metrics::gauge!("leasehold_leases_live").set(self.table.len() as f64);
        metrics::gauge!("leasehold_fences").set(self.fences.len() as f64);
        metrics::gauge!("leasehold_issuing_held").set(f64::from(u8::from(self.held.load(Ordering::Acquire))));
    }

    /// Holds everything that widens access, or lets it go on.
    pub fn hold(&self, held: bool) {
        self.held.store(held, Ordering::Release);
    }

    /// Refuses while everything that widens is held.
    pub(super) fn widening(&self) -> Result<(), Refusal> {
        if self.held.load(Ordering::Acquire) {
            return Err(Refusal::new(
                Reason::LedgerUnavailable,
                "the ledger's disk is nearly full, so nothing is given until it has room",
            )
            .fix("operators: free space, or move sealed segments away; endings still work"));
        }
        Ok(())
    }

    pub fn live_leases(&self) -> usize {
        self.table.len()
    }

    pub fn open_jobs(&self) -> usize {
        self.state.open_jobs().len()
    }
}

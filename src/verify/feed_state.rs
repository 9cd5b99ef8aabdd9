//! What the follower has written and every check reads: the state of the feed, its age, and a count of changes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::sync::watch;

use super::{fences::Fences, keys::PublicKeys};
use crate::{
    clock::{BootTime, Clock, LeaseTime, Now, Wall},
    fence::Seq,
    limits::{CLOCK_DIFFERENCE_MAX, FEED_STALE},
    reason::{Reason, Refusal},
    token::Claims,
};

/// Written by the follower alone; read by anyone, without waiting.
///
/// A check that saw version `v` and found everything in order need not look at the names again while the version is still
/// `v`: the follower raises it (Release) after each change, and a check reads it (Acquire) before it looks.
pub(super) struct FeedState {
    clock: Arc<dyn Clock>,
    status: ArcSwap<FeedStatus>,
    version: AtomicU64,
    /// When the last tick that came back was sent, in ms of our boottime. Stored with Release after the lowerings that came
    /// before its echo, so that whoever finds the feed fresh also sees those.
    tick_sent: AtomicU64,
    /// The daemon's wall clock minus our boottime, in ms, as of the same tick.
    lead: AtomicI64,
    changed: watch::Sender<()>,
    /// The last signed head of the ledger that a tick brought.
    ledger_head: ArcSwapOption<String>,
}

/// The state of the feed.
pub(super) struct FeedStatus {
    /// The newest life of the daemon that was ever seen.
    pub(super) epoch: Option<u64>,
    /// What is known of it, or why everything is refused.
    pub(super) view: Result<View, Refusal>,
}

impl FeedStatus {
    /// What is known of the daemon's present life, or why nothing is.
    pub(super) fn view(&self) -> Result<&View, Refusal> {
        self.view.as_ref().map_err(Clone::clone)
    }

    /// Whether none of the fences of a token was lowered since its lease took its stand, as far as this view says.
    pub(super) fn stands(&self, claims: &Claims) -> Result<(), Refusal> {
        if let Some(epoch) = self.epoch
            && epoch != claims.lh.epoch
        {
            return Err(of_epoch(claims.lh.epoch, epoch));
        }
        let fences = &self.view()?.fences;
        if let Some((at, seq)) = fences.lowered_after(claims.fences(), Seq(claims.lh.stood_at)) {
            let fence = claims.fence(at);
            return Err(
                Refusal::new(Reason::Revoked, format!("revoked: {fence}")).with("seq", seq.to_string())
            );
        }
        // After the fences: what is forgotten is first refused by its age. `iat` is in whole seconds, rounded down.
        let issued_by = Wall::from_seconds(claims.iat.saturating_add(1));
        if issued_by <= fences.complete_since() {
            return Err(Refusal::new(
                Reason::FeedStale,
                "the token is older than the lowerings that the fence feed still tells",
            )
            .fix("renew the lease"));
        }
        Ok(())
    }
}

/// A token of another life of the daemon than the feed's.
pub(super) fn of_epoch(token: u64, feed: u64) -> Refusal {
    Refusal::new(
        Reason::TokenEpoch,
        format!("the token is of epoch {token}, and leasehold is in epoch {feed}"),
    )
    .fix("obtain a new one")
}

/// All that is known of one life of the daemon.
#[derive(Clone)]
pub(super) struct View {
    pub(super) epoch: u64,
    pub(super) issuer: Arc<str>,
    pub(super) fences: Arc<Fences>,
    pub(super) keys: Arc<PublicKeys>,
}

/// The moment at which the feed is looked at, and found fresh.
#[derive(Clone, Copy, Debug)]
pub(super) struct FeedReading {
    /// One reading of our own clocks.
    pub(super) now: Now,
    /// The daemon's wall clock at that reading: what claims are held against. Ahead of the true one by at most the time that
    /// the last tick was under way.
    pub(super) daemon: Wall,
    /// From when on this feed is stale, unless another tick comes back.
    pub(super) stale_from: BootTime,
    pub(super) version: u64,
}

/// No tick has come back yet.
const NEVER: u64 = 0;

impl FeedState {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        let starting = Refusal::new(Reason::FeedStale, "the fence feed has not begun yet");
        FeedState {
            clock,
            status: ArcSwap::from_pointee(FeedStatus { epoch: None, view: Err(starting) }),
            version: AtomicU64::new(1),
            tick_sent: AtomicU64::new(NEVER),
            lead: AtomicI64::new(0),
            changed: watch::Sender::new(()),
            ledger_head: ArcSwapOption::empty(),
        }
    }

    pub(super) fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    pub(super) fn status(&self) -> arc_swap::Guard<Arc<FeedStatus>> {
        self.status.load()
    }

    /// Sees every change that comes after this call: another state, a lowering, a feed that is fresh again.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// The last signed head of the ledger that came.
    pub(super) fn ledger_head(&self) -> Option<Arc<String>> {
        self.ledger_head.load_full()
    }

    /// Finds the feed fresh, or says why nothing can be decided by it. A few atomic loads and one reading of the clock.
    pub(super) fn fresh(&self) -> Result<FeedReading, Refusal> {
        // The tick before the version: lowerings that came before a fresh tick are then never missed.
        let sent = self.tick_sent.load(Ordering::Acquire);
        let lead = self.lead.load(Ordering::Relaxed);
        let version = self.version.load(Ordering::Acquire);
        let now = self.clock.now();
        if sent == NEVER {
            return Err(match &self.status().view {
                Err(refusal) => refusal.clone(),
                Ok(_) => Refusal::new(Reason::FeedStale, "the fence feed has not been answered yet"),
            });
        }
        let age = now.boot.since(BootTime(sent));
        if age > FEED_STALE {
            return Err(Refusal::new(
                Reason::FeedStale,
                format!(
                    "the fence feed is {:.1} s old: whether this was revoked cannot be known",
                    age.as_secs_f64()
                ),
            )
            .fix("check the connection between this server and leasehold"));
        }
        let daemon = Wall(now.boot.0.saturating_add_signed(lead));
        if Duration::from_millis(now.wall.0.abs_diff(daemon.0)) > CLOCK_DIFFERENCE_MAX {
            return Err(Refusal::new(
                Reason::ClockDifference,
                format!("this server's clock says {} and leasehold's {daemon}", now.wall),
            )
            .fix("set both clocks by the same source"));
        }
        let stale_from = BootTime(sent).plus(FEED_STALE).plus(Duration::from_millis(1));
        Ok(FeedReading { now, daemon, stale_from, version })
    }

    // ---------- the follower's ----------

    /// Decides by this view from now on. One of another life is not fresh before a tick has come back from it.
    pub(super) fn publish(&self, view: View) {
        if self.status().epoch != Some(view.epoch) {
            self.tick_sent.store(NEVER, Ordering::Release);
        }
        self.status.store(Arc::new(FeedStatus { epoch: Some(view.epoch), view: Ok(view) }));
        self.touch();
    }

    /// Refuses everything from now on.
    pub(super) fn refuse(&self, epoch: Option<u64>, refusal: Refusal) {
        self.tick_sent.store(NEVER, Ordering::Release);
        self.status.store(Arc::new(FeedStatus { epoch, view: Err(refusal) }));
        self.touch();
    }

    /// Says that something changed. After the change.
    pub(super) fn touch(&self) {
        self.version.fetch_add(1, Ordering::Release);
        self.changed.send_replace(());
    }

    /// Keeps a signed head of the ledger.
    pub(super) fn witness(&self, head: String) {
        if !head.is_empty() && self.ledger_head.load().as_deref().map(String::as_str) != Some(head.as_str()) {
            self.ledger_head.store(Some(Arc::new(head)));
        }
    }

    /// Takes the echo of a tick: when it was sent, and what the daemon's clock said since.
    pub(super) fn ticked(&self, sent: BootTime, daemon: Wall) {
        let was_fresh = self.fresh().is_ok();
        self.lead.store(daemon.0.cast_signed().saturating_sub(sent.0.cast_signed()), Ordering::Relaxed);
        self.tick_sent.store(sent.0.max(1), Ordering::Release);
        if !was_fresh {
            self.changed.send_replace(());
        }
    }
}

impl FeedReading {
    /// The moment of the lease timeline at which the daemon's wall clock comes to `end`, or the feed goes stale.
    pub(super) fn until(&self, end: Wall) -> LeaseTime {
        let left = end.since(self.daemon).min(self.stale_from.since(self.now.boot));
        self.now.lease.plus(left)
    }
}

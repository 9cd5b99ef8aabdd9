//! The state of the feed, which the follower writes and every check reads.

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

/// The state of the feed, its age, and a version that counts changes. Only the follower writes it, and readers never wait.
///
/// The follower raises the version (Release) after each change. A check reads the version (Acquire) before it looks at fences.
/// So a check that found no lowered fence at version `v` need not look again while the version is `v`.
pub(super) struct FeedState {
    clock: Arc<dyn Clock>,
    status: ArcSwap<FeedStatus>,
    version: AtomicU64,
    /// When the follower sent the last tick that the daemon has echoed, in ms of our boot time. It is stored with Release after
    /// the lowerings that came before the echo. So a reader that finds a fresh feed also sees these lowerings.
    tick_sent: AtomicU64,
    /// The daemon's wall clock minus our boot time, in ms, at that tick.
    lead: AtomicI64,
    changed: watch::Sender<()>,
    /// The last signed head of the ledger. It came with a tick.
    ledger_head: ArcSwapOption<String>,
}

/// The known state for checks, or the reason why no check is possible.
pub(super) struct FeedStatus {
    /// The newest epoch of the daemon that the follower has seen.
    pub(super) epoch: Option<u64>,
    /// The known state of that epoch, or the refusal for every request.
    pub(super) view: Result<View, Refusal>,
}

impl FeedStatus {
    /// Returns the known state of the daemon's present epoch, or the refusal for every request.
    pub(super) fn view(&self) -> Result<&View, Refusal> {
        self.view.as_ref().map_err(Clone::clone)
    }

    /// Checks that the token is of this epoch, and that none of its fences was lowered after the decision on its lease
    /// (`stood_at`).
    pub(super) fn check(&self, claims: &Claims) -> Result<(), Refusal> {
        if let Some(epoch) = self.epoch
            && epoch != claims.lh.epoch
        {
            return Err(other_epoch(claims.lh.epoch, epoch));
        }
        let fences = &self.view()?.fences;
        if let Some((at, seq)) = fences.lowered_after(claims.fences(), Seq(claims.lh.stood_at)) {
            let fence = claims.fence(at);
            return Err(
                Refusal::new(Reason::Revoked, format!("revoked: {fence}")).with("seq", seq.to_string())
            );
        }
        // Lowerings before `complete_since` may be forgotten, so older tokens are refused. `iat` is rounded down to seconds.
        let issued_at_latest = Wall::from_seconds(claims.iat.saturating_add(1));
        if issued_at_latest <= fences.complete_since() {
            return Err(Refusal::new(
                Reason::FeedStale,
                "the token was issued before the time from which this server knows all revocations",
            )
            .fix("renew the lease"));
        }
        Ok(())
    }
}

/// Makes the refusal of a token whose epoch differs from the feed's epoch.
pub(super) fn other_epoch(token: u64, feed: u64) -> Refusal {
    Refusal::new(
        Reason::TokenEpoch,
        format!("the token is of epoch {token}, and leasehold is in epoch {feed}"),
    )
    .fix("obtain a new one")
}

/// Everything that is known of one epoch of the daemon.
#[derive(Clone)]
pub(super) struct View {
    pub(super) epoch: u64,
    pub(super) issuer: Arc<str>,
    pub(super) fences: Arc<Fences>,
    pub(super) keys: Arc<PublicKeys>,
}

/// One reading of a fresh feed.
#[derive(Clone, Copy, Debug)]
pub(super) struct FeedReading {
    /// The reading of our clocks.
    pub(super) now: Now,
    /// The daemon's wall clock at that reading. Claims are compared with it. It may be ahead of the real time of the daemon's
    /// clock, by at most the round trip of the last tick.
    pub(super) daemon: Wall,
    /// When the feed becomes stale, unless another tick is echoed before.
    pub(super) stale_from: BootTime,
    pub(super) version: u64,
}

/// The value of `tick_sent` before the first echo.
const NEVER: u64 = 0;

impl FeedState {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        let starting = Refusal::new(Reason::FeedStale, "the fence feed has not started yet");
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

    /// Returns a receiver for every change after this call: another status, a lowering, or a feed that is fresh again.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Returns the last signed head of the ledger.
    pub(super) fn ledger_head(&self) -> Option<Arc<String>> {
        self.ledger_head.load_full()
    }

    /// Reads the feed if it is fresh. Otherwise returns why no decision is possible. Costs a few atomic loads and one reading
    /// of the clock.
    pub(super) fn read(&self) -> Result<FeedReading, Refusal> {
        // The tick is read before the version, so that lowerings before a fresh tick are never missed.
        let sent = self.tick_sent.load(Ordering::Acquire);
        let lead = self.lead.load(Ordering::Relaxed);
        let version = self.version.load(Ordering::Acquire);
        let now = self.clock.now();
        if sent == NEVER {
            return Err(match &self.status().view {
                Err(refusal) => refusal.clone(),
                Ok(_) => Refusal::new(
                    Reason::FeedStale,
                    "the daemon has not confirmed yet that the fence feed is up to date",
                ),
            });
        }
        let age = now.boot.since(BootTime(sent));
        if age > FEED_STALE {
            return Err(Refusal::new(
                Reason::FeedStale,
                format!(
                    "the fence feed is {:.1} s old, so it is unknown whether this was revoked",
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

    // ---------- for the follower ----------

    /// Sets the view for decisions from now on. After a change of epoch, the feed is stale until a tick is echoed.
    pub(super) fn publish(&self, view: View) {
        if self.status().epoch != Some(view.epoch) {
            self.tick_sent.store(NEVER, Ordering::Release);
        }
        self.status.store(Arc::new(FeedStatus { epoch: Some(view.epoch), view: Ok(view) }));
        self.note_change();
    }

    /// Refuses everything from now on.
    pub(super) fn refuse(&self, epoch: Option<u64>, refusal: Refusal) {
        self.tick_sent.store(NEVER, Ordering::Release);
        self.status.store(Arc::new(FeedStatus { epoch, view: Err(refusal) }));
        self.note_change();
    }

    /// Reports a change. Call it after the change.
    pub(super) fn note_change(&self) {
        self.version.fetch_add(1, Ordering::Release);
        self.changed.send_replace(());
    }

    /// Stores a signed head of the ledger.
    pub(super) fn set_ledger_head(&self, head: String) {
        if !head.is_empty() && self.ledger_head.load().as_deref().map(String::as_str) != Some(head.as_str()) {
            self.ledger_head.store(Some(Arc::new(head)));
        }
    }

    /// Notes the echo of a tick: when the tick was sent, and the time on the daemon's clock.
    pub(super) fn note_tick(&self, sent: BootTime, daemon: Wall) {
        let was_fresh = self.read().is_ok();
        self.lead.store(daemon.0.cast_signed().saturating_sub(sent.0.cast_signed()), Ordering::Relaxed);
        self.tick_sent.store(sent.0.max(1), Ordering::Release);
        if !was_fresh {
            self.changed.send_replace(());
        }
    }
}

impl FeedReading {
    /// Returns when the daemon's wall clock reaches `end` or the feed becomes stale, the earlier of both.
    pub(super) fn until(&self, end: Wall) -> LeaseTime {
        let left = end.since(self.daemon).min(self.stale_from.since(self.now.boot));
        self.now.lease.plus(left)
    }
}

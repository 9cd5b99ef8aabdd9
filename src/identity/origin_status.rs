//! The state of an identity source that asks over the network, also between its retries.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::{
    bundle::TrustBundles,
    source::{Published, Trust},
    source_state::{Outage, SourceState},
    svid::X509Svid,
};
use crate::{
    clock::{Clock, Wall},
    limits,
    log_budget::LogBudget,
};

/// The last good answer of an origin. Roots that expire are dropped, and everything is dropped after too long an
/// outage. The source that owns this status decides what to request and how to read an answer.
pub(super) struct OriginStatus {
    /// The name of the origin in log lines, such as `the SPIFFE agent`.
    origin: String,
    clock: Arc<dyn Clock>,
    svid_life_max: Duration,
    published: Published,
    outage: Mutex<Outage>,
    retry: Notify,
    log: LogBudget,
}

impl OriginStatus {
    /// Makes a status that shows `shown` until the first answer.
    pub(super) fn new(
        origin: String,
        shown: TrustBundles,
        standing: SourceState,
        outage_max: Duration,
        clock: Arc<dyn Clock>,
    ) -> Self {
        OriginStatus {
            origin,
            log: LogBudget::new(limits::IDENTITY_LINES_LOGGED, clock.clone()),
            clock,
            svid_life_max: shown.svid_life_max(),
            published: Published::new(None, shown, standing),
            outage: Mutex::new(Outage::new(outage_max)),
            retry: Notify::new(),
        }
    }

    pub(super) fn current(&self) -> Arc<Trust> {
        self.published.current()
    }

    pub(super) fn watch(&self) -> watch::Receiver<Arc<Trust>> {
        self.published.watch()
    }

    /// Returns bundles without roots.
    pub(super) fn no_bundles(&self) -> TrustBundles {
        TrustBundles::empty().with_svid_life_max(self.svid_life_max)
    }

    /// Whether a line about the origin may be logged. Repeated lines must not fill the disk.
    pub(super) fn may_log(&self) -> bool {
        let admitted = self.log.admit();
        if let Some(left_out @ 1..) = admitted {
            tracing::warn!(
                origin = self.origin,
                left_out,
                "some lines about this origin were left out of the log, because there were too many"
            );
        }
        admitted.is_some()
    }

    // ---------- answers ----------

    pub(super) fn replace(&self, svid: Option<Arc<X509Svid>>, bundles: TrustBundles, standing: SourceState) {
        self.published.replace(svid, bundles, standing);
    }

    /// Publishes another state. The SVID and the bundles stay.
    pub(super) fn set_state(&self, standing: SourceState) {
        self.published.set_state(standing);
    }

    /// Ends the outage: the origin gave a usable answer.
    pub(super) fn end_outage(&self) {
        self.outage().end();
    }

    /// Begins an outage, unless an outage is under way. Returns the time of its begin.
    pub(super) fn begin_outage(&self) -> Wall {
        let now = self.clock.now();
        self.outage().begin(now.wall, now.boot)
    }

    // ---------- retries ----------

    /// Ends the present wait for a retry.
    pub(super) fn retry_now(&self) {
        self.retry.notify_waiters();
    }

    /// Waits until [`OriginStatus::retry_now`] is called.
    pub(super) async fn retry_requested(&self) {
        self.retry.notified().await;
    }

    /// Waits before a retry, or until one is requested.
    pub(super) async fn wait_to_retry(&self, wait: Duration) {
        tokio::select! {
            () = self.clock.sleep(wait) => {}
            () = self.retry_requested() => {}
        }
    }

    /// Runs the endless `polling` until `shutdown`, and meanwhile drops what expires.
    pub(super) async fn follow(&self, polling: impl Future<Output = ()>, shutdown: CancellationToken) {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = polling => {}
            () = self.drop_expired() => {}
        }
    }

    /// Drops what expires, and everything when the outage has lasted too long.
    async fn drop_expired(&self) {
        let mut is_reported = false;
        loop {
            self.clock.sleep(limits::IDENTITY_POLL).await;
            let now = self.clock.now().wall;
            let trust = self.current();
            if let Some(bundles) = trust.bundles.without_expired(now) {
                if self.may_log() {
                    tracing::warn!(origin = self.origin, %bundles, "roots expired and were dropped");
                }
                self.replace(trust.svid.clone(), bundles, trust.standing.clone());
            }
            self.give_up_if_overdue();
            let expired = trust.svid.as_ref().filter(|svid| now >= svid.not_after());
            if let Some(svid) = expired
                && !is_reported
                && self.may_log()
            {
                tracing::error!(%svid, "our own SVID has expired and was not replaced: no peer will accept it");
            }
            is_reported = expired.is_some();
        }
    }

    fn give_up_if_overdue(&self) {
        let Some(since) = self.outage().overdue_since(self.clock.now().boot) else { return };
        let trust = self.current();
        let why = match &trust.standing {
            SourceState::Awaited { why }
            | SourceState::Stale { why, .. }
            | SourceState::Ended { why, .. } => why.clone(),
            SourceState::Good | SourceState::GivenUp { .. } => return,
        };
        if self.may_log() {
            tracing::error!(origin = self.origin, %since, %why, "it failed for longer than the limit: its identities and roots are no longer used");
        }
        self.replace(None, self.no_bundles(), SourceState::GivenUp { since, why });
    }

    fn outage(&self) -> MutexGuard<'_, Outage> {
        self.outage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

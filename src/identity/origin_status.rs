//! What is shown of an origin that has to be asked.

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
};

/// The last word of an origin: without what expires meanwhile, and no longer than it may fail. What is asked, and what an answer
/// means, is for the source whose part this is.
pub(super) struct OriginStatus {
    /// What it is, for people: `the SPIFFE agent`.
    origin: String,
    clock: Arc<dyn Clock>,
    svid_life_max: Duration,
    published: Published,
    outage: Mutex<Outage>,
    again: Notify,
}

impl OriginStatus {
    /// With what is shown until the first answer.
    pub(super) fn new(
        origin: String,
        shown: TrustBundles,
        standing: SourceState,
        outage_max: Duration,
        clock: Arc<dyn Clock>,
    ) -> Self {
        OriginStatus {
            origin,
            clock,
            svid_life_max: shown.svid_life_max(),
            published: Published::new(None, shown, standing),
            outage: Mutex::new(Outage::new(outage_max)),
            again: Notify::new(),
        }
    }

    pub(super) fn current(&self) -> Arc<Trust> {
        self.published.current()
    }

    pub(super) fn watch(&self) -> watch::Receiver<Arc<Trust>> {
        self.published.watch()
    }

    /// No bundles yet, or any more.
    pub(super) fn nobody(&self) -> TrustBundles {
        TrustBundles::empty().with_svid_life_max(self.svid_life_max)
    }

    // ---------- what the origin says ----------

    pub(super) fn replace(&self, svid: Option<Arc<X509Svid>>, bundles: TrustBundles, standing: SourceState) {
        self.published.replace(svid, bundles, standing);
    }

    /// Says how it stands. What is shown stays.
    pub(super) fn stand(&self, standing: SourceState) {
        self.published.stand(standing);
    }

    /// It answered what can be used.
    pub(super) fn answered(&self) {
        self.outage().over();
    }

    /// It fails; answers since when.
    pub(super) fn failing(&self) -> Wall {
        let now = self.clock.now();
        self.outage().since(now.wall, now.boot)
    }

    // ---------- when it is asked ----------

    /// Has it asked at once, where it waits to be.
    pub(super) fn ask_now(&self) {
        self.again.notify_waiters();
    }

    /// Resolves when somebody wants it asked at once.
    pub(super) async fn wanted_now(&self) {
        self.again.notified().await;
    }

    /// Resolves when it is asked again after a wait.
    pub(super) async fn wanted_after(&self, wait: Duration) {
        tokio::select! {
            () = self.clock.sleep(wait) => {}
            () = self.wanted_now() => {}
        }
    }

    /// Asks, which never ends, until `shutdown`, and drops what expires meanwhile.
    pub(super) async fn follow(&self, asking: impl Future<Output = ()>, shutdown: CancellationToken) {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = asking => {}
            () = self.tend() => {}
        }
    }

    /// Drops what expires, and everything once the origin has failed for too long.
    async fn tend(&self) {
        let mut said_expired = false;
        loop {
            self.clock.sleep(limits::IDENTITY_POLL).await;
            let now = self.clock.now().wall;
            let trust = self.current();
            if let Some(bundles) = trust.bundles.without_expired(now) {
                tracing::warn!(origin = self.origin, %bundles, "roots expired and were dropped");
                self.replace(trust.svid.clone(), bundles, trust.standing.clone());
            }
            self.give_up_in_time();
            let expired = trust.svid.as_ref().filter(|svid| now >= svid.not_after());
            if let Some(svid) = expired
                && !said_expired
            {
                tracing::error!(%svid, "our own SVID has expired and was not replaced: nobody will accept it");
            }
            said_expired = expired.is_some();
        }
    }

    fn give_up_in_time(&self) {
        let Some(since) = self.outage().too_long(self.clock.now().boot) else { return };
        let trust = self.current();
        let why = match &trust.standing {
            SourceState::Awaited { why }
            | SourceState::Stale { why, .. }
            | SourceState::Ended { why, .. } => why.clone(),
            SourceState::Good | SourceState::GivenUp { .. } => return,
        };
        tracing::error!(origin = self.origin, %since, %why, "it failed for longer than the limit: nobody is trusted by its word any more");
        self.replace(None, self.nobody(), SourceState::GivenUp { since, why });
    }

    fn outage(&self) -> MutexGuard<'_, Outage> {
        self.outage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

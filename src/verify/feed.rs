//! The follower of the fence feed. It connects, reads, sends ticks, and reconnects.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use super::{
    feed_state::{FeedState, View},
    session::{FeedError, FeedPosition},
    subscription::{FeedEvent, FeedSubscription},
};
use crate::{
    backoff::Backoff,
    clock::{Clock, LeaseTime},
    limits::{FEED_RETRY_MAX, FEED_RETRY_MIN},
    link::Connector,
    name::SpiffeId,
    reason::{Reason, Refusal},
};

/// How often the follower removes old lowerings.
const PRUNE: Duration = Duration::from_secs(60);

/// The only writer of the [`FeedState`].
///
/// If a feed is lost, the state stays and ages. If a new connection succeeds within the stale limit, nothing is refused. A feed
/// that contradicts the known state makes it invalid at once. A connection ends with its SVID, so after a rotation a second
/// feed is opened beside the first. It takes over when it knows everything that the first feed knows.
pub(super) struct Follower {
    connector: Connector,
    audience: SpiffeId,
    clock: Arc<dyn Clock>,
    feed_state: Arc<FeedState>,
    newest: FeedPosition,
}

impl Follower {
    pub(super) fn new(
        connector: Connector,
        audience: SpiffeId,
        clock: Arc<dyn Clock>,
        feed_state: Arc<FeedState>,
    ) -> Self {
        Follower { connector, audience, clock, feed_state, newest: FeedPosition::default() }
    }

    /// Follows the feed until `shutdown`. When the follower returns, is dropped or panics, everything is refused.
    pub(super) async fn run(mut self, shutdown: CancellationToken) {
        let _refuse_at_end = RefuseOnDrop(self.feed_state.clone());
        let mut backoff = Backoff::new(FEED_RETRY_MIN, FEED_RETRY_MAX);
        loop {
            let reason = tokio::select! {
                reason = self.follow(&mut backoff) => reason,
                () = shutdown.cancelled() => return,
            };
            self.note_error(&reason);
            tokio::select! {
                () = self.clock.sleep(backoff.next_wait()) => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    fn note_error(&self, reason: &FeedError) {
        tracing::warn!(error = %reason, "the fence feed was interrupted: reconnecting");
        if !reason.voids() {
            return;
        }
        let refusal = match reason {
            FeedError::OlderEpoch { offered, known } => Refusal::new(
                Reason::TokenEpoch,
                format!("the daemon says that it is in epoch {offered}, and epoch {known} was seen before"),
            ),
            _ => Refusal::new(Reason::FeedStale, "the fence feed is incomplete: it is being read again"),
        };
        self.feed_state.refuse(self.newest.epoch, refusal);
    }

    /// Follows the feed until an error, over one or more subscriptions.
    async fn follow(&mut self, backoff: &mut Backoff) -> FeedError {
        match self.subscribe(backoff).await {
            Err(reason) => reason,
            Ok(never) => match never {},
        }
    }

    async fn subscribe(&mut self, backoff: &mut Backoff) -> Result<Infallible, FeedError> {
        let clock = self.clock.clone();
        let mut feed =
            FeedSubscription::open(&self.connector, &self.audience, clock.clone(), self.newest).await?;
        let mut succession = Succession::default();
        let mut prune_at = clock.now().lease.plus(PRUNE);
        loop {
            let news = tokio::select! {
                // The next feed is polled first. Otherwise the present feed could get ahead of the next feed.
                biased;
                next = succession.next() => {
                    if let Some(next) = self.succeed(next, &mut succession)? {
                        feed = next;
                        backoff.reset();
                    }
                    continue;
                }
                news = feed.next() => news,
            };
            self.newest = feed.newest();
            succession.note_followed(self.newest);
            match news? {
                FeedEvent::Began { epoch } => self.forget_other_epochs(epoch),
                FeedEvent::Complete(view) => self.complete(view),
                FeedEvent::Lowered => self.feed_state.note_change(),
                FeedEvent::Ticked { sent, daemon, ledger_head } => {
                    self.feed_state.note_tick(sent, daemon);
                    self.feed_state.set_ledger_head(ledger_head);
                    backoff.reset();
                    let now = clock.now().lease;
                    if now >= prune_at {
                        feed.prune(daemon);
                        prune_at = now.plus(PRUNE);
                    }
                    let own = self.connector.own_svid_digest();
                    if own.is_some() && own != feed.svid() {
                        succession.begin(self, now);
                    }
                }
            }
        }
    }

    fn complete(&self, view: View) {
        tracing::info!(epoch = view.epoch, lowered = view.fences.len(), "following the fence feed");
        self.feed_state.publish(view);
    }

    /// Switches to a successor that is up to date. If it could not be opened, schedules a retry.
    fn succeed(
        &mut self,
        next: Result<Successor, FeedError>,
        succession: &mut Succession,
    ) -> Result<Option<FeedSubscription>, FeedError> {
        match next {
            Ok(Successor { feed, view }) => {
                self.newest = feed.newest();
                self.complete(view);
                *succession = Succession::default();
                Ok(Some(feed))
            }
            Err(reason) if reason.voids() => Err(reason),
            Err(reason) => {
                tracing::warn!(error = %reason, "the fence feed cannot be opened with our rotated SVID yet: trying again");
                succession.retry_at = Some(self.clock.now().lease.plus(FEED_RETRY_MAX));
                Ok(None)
            }
        }
    }

    /// Refuses everything if a new epoch of the daemon has begun, because the feed of the old epoch is no longer valid.
    fn forget_other_epochs(&self, epoch: u64) {
        let known = self.feed_state.status().epoch;
        if known.is_some_and(|known| known != epoch) {
            let starting = Refusal::new(
                Reason::FeedStale,
                format!("leasehold has restarted, in epoch {epoch}: its fence feed is being read"),
            );
            self.feed_state.refuse(Some(epoch), starting);
        }
    }
}

/// The opening of the feed that will replace the present feed.
#[derive(Default)]
struct Succession {
    opening: Option<BoxFuture<'static, Result<Successor, FeedError>>>,
    /// The position of the present feed.
    followed: Arc<AtomicU64>,
    /// When the next try may begin after a failure.
    retry_at: Option<LeaseTime>,
}

/// A feed that is complete, has echoed a tick, and knows everything that the present feed knows.
struct Successor {
    feed: FeedSubscription,
    view: View,
}

impl Succession {
    fn note_followed(&self, newest: FeedPosition) {
        self.followed.store(newest.seq.0, Ordering::Relaxed);
    }

    /// Begins to open the successor, unless that is already under way or has just failed.
    fn begin(&mut self, follower: &Follower, now: LeaseTime) {
        if self.opening.is_some() || self.retry_at.is_some_and(|at| now < at) {
            return;
        }
        let (connector, audience) = (follower.connector.clone(), follower.audience.clone());
        let (clock, newest, followed) = (follower.clock.clone(), follower.newest, self.followed.clone());
        self.opening = Some(Box::pin(async move {
            let mut feed = FeedSubscription::open(&connector, &audience, clock, newest).await?;
            let (mut complete, mut ticks) = (None, false);
            loop {
                match feed.next().await? {
                    // The epoch of the present feed has ended, so that feed will end too.
                    FeedEvent::Began { epoch } if Some(epoch) != newest.epoch => {
                        return Err(FeedError::Closed);
                    }
                    FeedEvent::Began { .. } | FeedEvent::Lowered => {}
                    FeedEvent::Complete(view) => complete = Some(view),
                    FeedEvent::Ticked { .. } => ticks = true,
                }
                // No lowering of the present feed may be forgotten, not even for a moment.
                if ticks
                    && feed.newest().seq.0 >= followed.load(Ordering::Relaxed)
                    && let Some(view) = complete.take()
                {
                    return Ok(Successor { feed, view });
                }
            }
        }));
    }

    /// Waits until the successor is open or has failed. Cancel safe.
    async fn next(&mut self) -> Result<Successor, FeedError> {
        let Some(opening) = &mut self.opening else { return std::future::pending().await };
        let opened = opening.await;
        self.opening = None;
        opened
    }
}

/// Refuses everything when the follower ends, because revocations arrive only through the follower.
struct RefuseOnDrop(Arc<FeedState>);

impl Drop for RefuseOnDrop {
    fn drop(&mut self) {
        let epoch = self.0.status().epoch;
        self.0.refuse(epoch, Refusal::new(Reason::FeedStale, "the fence feed is no longer followed"));
    }
}

#[cfg(test)]
#[path = "feed_tests.rs"]
mod tests;

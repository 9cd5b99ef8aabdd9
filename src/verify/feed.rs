//! The follower of the fence feed: connects, listens, ticks, and comes back when it was lost.

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

/// Between two looks for lowerings to forget.
const PRUNE: Duration = Duration::from_secs(60);

/// The one writer of the [`FeedState`].
///
/// A feed that was lost leaves the state as it is, to grow old: within the stale limit a new connection takes over without
/// a refusal. One that cannot be true empties the state at once. A connection ends with the SVID that it was made with, so
/// that a rotation opens a second feed beside the first, which takes over once it knows all that the first does.
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

    /// Follows until the shutdown. When it returns, is dropped, or panics, everything is refused.
    pub(super) async fn run(mut self, shutdown: CancellationToken) {
        let _closing = RefuseOnDrop(self.feed_state.clone());
        let mut backoff = Backoff::new(FEED_RETRY_MIN, FEED_RETRY_MAX);
        loop {
            let reason = tokio::select! {
                reason = self.follow(&mut backoff) => reason,
                () = shutdown.cancelled() => return,
            };
            self.broke(&reason);
            tokio::select! {
                () = self.clock.sleep(backoff.next_wait()) => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    fn broke(&self, reason: &FeedError) {
        tracing::warn!(error = %reason, "the fence feed broke off: connecting again");
        if !reason.voids() {
            return;
        }
        let refusal = match reason {
            FeedError::OlderEpoch { offered, known } => Refusal::new(
                Reason::TokenEpoch,
                format!("the daemon says that it is in epoch {offered}, and epoch {known} was seen before"),
            ),
            _ => Refusal::new(Reason::FeedStale, "the fence feed is not complete: it is being read anew"),
        };
        self.feed_state.refuse(self.newest.epoch, refusal);
    }

    /// One subscription after the other, from a connection to a break.
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
                // First, so that what it came up to is not overtaken before it is looked at.
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
            succession.followed(self.newest);
            match news? {
                FeedEvent::Began { epoch } => self.forget_other_epochs(epoch),
                FeedEvent::Complete(view) => self.complete(view),
                FeedEvent::Lowered => self.feed_state.touch(),
                FeedEvent::Ticked { sent, daemon, ledger_head } => {
                    self.feed_state.ticked(sent, daemon);
                    self.feed_state.witness(ledger_head);
                    backoff.reset();
                    let now = clock.now().lease;
                    if now >= prune_at {
                        feed.prune(daemon);
                        prune_at = now.plus(PRUNE);
                    }
                    let own = self.connector.own_svid();
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

    /// Goes over to a feed that has come up to the one that is followed; where it could not be had, it is tried again.
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
                tracing::warn!(error = %reason, "no fence feed under our rotated SVID yet: trying again");
                succession.again_at = Some(self.clock.now().lease.plus(FEED_RETRY_MAX));
                Ok(None)
            }
        }
    }
    /// A new life of the daemon has begun: what the old one said is over, before anything of the new one is known.
    fn forget_other_epochs(&self, epoch: u64) {
        let known = self.feed_state.status().epoch;
        if known.is_some_and(|known| known != epoch) {
            let starting = Refusal::new(
                Reason::FeedStale,
                format!("leasehold has started anew, in epoch {epoch}: its fence feed is being read"),
            );
            self.feed_state.refuse(Some(epoch), starting);
        }
    }
}

/// The feed that is to take over from the one that is followed, while it is opened.
#[derive(Default)]
struct Succession {
    opening: Option<BoxFuture<'static, Result<Successor, FeedError>>>,
    /// The place up to which the feed that is followed has been heard.
    followed: Arc<AtomicU64>,
    /// After a failure, not before this moment.
    again_at: Option<LeaseTime>,
}

/// A feed that is complete, has ticked, and knows all that the one before it does.
struct Successor {
    feed: FeedSubscription,
    view: View,
}

impl Succession {
    fn followed(&self, newest: FeedPosition) {
        self.followed.store(newest.seq.0, Ordering::Relaxed);
    }

    /// Begins to open it, unless that is under way or has just failed.
    fn begin(&mut self, follower: &Follower, now: LeaseTime) {
        if self.opening.is_some() || self.again_at.is_some_and(|at| now < at) {
            return;
        }
        let (connector, audience) = (follower.connector.clone(), follower.audience.clone());
        let (clock, newest, followed) = (follower.clock.clone(), follower.newest, self.followed.clone());
        self.opening = Some(Box::pin(async move {
            let mut feed = FeedSubscription::open(&connector, &audience, clock, newest).await?;
            let (mut complete, mut ticks) = (None, false);
            loop {
                match feed.next().await? {
                    // The feed that is followed is of a life that is over, and will break off by itself.
                    FeedEvent::Began { epoch } if Some(epoch) != newest.epoch => {
                        return Err(FeedError::Closed);
                    }
                    FeedEvent::Began { .. } | FeedEvent::Lowered => {}
                    FeedEvent::Complete(view) => complete = Some(view),
                    FeedEvent::Ticked { .. } => ticks = true,
                }
                // What the followed one has heard must not be forgotten, were it for a moment.
                if ticks
                    && feed.newest().seq.0 >= followed.load(Ordering::Relaxed)
                    && let Some(view) = complete.take()
                {
                    return Ok(Successor { feed, view });
                }
            }
        }));
    }

    /// Resolves when it is open, or could not be opened. Cancel safe.
    async fn next(&mut self) -> Result<Successor, FeedError> {
        let Some(opening) = &mut self.opening else { return std::future::pending().await };
        let opened = opening.await;
        self.opening = None;
        opened
    }
}

/// Whatever ends the follower: nobody hears of revocations any more, so nothing is let through.
struct RefuseOnDrop(Arc<FeedState>);

impl Drop for RefuseOnDrop {
    fn drop(&mut self) {
        let epoch = self.0.status().epoch;
        self.0.refuse(epoch, Refusal::new(Reason::FeedStale, "the fence feed is not followed any more"));
    }
}

#[cfg(test)]
#[path = "feed_tests.rs"]
mod tests;

//! The follower of the fence feed: connects, listens, ticks, and comes back when it was lost.

use std::{sync::Arc, time::Duration};

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

pub(super) use super::session::Break;
use super::{
    board::{Board, View},
    keys::Keys,
    session::{Heard, Newest, Session},
};
use crate::{
    clock::{Clock, LeaseTime},
    limits::{FEED_RETRY_MAX, FEED_RETRY_MIN, FEED_STALE, FEED_TICKS_MAX, TICK},
    link::Connector,
    name::SpiffeId,
    proto::v1::{WatchFencesRequest, verifier_service_client::VerifierServiceClient},
    reason::{Reason, Refusal},
    secret::random_u128,
};

/// Between two looks for lowerings to forget.
const PRUNE: Duration = Duration::from_secs(60);

/// The one writer of the [`Board`].
///
/// A feed that was lost leaves the board as it is, to grow old: within the stale limit a new connection takes over without
/// a refusal, as when our SVID was rotated. One that cannot be true empties the board at once.
pub(super) struct Follower {
    connector: Connector,
    audience: SpiffeId,
    clock: Arc<dyn Clock>,
    board: Arc<Board>,
    newest: Newest,
}

impl Follower {
    pub(super) fn new(
        connector: Connector,
        audience: SpiffeId,
        clock: Arc<dyn Clock>,
        board: Arc<Board>,
    ) -> Self {
        Follower { connector, audience, clock, board, newest: Newest::default() }
    }

    /// Follows until the shutdown. When it returns, is dropped, or panics, everything is refused.
    pub(super) async fn run(mut self, shutdown: CancellationToken) {
        let _closing = RefuseAtLast(self.board.clone());
        let mut retries = 0;
        loop {
            let reason = tokio::select! {
                reason = self.follow(&mut retries) => reason,
                () = shutdown.cancelled() => return,
            };
            self.broke(&reason);
            tokio::select! {
                () = self.clock.sleep(back_off(retries)) => {}
                () = shutdown.cancelled() => return,
            }
            retries = retries.saturating_add(1);
        }
    }

    fn broke(&self, reason: &Break) {
        tracing::warn!(error = %reason, "the fence feed broke off: connecting again");
        if !reason.voids() {
            return;
        }
        let refusal = match reason {
            Break::OlderEpoch { offered, known } => Refusal::new(
                Reason::TokenEpoch,
                format!("the daemon says that it is in epoch {offered}, and epoch {known} was seen before"),
            ),
            _ => Refusal::new(Reason::FeedStale, "the fence feed is not complete: it is being read anew"),
        };
        self.board.refuse(self.newest.epoch, refusal);
    }

    /// One subscription, from the connection to its break.
    async fn follow(&mut self, retries: &mut u32) -> Break {
        match self.subscribe(retries).await {
            Err(reason) => reason,
            Ok(never) => match never {},
        }
    }

    async fn subscribe(&mut self, retries: &mut u32) -> Result<std::convert::Infallible, Break> {
        let clock = self.clock.clone();
        let mut daemon = VerifierServiceClient::new(self.connector.connected_channel().await?);
        let (requests, outgoing) = mpsc::channel(FEED_TICKS_MAX);
        let opening = WatchFencesRequest { audience: self.audience.to_string(), tick: 0 };
        requests.try_send(opening).map_err(|_| Break::Closed)?;
        let mut feed = tokio::select! {
            feed = daemon.watch_fences(ReceiverStream::new(outgoing)) => feed?.into_inner(),
            () = clock.sleep(FEED_STALE) => return Err(Break::Silent(FEED_STALE)),
        };

        let mut session = Session::new(self.newest, clock.now());
        let mut opened: Option<Opened> = None;
        let mut tick_at: Option<LeaseTime> = None;
        let mut prune_at = clock.now().lease.plus(PRUNE);
        loop {
            let now = clock.now();
            let silent = now.lease.plus(session.silent_from().since(now.boot));
            let message = tokio::select! {
                message = feed.message() => message?.ok_or(Break::Closed)?,
                () = due(&*clock, tick_at) => {
                    let now = clock.now();
                    let tick = WatchFencesRequest { audience: String::new(), tick: session.tick(now)? };
                    // A queue that is full has not moved for as many ticks: the daemon does not read.
                    requests.try_send(tick).map_err(|_| Break::Silent(FEED_STALE))?;
                    tick_at = Some(now.lease.plus(TICK));
                    continue;
                }
                () = clock.sleep_until(silent) => return Err(Break::Silent(FEED_STALE)),
            };
            let now = clock.now();
            let heard = session.hear(message, now);
            self.newest = session.newest();
            match heard? {
                Heard::Began { epoch, issuer } => {
                    self.forget_other_epochs(epoch);
                    let keys = Keys::fetch(daemon.clone(), epoch, &*clock).await?;
                    opened = Some(Opened { epoch, issuer, keys: Arc::new(keys) });
                }
                Heard::Complete(fences) => {
                    let Some(Opened { epoch, issuer, keys }) = opened.take() else {
                        return Err(Break::Malformed("it was complete before it started"));
                    };
                    tracing::info!(epoch, lowered = fences.len(), "following the fence feed");
                    self.board.publish(View { epoch, issuer, fences, keys });
                    tick_at = Some(now.lease);
                }
                Heard::Lowered => self.board.touch(),
                Heard::Ticked { sent, daemon, ledger_head } => {
                    self.board.ticked(sent, daemon);
                    self.board.witness(ledger_head);
                    *retries = 0;
                    if now.lease >= prune_at {
                        session.prune(now, daemon);
                        prune_at = now.lease.plus(PRUNE);
                    }
                }
                Heard::Incomplete | Heard::Ignored => {}
            }
        }
    }

    /// A new life of the daemon has begun: what the old one said is over, before anything of the new one is known.
    fn forget_other_epochs(&self, epoch: u64) {
        let known = self.board.state().epoch;
        if known.is_some_and(|known| known != epoch) {
            let starting = Refusal::new(
                Reason::FeedStale,
                format!("leasehold has started anew, in epoch {epoch}: its fence feed is being read"),
            );
            self.board.refuse(Some(epoch), starting);
        }
    }
}

/// What a start said, until the snapshot is complete.
struct Opened {
    epoch: u64,
    issuer: Arc<str>,
    keys: Arc<Keys>,
}

/// Resolves at a moment, or never.
async fn due(clock: &dyn Clock, at: Option<LeaseTime>) {
    match at {
        Some(at) => clock.sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Doubled with each retry up to the cap; a random part of it, so that a thousand verifiers do not come back at once.
fn back_off(retries: u32) -> Duration {
    let most =
        FEED_RETRY_MIN.saturating_mul(1u32.checked_shl(retries).unwrap_or(u32::MAX)).min(FEED_RETRY_MAX);
    let most = u64::try_from(most.as_millis()).unwrap_or(u64::MAX).max(1);
    // Without randomness it is the whole of it.
    let part = random_u128().map_or(most, |r| u64::try_from(r % u128::from(most)).unwrap_or(most));
    Duration::from_millis(part.max(1))
}

/// Whatever ends the follower: nobody hears of revocations any more, so nothing is let through.
struct RefuseAtLast(Arc<Board>);

impl Drop for RefuseAtLast {
    fn drop(&mut self) {
        let epoch = self.0.state().epoch;
        self.0.refuse(epoch, Refusal::new(Reason::FeedStale, "the fence feed is not followed any more"));
    }
}

#[cfg(test)]
#[path = "feed_tests.rs"]
mod tests;

//! One subscription to the fence feed, from its connection to its end.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Channel};

use super::{
    feed_state::View,
    keys::PublicKeys,
    session::{FeedError, FeedPosition, FeedSession, SessionUpdate},
};
use crate::{
    clock::{BootTime, Clock, LeaseTime, Wall},
    limits::{FEED_STALE, FEED_TICKS_MAX, TICK},
    link::Connector,
    name::SpiffeId,
    proto::v1::{WatchFencesRequest, WatchFencesResponse, verifier_service_client::VerifierServiceClient},
};

/// Sends ticks and returns the events of the feed. The caller decides what to do with them.
pub(super) struct FeedSubscription {
    clock: Arc<dyn Clock>,
    /// The digest of the SVID with which the connection was opened.
    svid: Option<[u8; 32]>,
    daemon: VerifierServiceClient<Channel>,
    requests: mpsc::Sender<WatchFencesRequest>,
    feed: Streaming<WatchFencesResponse>,
    session: FeedSession,
    /// The epoch and issuer from the start of the feed.
    began: Option<(u64, Arc<str>)>,
    keys: Option<Arc<PublicKeys>>,
    tick_at: Option<LeaseTime>,
}

/// An event of the feed.
pub(super) enum FeedEvent {
    /// The feed has started, with this epoch.
    Began { epoch: u64 },
    /// The snapshot is complete. Each new lowering follows as an event.
    Complete(View),
    /// A fence was lowered and is in the fences of the view.
    Lowered,
    /// A tick was echoed. Contains when the tick was sent, and the time on the daemon's clock.
    Ticked { sent: BootTime, daemon: Wall, ledger_head: String },
}

impl FeedSubscription {
    /// Connects with our present SVID and subscribes. A feed whose position is older than `newest` is refused.
    pub(super) async fn open(
        connector: &Connector,
        audience: &SpiffeId,
        clock: Arc<dyn Clock>,
        newest: FeedPosition,
    ) -> Result<Self, FeedError> {
        let svid = connector.own_svid_digest();
        let mut daemon = VerifierServiceClient::new(connector.connected_channel().await?);
        let (requests, outgoing) = mpsc::channel(FEED_TICKS_MAX);
        let opening = WatchFencesRequest { audience: audience.to_string(), tick: 0 };
        requests.try_send(opening).map_err(|_| FeedError::Closed)?;
        let feed = tokio::select! {
            feed = daemon.watch_fences(ReceiverStream::new(outgoing)) => feed?.into_inner(),
            () = clock.sleep(FEED_STALE) => return Err(FeedError::Silent(FEED_STALE)),
        };
        let session = FeedSession::new(newest, clock.now());
        Ok(FeedSubscription {
            clock,
            svid,
            daemon,
            requests,
            feed,
            session,
            began: None,
            keys: None,
            tick_at: None,
        })
    }

    /// Returns the digest of the SVID with which the connection was opened.
    pub(super) fn svid(&self) -> Option<[u8; 32]> {
        self.svid
    }

    /// Returns the newest position. The position of the next subscription must not be older.
    pub(super) fn newest(&self) -> FeedPosition {
        self.session.newest()
    }

    /// Removes the lowerings that are older than every valid token.
    pub(super) fn prune(&self, daemon: Wall) {
        self.session.prune(self.clock.now(), daemon);
    }

    /// Waits for the next event. Cancel safe: the next call continues.
    pub(super) async fn next(&mut self) -> Result<FeedEvent, FeedError> {
        loop {
            if let Some((epoch, _)) = &self.began
                && self.keys.is_none()
            {
                let keys = PublicKeys::fetch(self.daemon.clone(), *epoch, &*self.clock).await?;
                self.keys = Some(Arc::new(keys));
            }
            let message = self.message().await?;
            let now = self.clock.now();
            match self.session.receive(message, now)? {
                SessionUpdate::Began { epoch, issuer } => {
                    self.began = Some((epoch, issuer));
                    return Ok(FeedEvent::Began { epoch });
                }
                SessionUpdate::Complete(fences) => {
                    let (Some((epoch, issuer)), Some(keys)) = (self.began.clone(), self.keys.clone()) else {
                        return Err(FeedError::Malformed("it was complete before it started"));
                    };
                    self.tick_at = Some(now.lease);
                    return Ok(FeedEvent::Complete(View { epoch, issuer, fences, keys }));
                }
                SessionUpdate::Lowered => return Ok(FeedEvent::Lowered),
                SessionUpdate::Ticked { sent, daemon, ledger_head } => {
                    return Ok(FeedEvent::Ticked { sent, daemon, ledger_head });
                }
                SessionUpdate::Incomplete | SessionUpdate::Ignored => {}
            }
        }
    }

    /// Waits for the next message, and sends ticks meanwhile. Fails if the daemon is silent for too long.
    async fn message(&mut self) -> Result<WatchFencesResponse, FeedError> {
        loop {
            let now = self.clock.now();
            let silent = now.lease.plus(self.session.silent_from().since(now.boot));
            tokio::select! {
                message = self.feed.message() => return message?.ok_or(FeedError::Closed),
                () = until(&*self.clock, self.tick_at) => self.send_tick()?,
                () = self.clock.sleep_until(silent) => return Err(FeedError::Silent(FEED_STALE)),
            }
        }
    }

    fn send_tick(&mut self) -> Result<(), FeedError> {
        let now = self.clock.now();
        let tick = WatchFencesRequest { audience: String::new(), tick: self.session.next_tick(now)? };
        // If the queue is full, the daemon has not read for as many ticks as the queue can have.
        self.requests.try_send(tick).map_err(|_| FeedError::Silent(FEED_STALE))?;
        self.tick_at = Some(now.lease.plus(TICK));
        Ok(())
    }
}

/// Resolves at this moment. Never resolves if the moment is `None`.
async fn until(clock: &dyn Clock, at: Option<LeaseTime>) {
    match at {
        Some(at) => clock.sleep_until(at).await,
        None => std::future::pending().await,
    }
}

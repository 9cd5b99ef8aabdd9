//! One subscription to the fence feed, over the wire: from its connection to its break.

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

/// Ticks by itself, and tells what is heard. Writes nothing: who holds it decides what counts.
pub(super) struct FeedSubscription {
    clock: Arc<dyn Clock>,
    /// The SVID that its connection was made with.
    svid: Option<[u8; 32]>,
    daemon: VerifierServiceClient<Channel>,
    requests: mpsc::Sender<WatchFencesRequest>,
    feed: Streaming<WatchFencesResponse>,
    session: FeedSession,
    /// What its start said.
    began: Option<(u64, Arc<str>)>,
    keys: Option<Arc<PublicKeys>>,
    tick_at: Option<LeaseTime>,
}

/// What is heard.
pub(super) enum FeedEvent {
    /// It has begun, of this epoch.
    Began { epoch: u64 },
    /// All names are known, and from here on each lowering comes.
    Complete(View),
    /// A name was lowered, and is in the fences of the view.
    Lowered,
    /// The tick that was sent at this moment came back, and the daemon's clock said this.
    Ticked { sent: BootTime, daemon: Wall, ledger_head: String },
}

impl FeedSubscription {
    /// Connects with our present SVID and subscribes. What lies before `newest` is refused.
    pub(super) async fn open(
        connector: &Connector,
        audience: &SpiffeId,
        clock: Arc<dyn Clock>,
        newest: FeedPosition,
    ) -> Result<Self, FeedError> {
        let svid = connector.own_svid();
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

    /// The SVID that its connection was made with, and ends with.
    pub(super) fn svid(&self) -> Option<[u8; 32]> {
        self.svid
    }

    /// The place that the next subscription must not lie before.
    pub(super) fn newest(&self) -> FeedPosition {
        self.session.newest()
    }

    /// Forgets the lowerings that can refuse no token that lives.
    pub(super) fn prune(&self, daemon: Wall) {
        self.session.prune(self.clock.now(), daemon);
    }

    /// The next that is heard. Cancel safe: what was not answered is answered by the next call.
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
            match self.session.hear(message, now)? {
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

    /// The next message. Until it comes ticks are sent, as long as the daemon is not silent for too long.
    async fn message(&mut self) -> Result<WatchFencesResponse, FeedError> {
        loop {
            let now = self.clock.now();
            let silent = now.lease.plus(self.session.silent_from().since(now.boot));
            tokio::select! {
                message = self.feed.message() => return message?.ok_or(FeedError::Closed),
                () = due(&*self.clock, self.tick_at) => self.tick()?,
                () = self.clock.sleep_until(silent) => return Err(FeedError::Silent(FEED_STALE)),
            }
        }
    }

    fn tick(&mut self) -> Result<(), FeedError> {
        let now = self.clock.now();
        let tick = WatchFencesRequest { audience: String::new(), tick: self.session.tick(now)? };
        // A queue that is full has not moved for as many ticks: the daemon does not read.
        self.requests.try_send(tick).map_err(|_| FeedError::Silent(FEED_STALE))?;
        self.tick_at = Some(now.lease.plus(TICK));
        Ok(())
    }
}

/// Resolves at a moment, or never.
async fn due(clock: &dyn Clock, at: Option<LeaseTime>) {
    match at {
        Some(at) => clock.sleep_until(at).await,
        None => std::future::pending().await,
    }
}

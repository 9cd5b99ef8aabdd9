//! The public keys of one epoch of the daemon.

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::Mutex;
use tonic::transport::Channel;

use super::session::FeedError;
use crate::{
    clock::{BootTime, Clock},
    limits::{FEED_STALE, KEY_REFRESH, KEYS_MAX},
    proto::v1::{GetKeysRequest, verifier_service_client::VerifierServiceClient},
    token::KeySet,
};

/// The public keys, and the client that fetches newer keys.
pub(super) struct PublicKeys {
    epoch: u64,
    daemon: VerifierServiceClient<Channel>,
    set: ArcSwap<KeySet>,
    /// When the keys were last fetched. The lock is held during a fetch, so that other callers wait for its result.
    fetched: Mutex<BootTime>,
}

impl PublicKeys {
    /// Fetches the keys of an epoch.
    pub(super) async fn fetch(
        daemon: VerifierServiceClient<Channel>,
        epoch: u64,
        clock: &dyn Clock,
    ) -> Result<Self, FeedError> {
        let fetched = clock.now().boot;
        let set = fetch(daemon.clone(), epoch, clock).await?;
        Ok(PublicKeys { epoch, daemon, set: ArcSwap::from_pointee(set), fetched: Mutex::new(fetched) })
    }

    pub(super) fn set(&self) -> Arc<KeySet> {
        self.set.load_full()
    }

    /// Returns the key set. If it does not have `kid`, fetches newer keys first, at most once per [`KEY_REFRESH`]. Concurrent
    /// callers share one fetch. If the fetch fails, the set does not change.
    pub(super) async fn set_for(&self, kid: &str, clock: &dyn Clock) -> Arc<KeySet> {
        if !self.set.load().contains(kid) {
            let mut fetched = self.fetched.lock().await;
            if !self.set.load().contains(kid) && clock.now().boot.since(*fetched) >= KEY_REFRESH {
                match fetch(self.daemon.clone(), self.epoch, clock).await {
                    Ok(set) => self.set.store(Arc::new(set)),
                    Err(error) => tracing::warn!(%error, "the public keys could not be fetched"),
                }
                *fetched = clock.now().boot;
            }
        }
        self.set()
    }
}

async fn fetch(
    mut daemon: VerifierServiceClient<Channel>,
    epoch: u64,
    clock: &dyn Clock,
) -> Result<KeySet, FeedError> {
    let answer = tokio::select! {
        answer = daemon.get_keys(GetKeysRequest {}) => answer.map_err(FeedError::from)?.into_inner(),
        () = clock.sleep(FEED_STALE) => return Err(FeedError::Silent(FEED_STALE)),
    };
    if answer.epoch != epoch {
        return Err(FeedError::KeysOfAnotherEpoch { keys: answer.epoch, feed: epoch });
    }
    let set = KeySet::from_jwks(&answer.jwks)?;
    if set.is_empty() || set.len() > KEYS_MAX {
        return Err(FeedError::KeyCount(set.len()));
    }
    Ok(set)
}

//! The public keys of one life of the daemon.

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

/// The keys, and where newer ones come from.
pub(super) struct PublicKeys {
    epoch: u64,
    daemon: VerifierServiceClient<Channel>,
    set: ArcSwap<KeySet>,
    /// When they were last asked for. Held while they are: who waits for it finds the answer.
    asked: Mutex<BootTime>,
}

impl PublicKeys {
    /// Fetches the keys of an epoch.
    pub(super) async fn fetch(
        daemon: VerifierServiceClient<Channel>,
        epoch: u64,
        clock: &dyn Clock,
    ) -> Result<Self, FeedError> {
        let asked = clock.now().boot;
        let set = ask(daemon.clone(), epoch, clock).await?;
        Ok(PublicKeys { epoch, daemon, set: ArcSwap::from_pointee(set), asked: Mutex::new(asked) })
    }

    pub(super) fn set(&self) -> Arc<KeySet> {
        self.set.load_full()
    }

    /// The set with a key that may be newer than ours: asks for it, once for all who want it, and at most each
    /// [`KEY_REFRESH`]. Where it could not be had the set is the same as before.
    pub(super) async fn with(&self, kid: &str, clock: &dyn Clock) -> Arc<KeySet> {
        if !self.set.load().contains(kid) {
            let mut asked = self.asked.lock().await;
            if !self.set.load().contains(kid) && clock.now().boot.since(*asked) >= KEY_REFRESH {
                match ask(self.daemon.clone(), self.epoch, clock).await {
                    Ok(set) => self.set.store(Arc::new(set)),
                    Err(error) => tracing::warn!(%error, "the public keys could not be fetched"),
                }
                *asked = clock.now().boot;
            }
        }
        self.set()
    }
}

async fn ask(
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

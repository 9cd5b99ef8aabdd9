//! An allowed use of a token, which is checked again while it lasts.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use super::feed_state::{FeedReading, FeedState};
use crate::{
    clock::Wall,
    name::{Action, Object},
    reason::{Reason, Refusal},
    token::{Claims, TokenError},
};

/// The witness that a token was valid at the moment of the check. Only a [`Verifier`](super::Verifier) makes it.
///
/// A server that continues to serve calls [`Access::check`] before each part, and stops when [`Access::ended`] resolves.
/// Cloning copies a pointer.
#[derive(Clone)]
pub struct Access(Arc<AccessState>);

struct AccessState {
    feed_state: Arc<FeedState>,
    claims: Arc<Claims>,
    /// The version of the feed state at the last check that found no lowered fence.
    seen: AtomicU64,
}

impl Access {
    pub(super) fn new(feed_state: Arc<FeedState>, claims: Arc<Claims>, version: u64) -> Self {
        Access(Arc::new(AccessState { feed_state, claims, seen: AtomicU64::new(version) }))
    }

    /// Returns the claims of the token.
    pub fn claims(&self) -> &Claims {
        &self.0.claims
    }

    /// Checks that the token allows this action on this object. Does not check that the use may continue.
    ///
    /// # Errors
    ///
    /// Fails if the token does not allow the action on the object.
    pub fn allows(&self, object: &Object, action: Action) -> Result<(), Refusal> {
        if self.claims().opens(object, action) {
            return Ok(());
        }
        let text = format!("the token does not allow `{action}` on `{object}`");
        Err(Refusal::new(Reason::TokenScope, text))
    }

    /// Checks that the use may continue now. Costs a few atomic loads and one reading of the clock. After a lowering, it also
    /// costs one look-up for each fence.
    ///
    /// # Errors
    ///
    /// Returns why the use must end: a lowered fence, the token's `exp`, a stale feed, or a new epoch of the daemon.
    pub fn check(&self) -> Result<(), Refusal> {
        self.check_now().map(|_| ())
    }

    /// Resolves when the use must end. This happens when a fence is lowered, at the token's `exp`, when the feed becomes stale,
    /// or when the daemon begins a new epoch. Use it while the server waits, for example for a slow reader.
    pub fn ended(&self) -> impl Future<Output = Refusal> + Send + 'static {
        let access = self.clone();
        async move {
            let mut changes = access.0.feed_state.changes();
            loop {
                changes.mark_unchanged();
                let reading = match access.check_now() {
                    Ok(reading) => reading,
                    Err(refusal) => return refusal,
                };
                tokio::select! {
                    // The feed state has the sender, and this access keeps the feed state.
                    _ = changes.changed() => {}
                    () = access.0.feed_state.clock().sleep_until(reading.until(access.expires())) => {}
                }
            }
        }
    }

    fn check_now(&self) -> Result<FeedReading, Refusal> {
        let AccessState { feed_state, claims, seen } = &*self.0;
        let reading = feed_state.read().map_err(|refusal| {
            // A reason that is about this token says more than a stale feed.
            feed_state.status().check(claims).err().unwrap_or(refusal)
        })?;
        if reading.daemon >= self.expires() {
            return Err(TokenError::Expired(self.expires()).into());
        }
        if seen.load(Ordering::Relaxed) != reading.version {
            feed_state.status().check(claims)?;
            seen.store(reading.version, Ordering::Relaxed);
        }
        Ok(reading)
    }

    fn expires(&self) -> Wall {
        Wall::from_seconds(self.0.claims.exp)
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Access({}, {})", self.0.claims.sub, self.0.claims.lh.lease)
    }
}

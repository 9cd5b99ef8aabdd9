//! A use that was allowed, to be looked at again while it lasts.

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
    reason::Refusal,
    token::{Claims, TokenError},
};

/// The witness that a token opened what was asked, when it was asked. Only a [`Verifier`](super::Verifier) makes one.
///
/// Says nothing about later: whoever goes on serving asks [`Access::check`] before each part, and stops when
/// [`Access::ended`] resolves. A clone is a pointer.
#[derive(Clone)]
pub struct Access(Arc<AccessState>);

struct AccessState {
    feed_state: Arc<FeedState>,
    claims: Claims,
    /// The state's version at which all fences were last found in order.
    seen: AtomicU64,
}

impl Access {
    pub(super) fn new(feed_state: Arc<FeedState>, claims: Claims, version: u64) -> Self {
        Access(Arc::new(AccessState { feed_state, claims, seen: AtomicU64::new(version) }))
    }

    /// What the token says.
    pub fn claims(&self) -> &Claims {
        &self.0.claims
    }

    /// Whether the use may go on now. A few atomic loads and one reading of the clock while nothing was lowered; a look at
    /// each fence if something was.
    pub fn check(&self) -> Result<(), Refusal> {
        self.look().map(|_| ())
    }

    /// Resolves when the use must end: at once when a fence goes down, at the token's `exp`, when the feed goes stale or
    /// the daemon has begun a new life. For whoever waits for something else than the next part.
    pub fn ended(&self) -> impl Future<Output = Refusal> + Send + 'static {
        let access = self.clone();
        async move {
            let mut changes = access.0.feed_state.changes();
            loop {
                changes.mark_unchanged();
                let moment = match access.look() {
                    Ok(moment) => moment,
                    Err(refusal) => return refusal,
                };
                tokio::select! {
                    // The sender is in the feed state, which this access holds.
                    _ = changes.changed() => {}
                    () = access.0.feed_state.clock().sleep_until(moment.until(access.expires())) => {}
                }
            }
        }
    }

    fn look(&self) -> Result<FeedReading, Refusal> {
        let AccessState { feed_state, claims, seen } = &*self.0;
        let moment = feed_state.fresh().map_err(|refusal| {
            // What is known of this token says more than that the feed is not fresh.
            feed_state.status().stands(claims).err().unwrap_or(refusal)
        })?;
        if moment.daemon >= self.expires() {
            return Err(TokenError::Expired(self.expires()).into());
        }
        if seen.load(Ordering::Relaxed) != moment.version {
            feed_state.status().stands(claims)?;
            seen.store(moment.version, Ordering::Relaxed);
        }
        Ok(moment)
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

//! The verifier: checks tokens and gives accesses.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    access::Access,
    feed::Follower,
    feed_state::{FeedReading, FeedState, FeedStatus, other_epoch},
};
use crate::{
    clock::Clock,
    link::Connector,
    name::{Action, Object, SpiffeId},
    reason::Refusal,
    token::{Expected, KeySet, Presenter, VerifiedTokens, peek_key_id},
};

/// The settings of a verifier.
pub struct VerifierSettings {
    /// Connects to the daemon. The catalog must name its SVID as a verifier of the audience.
    pub connector: Connector,
    /// The audience that tokens must have: the `name` of the `[[audience]]`.
    pub audience: SpiffeId,
    /// The clock for the check of `exp` and `nbf`.
    pub clock: Arc<dyn Clock>,
}

/// Decides from memory whether a token is valid now. Cloning copies a pointer. Dropping the last clone ends the follower.
///
/// The verifier refuses everything while it cannot decide: before the feed is complete, when no tick was echoed for
/// [`FEED_STALE`](crate::limits::FEED_STALE), and while the two clocks differ by more than
/// [`CLOCK_DIFFERENCE_MAX`](crate::limits::CLOCK_DIFFERENCE_MAX). Tokens of another epoch of the daemon are always refused.
#[derive(Clone)]
pub struct Verifier {
    audience: Arc<SpiffeId>,
    feed_state: Arc<FeedState>,
    verified: Arc<VerifiedTokens>,
    follower: Arc<FollowerTask>,
}

struct FollowerTask {
    task: Mutex<Option<JoinHandle<()>>>,
    ended: CancellationToken,
    _guard: DropGuard,
}

impl Verifier {
    /// Begins to follow the daemon's fence feed. Must be called inside a Tokio runtime.
    pub fn start(settings: VerifierSettings) -> Self {
        let VerifierSettings { connector, audience, clock } = settings;
        let feed_state = Arc::new(FeedState::new(clock.clone()));
        let ended = CancellationToken::new();
        let follower = Follower::new(connector, audience.clone(), clock, feed_state.clone());
        let task = Mutex::new(Some(tokio::spawn(follower.run(ended.clone()))));
        let _guard = ended.clone().drop_guard();
        Verifier {
            audience: Arc::new(audience),
            feed_state,
            verified: Arc::default(),
            follower: Arc::new(FollowerTask { task, ended, _guard }),
        }
    }

    /// Returns the audience that tokens must have.
    pub fn audience(&self) -> &SpiffeId {
        &self.audience
    }

    /// Waits until tokens can be checked. Until then, the log and [`Verifier::state`] say what is missing.
    pub async fn ready(&self) {
        let mut changes = self.feed_state.changes();
        while self.state().is_err() {
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await; // the feed state is gone, so it never becomes ready
            }
        }
    }

    /// Returns whether tokens can be checked now.
    ///
    /// # Errors
    ///
    /// Returns why everything is refused: the feed is incomplete, stale or ended, or the clocks differ too much.
    pub fn state(&self) -> Result<(), Refusal> {
        self.read_fresh_feed().map(|_| ())
    }

    /// Returns the last signed head of the daemon's ledger from the feed: a line for `leasehold audit verify --head`. Store it
    /// on a machine that the daemon's operators cannot change, so that it can reveal a truncated or rewritten ledger.
    pub fn ledger_head(&self) -> Option<String> {
        self.feed_state.ledger_head().map(|head| String::clone(&head))
    }

    /// Ends the follower. After that, everything is refused.
    pub async fn shutdown(&self) {
        self.follower.ended.cancel();
        let task = self.follower.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task
            && let Err(error) = task.await
        {
            tracing::error!(%error, "the follower of the fence feed did not end normally");
        }
    }

    /// Checks that a token allows an action on an object, for the peer that presented it.
    ///
    /// The object is a dataset, a model, or the folder of one job in a checkpoint line: `Object::folder` of the line and the
    /// job in the request. The token of a job opens only the folder of that job.
    ///
    /// Waits only if the token names an unknown public key, because newer keys are fetched once.
    ///
    /// # Errors
    ///
    /// Returns the refusal for the answer: tokens cannot be checked now, this token is invalid here or was revoked, or it does
    /// not allow the action on the object.
    pub async fn check(
        &self,
        token: &str,
        presenter: Presenter<'_>,
        object: &Object,
        action: Action,
    ) -> Result<Access, Refusal> {
        let access = self.accept(token, presenter).await?;
        access.allows(object, action)?;
        Ok(access)
    }

    /// Checks a token for the peer that presented it, before the object and the action are known. If clients make many small
    /// requests with one token, a server can keep the access, and call [`Access::allows`] and [`Access::check`] for each
    /// request.
    ///
    /// Waits only if the token names an unknown public key, because newer keys are fetched once.
    ///
    /// # Errors
    ///
    /// Returns the refusal for the answer: tokens cannot be checked now, or this token is invalid here or was revoked.
    pub async fn accept(&self, token: &str, presenter: Presenter<'_>) -> Result<Access, Refusal> {
        let keys = self.keys_for(token).await?;
        let (reading, status) = self.read_fresh_feed()?;
        let view = status.view()?;
        let expected = Expected { issuer: &view.issuer, audience: &self.audience, presenter };
        let claims = self.verified.claims(token, &keys)?;
        expected.accept(&claims, reading.daemon)?;
        status.check(&claims)?;
        Ok(Access::new(self.feed_state.clone(), claims, reading.version))
    }

    /// Returns the public keys. Fetches newer keys first if the token names an unknown key.
    async fn keys_for(&self, token: &str) -> Result<Arc<KeySet>, Refusal> {
        let (_, status) = self.read_fresh_feed()?;
        let view = status.view()?;
        let Some(kid) = peek_key_id(token) else { return Ok(view.keys.set()) };
        // The id is `EPOCH.N.THUMBPRINT`. A key of another epoch of the daemon need not be fetched.
        match kid.split('.').next().and_then(|epoch| epoch.parse::<u64>().ok()) {
            Some(epoch) if epoch == view.epoch => {
                Ok(view.keys.set_for(&kid, &**self.feed_state.clock()).await)
            }
            Some(epoch) => Err(other_epoch(epoch, view.epoch)),
            None => Ok(view.keys.set()),
        }
    }

    fn read_fresh_feed(&self) -> Result<(FeedReading, Arc<FeedStatus>), Refusal> {
        let reading = self.feed_state.read()?;
        let status = Arc::clone(&self.feed_state.status());
        status.view()?;
        Ok((reading, status))
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Verifier({})", self.audience)
    }
}

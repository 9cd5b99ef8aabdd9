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
    /// Connects to the daemon, with an SVID that the catalog names as a verifier of the audience.
    pub connector: Connector,
    /// The audience that tokens must have: the `name` of the `[[audience]]`.
    pub audience: SpiffeId,
    /// The clock that the `exp` and `nbf` of tokens are compared with.
    pub clock: Arc<dyn Clock>,
}

/// Decides from memory whether a token is valid now. A clone is a pointer. Dropping the last one ends the follower.
///
/// Refuses everything while it cannot decide: before the feed is complete, when no tick was echoed for
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

    /// The audience that tokens must have.
    pub fn audience(&self) -> &SpiffeId {
        &self.audience
    }

    /// Waits until tokens can be checked. The log and [`Verifier::state`] say why they cannot yet.
    pub async fn ready(&self) {
        let mut changes = self.feed_state.changes();
        while self.state().is_err() {
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await; // the feed state is gone, so it never becomes ready
            }
        }
    }

    /// Checks that tokens can be checked now.
    ///
    /// # Errors
    ///
    /// Why everything is refused: the feed is incomplete, stale or ended, or the clocks differ too much.
    pub fn state(&self) -> Result<(), Refusal> {
        self.read_fresh_feed().map(|_| ())
    }

    /// The last signed head of the daemon's ledger from the feed: a line for `leasehold audit verify --head`. Store it
    /// where the daemon's operators cannot change it, so that it can reveal a truncated or rewritten ledger.
    pub fn ledger_head(&self) -> Option<String> {
        self.feed_state.ledger_head().map(|head| String::clone(&head))
    }

    /// Ends the follower. Everything is refused from then on.
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
    /// The object is a dataset, a model, or the folder of one job in a checkpoint line: `Object::folder` of the line and the job
    /// in the request. The token of a job opens only the job's own folder.
    ///
    /// Waits only if the token names an unknown public key, because newer keys are fetched once.
    ///
    /// # Errors
    ///
    /// The refusal to answer the request with: tokens cannot be checked now, this one is invalid here or was revoked, or it does not
    /// allow the action on the object.
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

    /// Checks a token for the peer that presented it, before it is known what for. A server whose clients make many small
    /// requests with one token keeps the access and asks it [`Access::allows`] and [`Access::check`] for each request.
    ///
    /// Waits only if the token names an unknown public key, because newer keys are fetched once.
    ///
    /// # Errors
    ///
    /// The refusal to answer the request with: tokens cannot be checked now, or this one is invalid here or was revoked.
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

    /// Returns the public keys, after fetching newer ones if the token names an unknown key.
    async fn keys_for(&self, token: &str) -> Result<Arc<KeySet>, Refusal> {
        let (_, status) = self.read_fresh_feed()?;
        let view = status.view()?;
        let Some(kid) = peek_key_id(token) else { return Ok(view.keys.set()) };
        // `EPOCH.N.THUMBPRINT`: a key of another epoch of the daemon need not be fetched.
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

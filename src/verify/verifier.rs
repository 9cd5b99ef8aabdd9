//! Tokens in, accesses out.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    access::Access,
    feed::Follower,
    feed_state::{FeedReading, FeedState, FeedStatus, of_epoch},
};
use crate::{
    clock::Clock,
    link::Connector,
    name::{Action, Object, SpiffeId},
    reason::{Reason, Refusal},
    token::{self, Expected, KeySet, Presenter, peek_key_id},
};

/// What a verifier needs.
pub struct VerifierSettings {
    /// To the daemon, with an SVID that the catalog names as a verifier of the audience.
    pub connector: Connector,
    /// Whom the tokens must be for: the `name` of the `[[audience]]`.
    pub audience: SpiffeId,
    pub clock: Arc<dyn Clock>,
}

/// Decides whether a token is good now, from memory. A clone is a pointer; the last one that goes ends the follower.
///
/// Refuses everything while it does not know: before the feed is complete, when no tick has come back for
/// [`FEED_STALE`](crate::limits::FEED_STALE), while the two clocks are more than
/// [`CLOCK_DIFFERENCE_MAX`](crate::limits::CLOCK_DIFFERENCE_MAX) apart, and for ever tokens of another life of the daemon.
#[derive(Clone)]
pub struct Verifier {
    audience: Arc<SpiffeId>,
    feed_state: Arc<FeedState>,
    follower: Arc<Handle>,
}

struct Handle {
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
            follower: Arc::new(Handle { task, ended, _guard }),
        }
    }

    /// Whom the tokens must be for.
    pub fn audience(&self) -> &SpiffeId {
        &self.audience
    }

    /// Resolves when tokens can be decided. Does not say why they cannot yet: the log does, and [`Verifier::state`].
    pub async fn ready(&self) {
        let mut changes = self.feed_state.changes();
        while self.state().is_err() {
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await; // the feed_state is gone: it never will be
            }
        }
    }

    /// Whether tokens can be decided now, or why everything is refused.
    pub fn state(&self) -> Result<(), Refusal> {
        self.now().map(|_| ())
    }

    /// The last signed head of the daemon's ledger that came with the feed: a line for `leasehold audit verify --head`.
    /// Written to where the daemon's operators cannot reach it, it shows that the ledger was cut or rewritten.
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
            tracing::error!(%error, "the follower of the fence feed did not end in order");
        }
    }

    /// Decides whether a token opens an object for an action, for the peer that presented it.
    ///
    /// The object is a dataset or a model by its name, or the folder of one job in a checkpoint line: `Object::folder` of the
    /// line and the job that the request names. A job's token opens its own folder and no other.
    ///
    /// Waits for nothing but, where the token names a public key that is not known, one look for newer keys.
    pub async fn check(
        &self,
        token: &str,
        presenter: Presenter<'_>,
        object: &Object,
        action: Action,
    ) -> Result<Access, Refusal> {
        let keys = self.keys_for(token).await?;
        let (reading, status) = self.now()?;
        let view = status.view()?;
        let expected = Expected { issuer: &view.issuer, audience: &self.audience, presenter };
        let claims = token::check(token, &keys, expected, reading.daemon)?;
        status.stands(&claims)?;
        if !claims.opens(object, action) {
            return Err(Refusal::new(
                Reason::TokenScope,
                format!("the token does not open `{object}` for `{action}`"),
            ));
        }
        Ok(Access::new(self.feed_state.clone(), claims, reading.version))
    }

    /// The public keys, newer ones where the token names one that is not known.
    async fn keys_for(&self, token: &str) -> Result<Arc<KeySet>, Refusal> {
        let (_, status) = self.now()?;
        let view = status.view()?;
        let Some(kid) = peek_key_id(token) else { return Ok(view.keys.set()) };
        // `EPOCH.N.THUMBPRINT`: a key of another life of the daemon is not worth asking for.
        match kid.split('.').next().and_then(|epoch| epoch.parse::<u64>().ok()) {
            Some(epoch) if epoch == view.epoch => Ok(view.keys.with(&kid, &**self.feed_state.clock()).await),
            Some(epoch) => Err(of_epoch(epoch, view.epoch)),
            None => Ok(view.keys.set()),
        }
    }

    fn now(&self) -> Result<(FeedReading, Arc<FeedStatus>), Refusal> {
        let reading = self.feed_state.fresh()?;
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

//! Sessions: the access that the tokens of a request give. An accepted token is kept, so that its next use needs no new
//! check of the signature.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{
    attempt_order::{AttemptChange, AttemptOrder},
    stores::Stores,
    usage::Usages,
    view::{SharedView, TokenView},
};
use crate::{
    catalog::Catalog,
    clock::Clock,
    limits::{GATEWAY_HOLD, GATEWAY_SESSIONS_MAX},
    name::LeaseId,
    reason::{Reason, Refusal},
    secret::sha256,
    token::Presenter,
    verify::{Access, Verifier},
};

/// A function that returns the catalog in force.
pub type CatalogReader = Arc<dyn Fn() -> Catalog + Send + Sync>;

/// Accepts tokens, and keeps the accepted tokens. A clone is a pointer.
#[derive(Clone)]
pub(super) struct TokenSessions(Arc<SessionState>);

struct SessionState {
    verifier: Verifier,
    catalog: CatalogReader,
    stores: Arc<Stores>,
    clock: Arc<dyn Clock>,
    usages: Usages,
    order: AttemptOrder,
    kept: Mutex<KeptTokens>,
}

/// Accepted tokens, by the digest of the token and its presenter's certificate. If there are too many, the oldest are removed.
#[derive(Default)]
struct KeptTokens {
    by_digest: HashMap<[u8; 32], AcceptedToken>,
    in_order: VecDeque<[u8; 32]>,
    /// The newest token of each lease. A transfer that outlasts its token goes on with this token.
    newest: HashMap<LeaseId, Access>,
}

/// An accepted token, and the view of the objects that it opens.
#[derive(Clone)]
pub(super) struct AcceptedToken {
    pub(super) access: Access,
    pub(super) view: SharedView,
}

/// The access that the tokens of one request give.
#[derive(Clone)]
pub(super) struct TokenSession {
    /// The accepted tokens: at most one of the reading half and one of the writing half.
    pub(super) tokens: Vec<AcceptedToken>,
    /// The first refusal, if the request has tokens that were refused.
    pub(super) refused: Option<Refusal>,
}

impl TokenSessions {
    pub(super) fn new(
        verifier: Verifier,
        catalog: CatalogReader,
        stores: Arc<Stores>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let usages = Usages::new(clock.clone());
        TokenSessions(Arc::new(SessionState {
            verifier,
            catalog,
            stores,
            clock,
            usages,
            order: AttemptOrder::default(),
            kept: Mutex::default(),
        }))
    }

    /// Accepts the tokens of a request. If the verifier cannot decide now, waits for a bounded time until it can.
    ///
    /// # Errors
    ///
    /// The reason for which no token is accepted.
    pub(super) async fn open(
        &self,
        tokens: &[&str],
        presenter: Presenter<'_>,
    ) -> Result<TokenSession, Refusal> {
        let until = self.0.clock.now().lease.plus(GATEWAY_HOLD);
        loop {
            let refusal = match self.open_now(tokens, presenter).await {
                Ok(session) => return self.enter(session).await,
                Err(refusal) => refusal,
            };
            if !matches!(refusal.reason, Reason::FeedStale | Reason::ClockDifference) {
                return Err(refusal);
            }
            tokio::select! {
                () = self.0.verifier.ready() => {}
                () = self.0.clock.sleep_until(until) => return Err(refusal),
            }
        }
    }

    /// Waits until the changes of the job's earlier attempts have appeared.
    /// Leaves out the tokens of an attempt that is over.
    async fn enter(&self, session: TokenSession) -> Result<TokenSession, Refusal> {
        let TokenSession { tokens, refused } = session;
        let mut entered = TokenSession { tokens: Vec::with_capacity(tokens.len()), refused };
        for token in tokens {
            let claims = &token.access.claims().lh;
            match self.0.order.enter(claims.job, claims.attempt, &self.0.clock).await {
                Ok(()) => entered.tokens.push(token),
                Err(refusal) => entered.refused = entered.refused.or(Some(refusal)),
            }
        }
        entered.or_refused()
    }

    /// Begins a change by the attempt that has this access.
    pub(super) fn begin_change(&self, access: &Access) -> AttemptChange {
        let claims = &access.claims().lh;
        self.0.order.begin_change(claims.job, claims.attempt)
    }

    async fn open_now(&self, tokens: &[&str], presenter: Presenter<'_>) -> Result<TokenSession, Refusal> {
        let mut session = TokenSession { tokens: Vec::with_capacity(tokens.len()), refused: None };
        for token in tokens {
            match self.accept(token, presenter).await {
                Ok(accepted) => session.tokens.push(accepted),
                Err(refusal) => session.refused = session.refused.or(Some(refusal)),
            }
        }
        session.or_refused()
    }

    async fn accept(&self, token: &str, presenter: Presenter<'_>) -> Result<AcceptedToken, Refusal> {
        let digest = digest(token, presenter);
        let catalog = (self.0.catalog)();
        let kept = self.kept().by_digest.get(&digest).cloned();
        if let Some(kept) = kept {
            if let Err(refusal) = kept.access.check() {
                self.kept().remove(&digest);
                return Err(refusal);
            }
            if kept.view.catalog == catalog.digest() {
                return Ok(kept);
            }
            return Ok(self.keep(digest, kept.access, &catalog));
        }
        let access = self.0.verifier.accept(token, presenter).await?;
        Ok(self.keep(digest, access, &catalog))
    }

    fn keep(&self, digest: [u8; 32], access: Access, catalog: &Catalog) -> AcceptedToken {
        let objects = access.claims().objects().flatten();
        let view = Arc::new(TokenView::new(objects, self.0.verifier.audience(), catalog, &self.0.stores));
        let accepted = AcceptedToken { access, view };
        self.kept().add(digest, accepted.clone());
        accepted
    }

    /// Returns a newer token for the lease of an expired access, if the holder has presented one.
    pub(super) fn successor(&self, access: &Access) -> Option<Access> {
        let kept = self.kept();
        let newest = kept.newest.get(&access.claims().lh.lease)?;
        let (old, new) = (access.claims(), newest.claims());
        (new.sub == old.sub && new.exp > old.exp).then(|| newest.clone())
    }

    /// Returns the counters of the use of leases.
    pub(super) fn usages(&self) -> &Usages {
        &self.0.usages
    }

    pub(super) fn clock(&self) -> &Arc<dyn Clock> {
        &self.0.clock
    }

    fn kept(&self) -> MutexGuard<'_, KeptTokens> {
        self.0.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TokenSession {
    /// Returns the refusal if no token was accepted.
    fn or_refused(self) -> Result<Self, Refusal> {
        match self.refused {
            Some(refusal) if self.tokens.is_empty() => Err(refusal),
            refused => Ok(TokenSession { refused, ..self }),
        }
    }
}

impl KeptTokens {
    fn add(&mut self, digest: [u8; 32], accepted: AcceptedToken) {
        let claims = accepted.access.claims();
        let is_newer = self.newest.get(&claims.lh.lease).is_none_or(|known| claims.exp >= known.claims().exp);
        if is_newer {
            self.newest.insert(claims.lh.lease, accepted.access.clone());
        }
        if self.by_digest.insert(digest, accepted).is_none() {
            self.in_order.push_back(digest);
        }
        while self.by_digest.len() > GATEWAY_SESSIONS_MAX {
            let Some(oldest) = self.in_order.pop_front() else { break };
            self.remove(&oldest);
        }
        // `remove` leaves its digest in `in_order`. Such digests must not pile up.
        if self.in_order.len() > 2 * GATEWAY_SESSIONS_MAX {
            let by_digest = &self.by_digest;
            self.in_order.retain(|digest| by_digest.contains_key(digest));
        }
    }

    fn remove(&mut self, digest: &[u8; 32]) {
        let Some(removed) = self.by_digest.remove(digest) else { return };
        let claims = removed.access.claims();
        let is_newest =
            self.newest.get(&claims.lh.lease).is_some_and(|known| known.claims().jti == claims.jti);
        if is_newest {
            self.newest.remove(&claims.lh.lease);
        }
    }
}

/// Returns the key of a token in the cache. A token that is shown with another certificate gets another key.
fn digest(token: &str, presenter: Presenter<'_>) -> [u8; 32] {
    let shown_with = match presenter {
        Presenter::Svid { x5t_s256: Some(certificate), .. } => *certificate,
        Presenter::Svid { id, x5t_s256: None } => sha256(id.as_str().as_bytes()),
        Presenter::KeyHolder(holder) => sha256(holder.lease().to_access_key().as_bytes()),
        Presenter::Unseen => sha256(b""),
    };
    let mut bytes = Vec::with_capacity(token.len().saturating_add(32));
    bytes.extend_from_slice(&shown_with);
    bytes.extend_from_slice(token.as_bytes());
    sha256(&bytes)
}

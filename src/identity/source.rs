//! Where our own SVID and the trust bundles come from.

use std::sync::Arc;

use tokio::sync::watch;

use super::{TrustBundles, X509Svid};

/// Our own SVID and whom we trust, at one moment.
#[derive(Clone, Debug)]
pub struct Trust {
    /// Grows with every change of either.
    pub revision: u64,
    /// Absent where a process only verifies, or has not got one yet: it then accepts and makes no connection.
    pub svid: Option<Arc<X509Svid>>,
    /// Its own revision grows only when the roots change.
    pub bundles: Arc<TrustBundles>,
}

/// Gives the present [`Trust`], and says when it changes. Every handshake asks anew, so that a rotation needs no restart.
pub trait IdentitySource: Send + Sync + 'static {
    /// Never waits.
    fn current(&self) -> Arc<Trust>;
    /// Sees every change that comes after this call.
    fn watch(&self) -> watch::Receiver<Arc<Trust>>;
}

/// A trust that is in memory already, and that its owner replaces.
#[derive(Debug)]
pub struct StaticSource(Published);

impl StaticSource {
    pub fn new(svid: Option<Arc<X509Svid>>, bundles: TrustBundles) -> Self {
        StaticSource(Published::new(svid, bundles))
    }

    /// Replaces both, from the next handshake on.
    pub fn replace(&self, svid: Option<Arc<X509Svid>>, bundles: TrustBundles) {
        self.0.replace(svid, bundles);
    }
}

impl IdentitySource for StaticSource {
    fn current(&self) -> Arc<Trust> {
        self.0.current()
    }

    fn watch(&self) -> watch::Receiver<Arc<Trust>> {
        self.0.watch()
    }
}

/// The trust that a source shows, and the one place that counts its revisions.
#[derive(Debug)]
pub(super) struct Published(watch::Sender<Arc<Trust>>);

impl Published {
    pub(super) fn new(svid: Option<Arc<X509Svid>>, bundles: TrustBundles) -> Self {
        warn_of_shared_roots(&bundles);
        Published(watch::Sender::new(Arc::new(Trust {
            revision: 1,
            svid,
            bundles: Arc::new(bundles.with_revision(1)),
        })))
    }

    /// Shows another trust. The bundles keep their revision where they trust the same roots.
    pub(super) fn replace(&self, svid: Option<Arc<X509Svid>>, bundles: TrustBundles) {
        self.0.send_modify(|trust| {
            let bundles = if bundles.trusts_as(&trust.bundles) {
                trust.bundles.clone()
            } else {
                warn_of_shared_roots(&bundles);
                Arc::new(bundles.with_revision(trust.bundles.revision().saturating_add(1)))
            };
            *trust = Arc::new(Trust { revision: trust.revision.saturating_add(1), svid, bundles });
        });
    }

    pub(super) fn current(&self) -> Arc<Trust> {
        self.0.borrow().clone()
    }

    pub(super) fn watch(&self) -> watch::Receiver<Arc<Trust>> {
        self.0.subscribe()
    }
}

fn warn_of_shared_roots(bundles: &TrustBundles) {
    for (one, other) in bundles.shared_roots() {
        tracing::warn!(%one, %other, "two trust domains share a root: each can make identities of the other");
    }
}

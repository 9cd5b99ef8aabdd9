//! Several sources as one.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::future::{BoxFuture, join_all, select_all};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{IdentitySource, LoadError, Reloaded, Trust, TrustBundles, source::Published};
use crate::name::TrustDomain;

/// Our own SVID from the first source, and the roots of all: each trust domain's from the first that has some. How it stands
/// is how the first stands; a later one that fails costs its own trust domains alone.
pub struct CombinedSource {
    parts: Vec<Arc<dyn IdentitySource>>,
    /// Of other trust domains nobody is trusted, whatever a source says.
    allowed: Option<BTreeSet<TrustDomain>>,
    svid_life_max: Duration,
    published: Published,
    /// Held while the parts are put together, so that two do not cross.
    merging: Mutex<()>,
}

impl CombinedSource {
    /// `first` has our own SVID.
    pub fn new(
        first: Arc<dyn IdentitySource>,
        others: Vec<Arc<dyn IdentitySource>>,
        allowed: Option<BTreeSet<TrustDomain>>,
        svid_life_max: Duration,
    ) -> Self {
        let standing = first.current().standing.clone();
        let bundles = TrustBundles::empty().with_svid_life_max(svid_life_max);
        let parts = std::iter::once(first).chain(others).collect();
        let published = Published::new(None, bundles, standing);
        let combined = CombinedSource { parts, allowed, svid_life_max, published, merging: Mutex::new(()) };
        combined.merge();
        combined
    }

    fn merge(&self) {
        let _one = self.merging.lock().unwrap_or_else(PoisonError::into_inner);
        let trusts: Vec<Arc<Trust>> = self.parts.iter().map(|part| part.current()).collect();
        let Some(first) = trusts.first() else { return };
        let mut bundles = TrustBundles::empty().with_svid_life_max(self.svid_life_max);
        for trust in &trusts {
            bundles.add_all(&trust.bundles, |domain| {
                self.allowed.as_ref().is_none_or(|allowed| allowed.contains(domain))
            });
        }
        let shown = self.published.current();
        let same_svid = match (&shown.svid, &first.svid) {
            (Some(a), Some(b)) => a.leaf() == b.leaf(),
            (None, None) => true,
            _ => false,
        };
        if same_svid && bundles.trusts_as(&shown.bundles) {
            self.published.stand(first.standing.clone());
        } else {
            self.published.replace(first.svid.clone(), bundles, first.standing.clone());
        }
    }

    async fn merge_on(&self) {
        let mut watched: Vec<_> = self.parts.iter().map(|part| part.watch()).collect();
        loop {
            self.merge();
            let changes = watched.iter_mut().map(|trust| {
                Box::pin(async {
                    if trust.changed().await.is_err() {
                        std::future::pending::<()>().await; // that source is gone: its last word stays
                    }
                })
            });
            select_all(changes).await;
        }
    }
}

impl IdentitySource for CombinedSource {
    fn current(&self) -> Arc<Trust> {
        self.published.current()
    }

    fn watch(&self) -> watch::Receiver<Arc<Trust>> {
        self.published.watch()
    }

    fn follow(self: Arc<Self>, shutdown: CancellationToken) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let parts = join_all(self.parts.iter().map(|part| part.clone().follow(shutdown.clone())));
            tokio::select! {
                _ = parts => {}
                () = self.merge_on() => {}
                () = shutdown.cancelled() => {}
            }
        })
    }

    fn failing(&self) -> usize {
        self.parts.iter().map(|part| part.failing()).sum()
    }

    fn reload(&self) -> Result<Reloaded, LoadError> {
        let revision = self.published.current().revision;
        // All are asked, whatever one of them says.
        let answers: Vec<_> = self.parts.iter().map(|part| part.reload()).collect();
        self.merge();
        for answer in answers {
            answer?;
        }
        let changed = self.published.current().revision != revision;
        Ok(if changed { Reloaded::Changed } else { Reloaded::Unchanged })
    }
}

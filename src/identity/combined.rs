//! A source that combines several sources.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::future::{BoxFuture, join_all, select_all};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    bundle::TrustBundles,
    load::LoadError,
    source::{IdentitySource, Published, ReloadOutcome, Trust},
};
use crate::name::TrustDomain;

/// Gives the SVID and the state of the first source, and the roots of all sources. The roots of a trust domain come
/// from the first source that has roots for it. If a later source fails, only its own trust domains are affected.
pub struct CombinedSource {
    parts: Vec<Arc<dyn IdentitySource>>,
    /// The only trust domains that are trusted, even if the sources have more. `None` if all are trusted.
    allowed: Option<BTreeSet<TrustDomain>>,
    svid_life_max: Duration,
    published: Published,
    /// Held during a merge, so that two merges do not cross.
    merging: Mutex<()>,
}

impl CombinedSource {
    /// Combines sources. The SVID comes from `first`.
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
        let _guard = self.merging.lock().unwrap_or_else(PoisonError::into_inner);
        let trusts: Vec<Arc<Trust>> = self.parts.iter().map(|part| part.current()).collect();
        let Some(first) = trusts.first() else { return };
        let mut bundles = TrustBundles::empty().with_svid_life_max(self.svid_life_max);
        for trust in &trusts {
            bundles.add_missing(&trust.bundles, |domain| {
                self.allowed.as_ref().is_none_or(|allowed| allowed.contains(domain))
            });
        }
        let shown = self.published.current();
        let same_svid = match (&shown.svid, &first.svid) {
            (Some(a), Some(b)) => a.presents_as(b),
            (None, None) => true,
            _ => false,
        };
        if same_svid && bundles.trusts_as(&shown.bundles) {
            self.published.set_state(first.standing.clone());
        } else {
            self.published.replace(first.svid.clone(), bundles, first.standing.clone());
        }
    }

    async fn merge_changes(&self) {
        let mut watched: Vec<_> = self.parts.iter().map(|part| part.watch()).collect();
        loop {
            self.merge();
            let changes = watched.iter_mut().map(|trust| {
                Box::pin(async {
                    if trust.changed().await.is_err() {
                        std::future::pending::<()>().await; // that source is gone: its last trust stays
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
                () = self.merge_changes() => {}
                () = shutdown.cancelled() => {}
            }
        })
    }

    fn failing(&self) -> usize {
        self.parts.iter().map(|part| part.failing()).sum()
    }

    fn reload(&self) -> Result<ReloadOutcome, LoadError> {
        let revision = self.published.current().revision;
        // All parts are reloaded, even if one of them fails.
        let answers: Vec<_> = self.parts.iter().map(|part| part.reload()).collect();
        self.merge();
        for answer in answers {
            answer?;
        }
        let changed = self.published.current().revision != revision;
        Ok(if changed { ReloadOutcome::Changed } else { ReloadOutcome::Unchanged })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{
        source::StaticSource,
        source_state::SourceState,
        svid::X509Svid,
        testing::{TestCa, bundles},
    };

    struct Case {
        ours: Arc<StaticSource>,
        foreign: Arc<StaticSource>,
        cas: [TestCa; 3],
    }

    fn case() -> Case {
        let cas = ["a.example", "b.example", "c.example"].map(TestCa::new);
        let svid = Some(Arc::new(cas[0].svid("/daemon").svid()));
        Case {
            ours: Arc::new(StaticSource::new(svid, bundles(&[&cas[0]]))),
            foreign: Arc::new(StaticSource::new(None, bundles(&[&cas[1], &cas[2]]))),
            cas,
        }
    }

    fn combined(case: &Case, allowed: Option<&[&str]>) -> Arc<CombinedSource> {
        let allowed = allowed.map(|all| all.iter().map(|d| d.parse().unwrap()).collect());
        let life = crate::limits::SVID_LIFE_MAX;
        Arc::new(CombinedSource::new(case.ours.clone(), vec![case.foreign.clone()], allowed, life))
    }

    fn domains(source: &CombinedSource) -> Vec<String> {
        source.current().bundles.domains().map(ToString::to_string).collect()
    }

    #[test]
    fn the_first_source_that_has_roots_of_a_domain_provides_them() {
        let case = case();
        let source = combined(&case, None);
        assert_eq!(domains(&source), ["a.example", "b.example", "c.example"]);
        assert_eq!(source.current().svid.as_ref().unwrap().spiffe_id().as_str(), "spiffe://a.example/daemon");
        // A later source cannot replace the roots of our own domain.
        let claimed = TestCa::new("a.example");
        case.foreign.replace(None, bundles(&[&claimed, &TestCa::new("a.example"), &case.cas[1]]));
        source.reload().unwrap();
        assert_eq!(source.current().bundles.root_count(&case.cas[0].domain()), Some(1));
        let presented = [case.cas[0].svid("/x").leaf().clone()];
        let verified = |source: &CombinedSource| {
            let now = crate::identity::testing::NOW;
            crate::identity::path::verify(
                &presented,
                crate::identity::leaf::Side::Client,
                now,
                &source.current().bundles,
            )
        };
        assert!(verified(&source).is_ok(), "the roots of our domain come with our SVID");
        assert_eq!(domains(&source), ["a.example", "b.example"], "withdrawn roots are gone");
    }

    // Proves case D10.
    #[test]
    fn a_domain_that_is_not_allowed_is_not_trusted() {
        let case = case();
        assert_eq!(domains(&combined(&case, Some(&["a.example", "c.example"]))), ["a.example", "c.example"]);
        assert_eq!(domains(&combined(&case, Some(&[]))), [""; 0]);
    }

    #[tokio::test]
    async fn each_change_of_a_source_is_shown() {
        let case = case();
        let source = combined(&case, None);
        let stop = CancellationToken::new();
        let following = tokio::spawn(source.clone().follow(stop.clone()));
        let mut seen = source.watch();
        let revision = source.current().bundles.revision();
        let next: Arc<X509Svid> = Arc::new(case.cas[0].svid("/daemon").svid());
        case.ours.replace(Some(next.clone()), bundles(&[&case.cas[0]]));
        let trust = seen
            .wait_for(|t| t.svid.as_ref().is_some_and(|s| s.leaf() == next.leaf()))
            .await
            .unwrap()
            .clone();
        assert_eq!((trust.bundles.revision(), trust.standing.clone()), (revision, SourceState::Good));
        case.foreign.replace(None, bundles(&[&case.cas[2]]));
        let trust = seen.wait_for(|t| t.bundles.domains().count() == 2).await.unwrap().clone();
        assert!(trust.bundles.revision() > revision);
        stop.cancel();
        following.await.unwrap();
    }
}

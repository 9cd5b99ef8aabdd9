//! Where our own SVID and the trust bundles come from.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    bundle::TrustBundles,
    load::LoadError,
    source_state::{SourceState, Unusable},
    svid::X509Svid,
};
use crate::clock::{Clock, Wall};

/// Our own SVID and whom we trust, at one moment.
#[derive(Clone, Debug)]
pub struct Trust {
    /// Grows with every change of either.
    pub revision: u64,
    /// Absent where a process only verifies, has not got one yet, or may not use it any more: it then accepts and makes no
    /// connection.
    pub svid: Option<Arc<X509Svid>>,
    /// Its own revision grows only when the roots change.
    pub bundles: Arc<TrustBundles>,
    /// Whether this is what the origin says now, or what it said last.
    pub standing: SourceState,
}

impl Trust {
    /// Whether connections can be made and accepted with it.
    pub fn check(&self, now: Wall) -> Result<(), Unusable> {
        match &self.standing {
            SourceState::Awaited { why } => return Err(Unusable::Awaited { why: why.clone() }),
            SourceState::Ended { why, .. } => return Err(Unusable::Ended { why: why.clone() }),
            SourceState::GivenUp { why, .. } => return Err(Unusable::GivenUp { why: why.clone() }),
            SourceState::Good | SourceState::Stale { .. } => {}
        }
        let svid = self.svid.as_ref().ok_or(Unusable::Absent)?;
        if now < svid.leaf().not_before {
            return Err(Unusable::NotYetValid { not_before: svid.leaf().not_before });
        }
        if now >= svid.not_after() {
            let why = self.standing.why().map(str::to_owned);
            return Err(Unusable::Expired { not_after: svid.not_after(), why });
        }
        Ok(())
    }
}

/// Whether a reload found anything new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReloadOutcome {
    Changed,
    Unchanged,
}

/// Gives the present [`Trust`], and says when it changes. Every handshake asks anew, so that a rotation needs no restart.
pub trait IdentitySource: Send + Sync + 'static {
    /// Never waits.
    fn current(&self) -> Arc<Trust>;

    /// Sees every change that comes after this call, of the standing too.
    fn watch(&self) -> watch::Receiver<Arc<Trust>>;

    /// Keeps it current until `shutdown`: as a task of its own, once. A source whose owner replaces its trust has nothing to
    /// follow.
    fn follow(self: Arc<Self>, shutdown: CancellationToken) -> BoxFuture<'static, ()> {
        Box::pin(shutdown.cancelled_owned())
    }

    /// How many of the origins behind it do not stand well.
    fn failing(&self) -> usize {
        usize::from(self.current().standing != SourceState::Good)
    }

    /// Asks the origin anew at once. What was before stays where it cannot be used.
    fn reload(&self) -> Result<ReloadOutcome, LoadError> {
        Ok(ReloadOutcome::Unchanged)
    }
}

/// A trust that is in memory already, and that its owner replaces.
#[derive(Debug)]
pub struct StaticSource(Published);

impl StaticSource {
    pub fn new(svid: Option<Arc<X509Svid>>, bundles: TrustBundles) -> Self {
        StaticSource(Published::new(svid, bundles, SourceState::Good))
    }

    /// Replaces both, from the next handshake on.
    pub fn replace(&self, svid: Option<Arc<X509Svid>>, bundles: TrustBundles) {
        self.0.replace(svid, bundles, SourceState::Good);
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
    pub(super) fn new(svid: Option<Arc<X509Svid>>, bundles: TrustBundles, standing: SourceState) -> Self {
        warn_of_shared_roots(&bundles);
        Published(watch::Sender::new(Arc::new(Trust {
            revision: 1,
            svid,
            bundles: Arc::new(bundles.with_revision(1)),
            standing,
        })))
    }

    /// Shows another trust. The bundles keep their revision where they trust the same roots.
    pub(super) fn replace(&self, svid: Option<Arc<X509Svid>>, bundles: TrustBundles, standing: SourceState) {
        self.0.send_modify(|trust| {
            let bundles = if bundles.trusts_as(&trust.bundles) {
                trust.bundles.clone()
            } else {
                warn_of_shared_roots(&bundles);
                Arc::new(bundles.with_revision(trust.bundles.revision().saturating_add(1)))
            };
            *trust = Arc::new(Trust { revision: trust.revision.saturating_add(1), svid, bundles, standing });
        });
    }

    /// Says how the source stands now. What it shows stays. Nobody is woken for what they know.
    pub(super) fn stand(&self, standing: SourceState) {
        self.0.send_if_modified(|trust| {
            let changes = trust.standing != standing;
            if changes {
                *trust = Arc::new(Trust { standing, ..Trust::clone(trust) });
            }
            changes
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

/// Why there is no identity to begin with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoIdentity {
    #[error("no identity was issued within {} s: {why}", waited.as_secs())]
    NotInTime { waited: Duration, why: String },
    #[error("no identity will be issued: {why}")]
    Never { why: String },
}

/// Waits until a source that somebody follows has an SVID. A new workload is often faster than its registration entry.
///
/// `say` is told once, with the reason, when there is something to wait for.
pub async fn wait_for_identity(
    source: &dyn IdentitySource,
    clock: &dyn Clock,
    wait: Duration,
    say: impl FnOnce(&str),
) -> Result<Arc<Trust>, NoIdentity> {
    let mut trusts = source.watch();
    let deadline = clock.sleep(wait);
    tokio::pin!(deadline);
    let mut say = Some(say);
    loop {
        let trust = trusts.borrow_and_update().clone();
        let why = match &trust.standing {
            _ if trust.svid.is_some() => return Ok(trust),
            SourceState::Ended { why, .. } | SourceState::GivenUp { why, .. } => {
                return Err(NoIdentity::Never { why: why.clone() });
            }
            SourceState::Good => return Err(NoIdentity::Never { why: "no SVID is configured".to_owned() }),
            SourceState::Awaited { why } | SourceState::Stale { why, .. } => why.clone(),
        };
        // Before the first answer there is nothing to tell.
        if why != SourceState::NOT_ASKED_YET
            && let Some(say) = say.take()
        {
            say(&why);
        }
        tokio::select! {
            changed = trusts.changed() => {
                if changed.is_err() {
                    return Err(NoIdentity::Never { why });
                }
            }
            () = &mut deadline => return Err(NoIdentity::NotInTime { waited: wait, why }),
        }
    }
}

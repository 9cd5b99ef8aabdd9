//! The sources of our own SVID and of the trust bundles.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    bundle::TrustBundles,
    load::LoadError,
    source_state::{SourceState, Unusable},
    svid::X509Svid,
};
use crate::{
    clock::{Clock, Wall},
    limits::SHARED_ROOTS_WARNED_MAX,
};

/// Our own SVID and the roots that we trust, at one moment.
#[derive(Clone, Debug)]
pub struct Trust {
    /// A number that grows with every change of the SVID or the bundles.
    pub revision: u64,
    /// Our own SVID. `None` if the process only verifies, has no SVID yet, or may no longer use it. Without an SVID,
    /// the process accepts and opens no connections.
    pub svid: Option<Arc<X509Svid>>,
    /// The roots that we trust. The revision of the bundles grows only when the roots change.
    pub bundles: Arc<TrustBundles>,
    /// Whether the source shows the present answer of its origin (files, an agent or a bundle endpoint). If not, why.
    pub standing: SourceState,
}

impl Trust {
    /// Checks that connections can be opened and accepted with this trust.
    ///
    /// # Errors
    ///
    /// There is no SVID, it is not valid now, or the source has revoked it or given up.
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

/// Whether a reload found a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReloadOutcome {
    /// The SVID or the roots have changed.
    Changed,
    /// The origin of the source, for example its files, still gives the present SVID and roots.
    Unchanged,
}

/// A source of the current [`Trust`]. It reports changes. Every handshake reads the trust again, so that a rotation
/// needs no restart.
pub trait IdentitySource: Send + Sync + 'static {
    /// Returns the current trust at once.
    fn current(&self) -> Arc<Trust>;

    /// Reports every change after this call, including changes of the state.
    fn watch(&self) -> watch::Receiver<Arc<Trust>>;

    /// Keeps the trust current until `shutdown`. Run it once, as a separate task. The default does nothing. It is enough for a
    /// source whose owner replaces the trust.
    fn follow(self: Arc<Self>, shutdown: CancellationToken) -> BoxFuture<'static, ()> {
        Box::pin(shutdown.cancelled_owned())
    }

    /// Returns the number of origins whose state is not good.
    fn failing(&self) -> usize {
        usize::from(self.current().standing != SourceState::Good)
    }

    /// Reads the origin again at once. If the result is unusable, the present trust stays.
    ///
    /// # Errors
    ///
    /// The result cannot be used.
    fn reload(&self) -> Result<ReloadOutcome, LoadError> {
        Ok(ReloadOutcome::Unchanged)
    }
}

/// A source whose owner replaces the trust.
#[derive(Debug)]
pub struct StaticSource(Published);

impl StaticSource {
    /// Makes a source with this trust until it is replaced. Without an SVID, the source only verifies.
    pub fn new(svid: Option<Arc<X509Svid>>, bundles: TrustBundles) -> Self {
        StaticSource(Published::new(svid, bundles, SourceState::Good))
    }

    /// Replaces the SVID and the bundles. The next handshake uses them.
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

/// The trust that a source shows. Only this type counts revisions.
#[derive(Debug)]
pub(super) struct Published {
    trust: watch::Sender<Arc<Trust>>,
    /// The pairs of domains with a shared root that were logged already. So repeated changes of bundles do not fill the
    /// log.
    warned: Mutex<BTreeSet<String>>,
}

impl Published {
    pub(super) fn new(svid: Option<Arc<X509Svid>>, bundles: TrustBundles, standing: SourceState) -> Self {
        let warned = Mutex::default();
        warn_of_shared_roots(&bundles, &warned);
        let bundles = Arc::new(bundles.with_revision(1));
        let trust = watch::Sender::new(Arc::new(Trust { revision: 1, svid, bundles, standing }));
        Published { trust, warned }
    }

    /// Replaces the trust. The bundles keep their revision if they trust the same roots.
    pub(super) fn replace(&self, svid: Option<Arc<X509Svid>>, bundles: TrustBundles, standing: SourceState) {
        self.trust.send_modify(|trust| {
            let bundles = if bundles.trusts_as(&trust.bundles) {
                trust.bundles.clone()
            } else {
                warn_of_shared_roots(&bundles, &self.warned);
                Arc::new(bundles.with_revision(trust.bundles.revision().saturating_add(1)))
            };
            *trust = Arc::new(Trust { revision: trust.revision.saturating_add(1), svid, bundles, standing });
        });
    }

    /// Replaces only the state. Watchers are woken only if the state differs.
    pub(super) fn set_state(&self, standing: SourceState) {
        self.trust.send_if_modified(|trust| {
            let changes = trust.standing != standing;
            if changes {
                *trust = Arc::new(Trust { standing, ..Trust::clone(trust) });
            }
            changes
        });
    }

    pub(super) fn current(&self) -> Arc<Trust> {
        self.trust.borrow().clone()
    }

    pub(super) fn watch(&self) -> watch::Receiver<Arc<Trust>> {
        self.trust.subscribe()
    }
}

fn warn_of_shared_roots(bundles: &TrustBundles, warned: &Mutex<BTreeSet<String>>) {
    let mut warned = warned.lock().unwrap_or_else(PoisonError::into_inner);
    for (one, other) in bundles.shared_roots() {
        if warned.len() < SHARED_ROOTS_WARNED_MAX && warned.insert(format!("{one} {other}")) {
            tracing::warn!(%one, %other, "two trust domains share a root: each can issue identities of the other");
        }
    }
}

/// Why a process did not get its first SVID.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoIdentity {
    /// The wait was over before the origin gave an SVID.
    #[error("no identity was issued within {} s: {why}", waited.as_secs())]
    NotInTime {
        /// The length of the wait.
        waited: Duration,
        /// The reason for which there was no SVID at the end of the wait, for people.
        why: String,
    },
    /// The origin says that it will give no SVID, so waiting does not help.
    #[error("no identity will be issued: {why}")]
    Never {
        /// The reason, for people.
        why: String,
    },
}

/// Waits until a source has an SVID, while [`IdentitySource::follow`] runs. A new workload often starts before its registration
/// entry reaches the agent.
///
/// Calls `report` once, with the reason for waiting.
///
/// # Errors
///
/// No SVID arrived within `wait`, or the source says that no SVID will arrive.
pub async fn wait_for_identity(
    source: &dyn IdentitySource,
    clock: &dyn Clock,
    wait: Duration,
    report: impl FnOnce(&str),
) -> Result<Arc<Trust>, NoIdentity> {
    let mut trusts = source.watch();
    let deadline = clock.sleep(wait);
    tokio::pin!(deadline);
    let mut report = Some(report);
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
        // Before the first answer there is nothing to report.
        if why != SourceState::NOT_ASKED_YET
            && let Some(report) = report.take()
        {
            report(&why);
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

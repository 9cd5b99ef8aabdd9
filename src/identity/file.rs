//! A source that reads our own SVID and the trust bundles from files, again after each rotation.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    bundle::{Roots, TrustBundles},
    load::{self, LoadError},
    source::{IdentitySource, Published, ReloadOutcome, Trust},
    source_state::{Outage, SourceState},
    svid::X509Svid,
};
use crate::{
    clock::{Clock, Wall},
    limits,
    name::TrustDomain,
    sync::run_blocking,
};

/// The files of an identity.
#[derive(Clone, Debug)]
pub struct IdentityFiles {
    /// The chain of our own SVID, leaf first, and the private key. `None` if this process has no SVID.
    pub svid: Option<(PathBuf, PathBuf)>,
    /// The roots of each trust domain, as PEM or as a SPIFFE bundle document.
    pub bundles: Vec<(TrustDomain, PathBuf)>,
}

/// A source with the contents of the files. If a file is invalid, the last good contents of all files stay. While
/// [`FileSource::follow`] runs, it checks the files every [`limits::IDENTITY_POLL`].
pub struct FileSource {
    files: IdentityFiles,
    svid_life_max: Duration,
    clock: Arc<dyn Clock>,
    published: Published,
    /// Held during a reload, so that two reloads do not cross.
    last: Mutex<LastLook>,
}

/// The result of the last check of the files, and what was logged about it.
struct LastLook {
    fingerprints: Vec<Fingerprint>,
    is_expiry_logged: bool,
    outage: Outage,
}

/// Metadata that changes when a file is written or replaced: device, inode, size, modification and change time.
type Fingerprint = Option<(u64, u64, u64, i64, i64, i64, i64)>;

impl FileSource {
    /// Loads all files.
    ///
    /// # Errors
    ///
    /// A file cannot be read or used. The error names the file.
    pub fn open(files: IdentityFiles, clock: Arc<dyn Clock>) -> Result<Self, LoadError> {
        Self::open_limited(files, limits::SVID_LIFE_MAX, clock)
    }

    /// Loads all files, and sets the longest accepted life of an SVID.
    ///
    /// # Errors
    ///
    /// A file cannot be read or used. The error names the file.
    pub fn open_limited(
        files: IdentityFiles,
        svid_life_max: Duration,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, LoadError> {
        let fingerprints = files.fingerprints();
        let (svid, bundles) = files.load(svid_life_max, clock.now().wall, &TrustBundles::empty())?;
        let outage = Outage::new(limits::IDENTITY_OUTAGE_MAX);
        let last = Mutex::new(LastLook { fingerprints, is_expiry_logged: false, outage });
        let published = Published::new(svid, bundles, SourceState::Good);
        Ok(FileSource { files, svid_life_max, clock, published, last })
    }

    /// Sets the time for which the last good trust is used while the files are invalid.
    #[must_use]
    pub fn with_outage_max(mut self, outage_max: Duration) -> Self {
        self.last.get_mut().unwrap_or_else(PoisonError::into_inner).outage = Outage::new(outage_max);
        self
    }

    /// Loads all files again, even if they look unchanged. If a file cannot be used, the last good contents stay.
    ///
    /// # Errors
    ///
    /// A file cannot be read or used. The error names the file.
    pub fn reload(&self) -> Result<ReloadOutcome, LoadError> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.fingerprints = self.files.fingerprints();
        self.load_again(&mut last)
    }

    /// Checks the files until `shutdown`: loads rotated files and drops expired roots. Run it as a separate task. An
    /// invalid file is logged once, and the last good trust stays.
    pub async fn follow(self: Arc<Self>, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.clock.sleep(limits::IDENTITY_POLL) => {}
            }
            let source = self.clone();
            if run_blocking(move || source.look()).await.is_none() {
                tracing::error!("the check of the identity files did not finish");
            }
        }
    }

    /// Reloads the files if one has changed since the last check, and drops expired roots.
    fn look(&self) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let fingerprints = self.files.fingerprints();
        if fingerprints != last.fingerprints {
            last.fingerprints = fingerprints;
            match self.load_again(&mut last) {
                Ok(ReloadOutcome::Changed) => {
                    let trust = self.published.current();
                    let svid = trust.svid.as_ref().map(ToString::to_string);
                    let (revision, bundles) = (trust.revision, &trust.bundles);
                    tracing::info!(revision, svid, %bundles, "identity files reloaded");
                }
                Ok(ReloadOutcome::Unchanged) => {}
                Err(error) => {
                    tracing::error!(error = %chain(&error), "the identity files changed and cannot be used: the last good ones stay in use");
                }
            }
        }
        self.drop_expired(&mut last);
        self.give_up_if_overdue(&last);
    }

    fn load_again(&self, last: &mut LastLook) -> Result<ReloadOutcome, LoadError> {
        let now = self.clock.now();
        let trust = self.published.current();
        let (svid, bundles) =
            self.files.load(self.svid_life_max, now.wall, &trust.bundles).inspect_err(|error| {
                let since = last.outage.begin(now.wall, now.boot);
                if !matches!(trust.standing, SourceState::GivenUp { .. }) {
                    self.published.set_state(SourceState::Stale { since, why: error.to_string() });
                }
            })?;
        last.outage.end();
        let same_svid = match (&svid, &trust.svid) {
            (Some(a), Some(b)) => a.presents_as(b),
            (None, None) => true,
            _ => false,
        };
        if same_svid && bundles.trusts_as(&trust.bundles) {
            self.published.set_state(SourceState::Good);
            return Ok(ReloadOutcome::Unchanged);
        }
        last.is_expiry_logged = false;
        self.published.replace(svid, bundles, SourceState::Good);
        Ok(ReloadOutcome::Changed)
    }

    /// Drops all trust if the files were invalid for too long, because old roots must not stay permanently.
    fn give_up_if_overdue(&self, last: &LastLook) {
        let trust = self.published.current();
        if let Some(since) = last.outage.overdue_since(self.clock.now().boot)
            && let SourceState::Stale { why, .. } = &trust.standing
        {
            tracing::error!(%since, %why, "the identity files were unusable for longer than the limit: no peer is trusted now");
            let no_bundles = TrustBundles::empty().with_svid_life_max(self.svid_life_max);
            self.published.replace(None, no_bundles, SourceState::GivenUp { since, why: why.clone() });
        }
    }

    fn drop_expired(&self, last: &mut LastLook) {
        let now = self.clock.now().wall;
        let trust = self.published.current();
        if let Some(bundles) = trust.bundles.without_expired(now) {
            tracing::warn!(%bundles, "roots expired and were dropped");
            self.published.replace(trust.svid.clone(), bundles, trust.standing.clone());
        }
        if let Some(svid) = trust.svid.as_ref().filter(|svid| now >= svid.not_after())
            && !last.is_expiry_logged
        {
            last.is_expiry_logged = true;
            tracing::error!(%svid, "our own SVID has expired and was not replaced: no peer will accept it");
        }
    }
}

impl IdentitySource for FileSource {
    fn current(&self) -> Arc<Trust> {
        self.published.current()
    }

    fn watch(&self) -> watch::Receiver<Arc<Trust>> {
        self.published.watch()
    }

    fn follow(self: Arc<Self>, shutdown: CancellationToken) -> BoxFuture<'static, ()> {
        Box::pin(FileSource::follow(self, shutdown))
    }

    fn reload(&self) -> Result<ReloadOutcome, LoadError> {
        FileSource::reload(self)
    }
}

impl IdentityFiles {
    fn load(
        &self,
        svid_life_max: Duration,
        now: Wall,
        shown: &TrustBundles,
    ) -> Result<(Option<Arc<X509Svid>>, TrustBundles), LoadError> {
        let svid = match &self.svid {
            Some((cert, key)) => Some(Arc::new(X509Svid::load(cert, key)?)),
            None => None,
        };
        let mut bundles = TrustBundles::empty().with_svid_life_max(svid_life_max);
        for (domain, path) in &self.bundles {
            let (file, bytes) = (path.display().to_string(), load::read(path)?);
            let roots = Arc::new(Roots::from_file(&file, &bytes, domain, now)?);
            let roots = match shown.roots(domain) {
                Some(newer) if roots.is_older_than(newer) => {
                    tracing::warn!(%file, %domain, "the sequence of this bundle is lower than that of the one in use: it is ignored");
                    newer.clone()
                }
                _ => roots,
            };
            for warning in roots.warnings(domain) {
                tracing::warn!(%file, %domain, %warning, "trust bundle");
            }
            bundles.insert(domain.clone(), &file, roots)?;
        }
        Ok((svid, bundles))
    }

    fn fingerprints(&self) -> Vec<Fingerprint> {
        let own = self.svid.iter().flat_map(|(cert, key)| [cert, key]);
        own.chain(self.bundles.iter().map(|(_, path)| path)).map(|path| fingerprint(path)).collect()
    }
}

fn fingerprint(path: &Path) -> Fingerprint {
    let seen = fs::metadata(path).ok()?;
    Some((
        seen.dev(),
        seen.ino(),
        seen.size(),
        seen.mtime(),
        seen.mtime_nsec(),
        seen.ctime(),
        seen.ctime_nsec(),
    ))
}

/// Writes an error and its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    line
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
